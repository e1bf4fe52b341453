"""Reading pickles of networks without executing them: names and arrays come out, and nothing else can.

The published pickles of progressive growing and of StyleGAN hold `Network` objects whose state has arrays and Python source
that the official loader runs. Here every global of a pickle becomes an inert object of this file, or the pickle is refused
by the global's name. So reading calls no code from outside, and numpy only sees bytes of plain numbers.
"""

import hashlib
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from trainer.foundation.errors import TrainerError

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
"""Types of numbers that an array may have."""


class PickleError(TrainerError):
    """A file is no pickle of published networks."""


class Inert:
    """Keeps what a pickle gives it, and does nothing with it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments: tuple[Any, ...] = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class NetworkObject(Inert):
    """Stands for the official class; its `state` is a dictionary."""


class Record(dict[Any, Any]):
    """Stands for the official dictionary with attributes."""

    def __setstate__(self, state: Any) -> None:
        """Nothing: its items came before."""


class NumberType(Inert):
    """Stands for numpy.dtype: `arguments` are ("f4", 0, 1), the state has the byte order."""

    def read(self) -> "np.dtype[Any]":
        """Raises ValueError for what is no plain number."""
        name = self.arguments[0] if self.arguments else None
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "<"
        if name not in KINDS or order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of {name!r}, which is no plain number")
        return np.dtype(f"{'>' if order == '>' else '<'}{name}")


class ArrayObject(Inert):
    """Stands for an array; the state is (version, shape, type, is Fortran's, bytes)."""

    def read(self) -> Array:
        """Raises ValueError for an array that does not fit together."""
        state = self.state
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without its numbers")
        _, shape, kind, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin1")  # of Python 2
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array without a shape")
        if not isinstance(kind, NumberType) or not isinstance(data, bytes):
            raise ValueError("an array of objects")
        dtype = kind.read()
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {list(shape)} with {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*arguments: Any) -> ArrayObject:
    return ArrayObject(*arguments)


def _scalar(kind: Any, data: Any = None) -> Any:
    """A numpy number; what is no number becomes an inert object."""
    found = ArrayObject()
    found.state = (1, (), kind, False, data)
    return found


def _encode(text: Any, encoding: Any = None) -> bytes:
    """`_codecs.encode`, which pickles of protocol 2 have for bytes. Raises ValueError for another encoding."""
    if not isinstance(text, str) or encoding not in ("latin1", None):
        raise ValueError("bytes in an encoding other than latin1")
    return text.encode("latin1")


def _old_object(kind: Any, *_: Any) -> Any:
    """`copyreg._reconstructor`. Raises ValueError for a class that is not of this file."""
    if kind not in (NetworkObject, Record):
        raise ValueError("an object of an unknown class")
    return kind()


ADMITTED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("dnnlib.tflib.network", "Network"): NetworkObject,
    ("tfutil", "Network"): NetworkObject,
    ("dnnlib.util", "EasyDict"): Record,
    ("config", "EasyDict"): Record,
    ("collections", "OrderedDict"): Record,
    ("numpy", "ndarray"): ArrayObject,
    ("numpy", "dtype"): NumberType,
    **{
        (f"numpy.{core}.multiarray", name): stand_in
        for core in ("core", "_core")
        for name, stand_in in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _old_object,
    ("copy_reg", "_reconstructor"): _old_object,
    ("builtins", "object"): Inert,
    ("__builtin__", "object"): Inert,
}
"""What stands for each global. There are no others."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The inert object for a global. Raises `PickleError` by name."""
        found = ADMITTED.get((module, name))
        if found is None:
            raise PickleError(f"holds {module}.{name}, which has no place among networks and arrays")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Nothing is loaded from elsewhere."""
        raise PickleError("holds a reference to something outside the file")


@dataclass(frozen=True)
class PickledNetwork:
    """The arrays of one network by their official names, those of its components included."""

    name: str
    arguments: Mapping[str, Any]
    """What it was built with: numbers and texts."""
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Pickled:
    """A file's networks, and which file it was."""

    sha256: str
    networks: list[PickledNetwork] = field(default_factory=list)


def read_pickle(path: str) -> Pickled:
    """The networks in a published pickle. Raises `PickleError`, naming the file and what it holds."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = _Reader(file, encoding="latin1").load()
    except OSError as error:
        raise PickleError(f"{path}: cannot be read ({error.strerror}); give a published pickle") from None
    except PickleError as error:
        raise PickleError(
            f"{path}: {error}; nothing of it was executed; give a pickle as the authors published it"
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes say
        reason = " ".join(str(error).split())[:200]
        raise PickleError(f"{path}: is no pickle that can be read ({reason}); give the published file") from None
    objects = list(content) if isinstance(content, tuple | list) else [content]
    if not objects or not all(isinstance(item, NetworkObject) for item in objects):
        raise PickleError(f"{path}: holds no networks alone; give a pickle as the authors published it")
    return Pickled(digest, [_network(path, cast(NetworkObject, item)) for item in objects])


def _network(path: str, item: NetworkObject) -> PickledNetwork:
    state = item.state
    if not isinstance(state, dict) or not isinstance(state.get("variables"), list):
        old = isinstance(state, dict) and "param_values" in state
        found = "a network of the first official code (Theano)" if old else "a network without variables"
        raise PickleError(f"{path}: holds {found}; give a pickle of the TensorFlow code")
    arguments = state.get("static_kwargs")
    plain = {k: v for k, v in (arguments or {}).items() if isinstance(v, str | int | float | bool | None)}
    return PickledNetwork(str(state.get("name")), plain, dict(_arrays(path, state, depth=0)))


def _arrays(path: str, state: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Array]]:
    for entry in state.get("variables", ()):
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise PickleError(f"{path}: holds a variable without a name; give a published pickle")
        name, value = entry
        try:
            yield name, value.read() if isinstance(value, ArrayObject) else np.asarray(float(value))
        except (TypeError, ValueError) as error:
            raise PickleError(f"{path}: the variable {name} is {error}; give a published pickle") from None
    components = state.get("components")
    for part in components.values() if isinstance(components, dict) and depth == 0 else ():
        if isinstance(part, NetworkObject) and isinstance(part.state, dict):
            yield from _arrays(path, part.state, depth + 1)
