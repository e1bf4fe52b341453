"""Word vectors from a file: word2vec's text and binary form, and GloVe's text. Only the words that are asked for are kept.

word2vec begins with a line `WORDS NUMBERS`; then each word, a space, and its numbers: as text, or as float32. GloVe's text
has no first line.
"""

from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.storage.folder import split_url

Vector = npt.NDArray[np.float32]

_CURE = "give a file of word2vec (text or binary) or GloVe (text)"
_LONGEST = 1 << 12  # bytes of a word; more is no word


def spellings(tag: str) -> tuple[str, ...]:
    """How a tag may be spelled in a file of words: as it is, and with `_` for its spaces and hyphens."""
    return tuple(dict.fromkeys((tag, tag.replace(" ", "_"), tag.replace(" ", "_").replace("-", "_"))))


def parts(tag: str) -> list[str]:
    """The single words of a tag."""
    return tag.replace("-", " ").replace("_", " ").split()


def read_word_vectors(url: str, tags: Iterable[str], setting: str) -> dict[str, Vector]:
    """The vector of each tag that has one: float32 [D] of unit length. A tag of several words that is not in the file has
    the mean of its words' unit vectors, where the file has them all. Raises DataError, beginning with `setting`."""
    tags = list(tags)
    wanted = {text for tag in tags for text in (*spellings(tag), *parts(tag))}
    folder, name = split_url(url)
    if not folder.exists(name):
        raise DataError(f"{setting}: {url} does not exist; {_CURE}")
    found: dict[str, Vector] = {}
    with folder.open_local(name) as file:
        for word, vector in _entries(file, f"{setting}: {url}", wanted):
            length = np.linalg.norm(vector)
            if not np.isfinite(length):
                raise DataError(f"{setting}: {url} has a number that is not finite in the vector of {word!r}; {_CURE}")
            if length > 0:
                found.setdefault(word, (vector / length).astype(np.float32))
    vectors = {tag: _vector(tag, found) for tag in tags}
    return {tag: vector for tag, vector in vectors.items() if vector is not None}


def _vector(tag: str, found: dict[str, Vector]) -> Vector | None:
    for text in spellings(tag):
        if text in found:
            return found[text]
    words = parts(tag)
    if not words or any(word not in found for word in words):
        return None
    mean = np.mean([found[word] for word in words], axis=0)
    length = np.linalg.norm(mean)
    return (mean / length).astype(np.float32) if length > 1e-6 else None


def _entries(file: IO[bytes], where: str, wanted: set[str]) -> Iterator[tuple[str, Vector]]:
    """(word, vector) of the words that are wanted. Raises DataError."""
    head = file.readline().split()
    begin = file.tell()
    if len(head) != 2 or not all(part.isdigit() for part in head):
        file.seek(0)
        yield from _text(file, where, wanted, len(head) - 1, 1)
        return
    words, numbers = (int(part) for part in head)
    line = file.readline()
    file.seek(begin)
    if len(line.split()) > numbers and _values(line.split()[-numbers:]) is not None:
        yield from _text(file, where, wanted, numbers, 2)
    else:
        yield from _binary(file, where, wanted, words, numbers)


def _text(file: IO[bytes], where: str, wanted: set[str], numbers: int, first: int) -> Iterator[tuple[str, Vector]]:
    for number, line in enumerate(file, first):
        fields = line.rstrip().rsplit(b" ", numbers) if numbers > 0 else []
        word = fields[0].decode(errors="replace") if fields else ""
        if word and word not in wanted:
            continue
        vector = _values(fields[1:])
        if not word or vector is None or len(vector) != numbers:
            raise DataError(f"{where}: line {number} is no word with {max(numbers, 1)} numbers; {_CURE}")
        yield word, vector


def _values(fields: list[bytes]) -> Vector | None:
    try:
        return np.array([float(field) for field in fields], dtype=np.float32)
    except ValueError:
        return None


def _binary(file: IO[bytes], where: str, wanted: set[str], words: int, numbers: int) -> Iterator[tuple[str, Vector]]:
    for number in range(words):
        letters = bytearray()
        while (letter := file.read(1)) not in (b" ", b"") and len(letters) < _LONGEST:
            letters += letter
        data = file.read(4 * numbers)
        if letter != b" " or len(data) != 4 * numbers:
            raise DataError(f"{where}: ends within word {number + 1} of {words}; fetch it again")
        word = letters.decode(errors="replace").lstrip("\n")
        if word in wanted:
            yield word, np.frombuffer(data, dtype="<f4").copy()
