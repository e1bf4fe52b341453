"""Files of weights, local or at an fsspec URL, read whole; never downloaded from anywhere the user did not name."""

import hashlib
import io
import json
import pickle
from typing import NamedTuple

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.foundation.errors import SettingError


class Weights(NamedTuple):
    """A state dict, the file's own metadata (safetensors only) and the sha256 of its bytes."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str


def read_weights(url: str, setting: str, cure: str) -> Weights:
    """The weights at a path or an fsspec URL: safetensors, or what torch.save wrote (tensors only, no code is run).

    A dictionary that holds the state dict under `state_dict` or `model` is opened; the prefix `module.` of wrapped
    networks is dropped. Raises `SettingError`: `setting` is what the user gave, `cure` what to do about a missing file.
    """
    try:
        with fsspec.open(url, "rb") as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise SettingError(f"{setting}: there is no file {url}; {cure}") from None
    except (OSError, ValueError, ImportError) as error:
        raise SettingError(f"{setting}: cannot read {url} ({error}); {cure}") from None
    try:
        if _is_safetensors(data):
            tensors, metadata = load(data), _metadata(data)
        else:
            tensors, metadata = _unwrap(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)), {}
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"{setting}: {url} is not a file of weights ({reason}); {cure}") from None
    return Weights(tensors, metadata, hashlib.sha256(data).hexdigest())


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{"


def _metadata(data: bytes) -> dict[str, str]:
    """`__metadata__` of a safetensors file: 8 bytes of length, little-endian, then the JSON header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def _unwrap(document: object) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict) or not all(isinstance(value, Tensor) for value in document.values()):
        raise ValueError("it holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in document.items()}
