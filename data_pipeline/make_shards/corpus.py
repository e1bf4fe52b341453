"""`python -m data_pipeline.make_shards.corpus CORPUS OUTPUT`: word vectors from text files, by counting.

Words that stand near each other on a line are counted, the counts become positive pointwise mutual information, and its
truncated singular value decomposition gives the vectors U S^(1/2) (Levy et al. 2015, sections 2 and 3: contexts smoothed
with 0.75, p = 1/2). OUTPUT is word2vec's text form. The same text gives the same vectors on the same machine.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

_WORD = re.compile(r"[a-z]{2,}")
_SMOOTHING = 0.75
Matrix = Any
"""A sparse matrix of scipy, which is imported where it is needed."""
_BATCH = 1 << 20  # words whose neighbours are counted at once


def lines_of(corpus: Path) -> Iterator[list[str]]:
    """The words of each line of a text file, or of all files of a folder in the order of their names: two letters or
    more, in small letters. Raises DataError."""
    paths = sorted(path for path in corpus.rglob("*") if path.is_file()) if corpus.is_dir() else [corpus]
    if not paths or not paths[0].exists():
        raise DataError(f"CORPUS: {corpus} holds no file; give a text file, or a folder of them")
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if words := _WORD.findall(line.lower()):
                    yield words


def vocabulary_of(lines: Iterator[list[str]], least: int) -> list[str]:
    """Words that come `least` times or more, the most frequent first. Raises DataError."""
    counts = Counter(word for line in lines for word in line)
    words = sorted((word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word))
    if len(words) < 3:
        raise DataError(f"CORPUS: has {len(words)} words that come {least} times or more; give more text")
    return words


def cooccurrences(lines: Iterator[list[str]], words: Sequence[str], window: int) -> Matrix:
    """How often each pair of words stands at most `window` words apart on a line, nearer ones counting 1 / distance: a
    symmetric scipy.sparse matrix [V, V]."""
    from scipy import sparse

    number = {word: place for place, word in enumerate(words)}
    total = sparse.csr_matrix((len(words), len(words)), dtype=np.float64)
    batch: list[int] = []
    for line in lines:
        batch += [number[word] for word in line if word in number] + [-1] * window  # no pair spans two lines
        if len(batch) >= _BATCH:
            total, batch = total + _counted(np.array(batch), len(words), window), []
    return total + _counted(np.array(batch, dtype=np.int64), len(words), window)


def _counted(places: npt.NDArray[np.int64], size: int, window: int) -> Matrix:
    from scipy import sparse

    found = sparse.csr_matrix((size, size), dtype=np.float64)
    for distance in range(1, window + 1):
        left, right = places[:-distance], places[distance:]
        both = (left >= 0) & (right >= 0)
        pairs = sparse.coo_matrix(
            (np.full(int(both.sum()), 1.0 / distance), (left[both], right[both])), shape=(size, size)
        )
        found = found + pairs.tocsr() + pairs.T.tocsr()
    return found


def ppmi(counts: Matrix) -> Matrix:
    """max(0, log P(w, c) / (P(w) P(c)^0.75)), the smoothed P(c) normalised, of a sparse matrix of counts."""
    pairs = counts.tocoo()
    words = np.asarray(counts.sum(1)).ravel()
    contexts = np.asarray(counts.sum(0)).ravel() ** _SMOOTHING
    pairs.data = np.log(pairs.data * contexts.sum() / (words[pairs.row] * contexts[pairs.col]))
    pairs.data = np.maximum(pairs.data, 0.0)
    result = pairs.tocsr()
    result.eliminate_zeros()
    return result


def vectors_of(matrix: Matrix, length: int) -> npt.NDArray[np.float32]:
    """U S^(1/2) of the largest `length` singular values, the largest first: float32 [V, length]. The sign is such that a
    column's largest entry is positive. Raises DataError."""
    from scipy.sparse.linalg import svds

    if length >= min(matrix.shape):
        raise DataError(
            f"--length: is {length}, but there are {min(matrix.shape)} words; give fewer numbers or more text"
        )
    u, s, _ = svds(matrix, k=length, v0=np.ones(min(matrix.shape)))
    u, s = u[:, ::-1], s[::-1]
    largest = np.abs(u).argmax(0)
    signs = np.sign(u[largest, np.arange(length)])
    vectors: npt.NDArray[np.float32] = (u * signs * np.sqrt(s)).astype(np.float32)
    return vectors


def main(arguments: Sequence[str] | None = None) -> int:
    """0 = written, 1 = an error of the text."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.make_shards.corpus", description=__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="a text file, or a folder of text files")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the file of vectors")
    parser.add_argument("--length", type=int, default=200, help="numbers of a vector (200)")
    parser.add_argument("--window", type=int, default=5, help="words to each side that are counted (5)")
    parser.add_argument("--minimum-count", type=int, default=5, help="how often a word must come (5)")
    given = parser.parse_args(arguments)
    try:
        for name in ("length", "window", "minimum_count"):
            if getattr(given, name) < 1:
                raise DataError(f"--{name.replace('_', '-')}: is {getattr(given, name)}; give 1 or more")
        words = vocabulary_of(lines_of(given.corpus), given.minimum_count)
        counts = cooccurrences(lines_of(given.corpus), words, given.window)
        vectors = vectors_of(ppmi(counts), given.length)
        with given.output.open("w", encoding="utf-8") as file:
            file.write(f"{len(words)} {given.length}\n")
            for word, vector in zip(words, vectors.tolist(), strict=True):
                file.write(f"{word} {' '.join(f'{value:.6g}' for value in vector)}\n")
    except (DataError, ImportError, OSError) as error:
        hint = "; install menagerie[evaluation]" if isinstance(error, ImportError) else ""
        print(f"{error}{hint}", file=sys.stderr)
        return 1
    print(f"{given.output}: {len(words)} words, {given.length} numbers each")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
