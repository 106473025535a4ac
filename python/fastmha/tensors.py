"""The tensors of safetensors files, mapped into memory one by one.

    file     | length | header (JSON): name -> dtype, shape, place | data of all tensors |
    mapping                                              a tensor: |--------|

The safetensors package checks a file before anything of it is used: a header that does not fit the
data (cut off, too long, a dtype with another width) never gets further. Each tensor is a mapping of
its own, so that its pages leave memory with the last array that looks at them: while weights are
packed, no more than one tensor is there twice, and of a table with 30,000 rows only those that are
looked up are ever read.

A file must not be overwritten in place while it is in use (writing another one and renaming it is
safe, and what every tool does).
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmha._extras import require

__all__ = ["Tensors"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no such dtype; __getitem__ widens it
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
}


class Place(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    start: int  # in the file, in bytes


class Tensors(Mapping[str, NDArray[Any]]):
    """Names -> read-only arrays, mapped when they are asked for.

    Each has the dtype of the file, except bfloat16, which NumPy does not know: it comes back as
    float32, which is exact.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file, or a directory that holds ``model.safetensors`` or the index of
        several.

    Raises
    ------
    ModuleNotFoundError
        safetensors is not installed; ``pip install "fastmha[text]"`` brings it.
    FileNotFoundError
        There is no such file; when there are weights in pickles alone, the message says how to
        convert them.
    ValueError
        A file is truncated or not a safetensors file, or the index does not fit the files.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._places: dict[str, Place] = {}
        expected = _files(Path(path))
        for file, names in expected.items():
            places = _read_header(file)
            if names is not None:
                _compare(file, set(places), names)
            self._places |= places

    def __getitem__(self, name: str) -> NDArray[Any]:
        file, dtype, shape, start = self._places[name]
        if dtype not in DTYPES:
            raise TypeError(f"{file}: {name}: NumPy has no counterpart of the dtype {dtype}")
        if 0 in shape:
            stored: NDArray[Any] = np.empty(shape, DTYPES[dtype])
        else:
            mapped = np.memmap(file, DTYPES[dtype], "r", start, shape)
            # a plain array, whose views and copies are plain arrays, too
            stored = np.require(mapped.view(np.ndarray), requirements="A")
        if dtype != "BF16":
            return stored
        widened = stored.astype(np.uint32)  # bfloat16 is the upper half of a float32
        widened <<= 16
        return widened.view(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would map the tensor to find out

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; nothing of it is read."""
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as safetensors names it; nothing of it is read."""
        return self._places[name].dtype

    def file(self, name: str) -> Path:
        """The file that a tensor lies in."""
        return self._places[name].file


def _files(path: Path) -> dict[Path, set[str] | None]:
    """The files to read, each with the names that an index gives it."""
    if not path.is_dir():
        return {path: None}
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    if (path / INDEX).is_file():
        return _files_of_index(path / INDEX)
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt") for file in path.glob(pattern))
    if pickles:
        raise FileNotFoundError(
            f"{path / SINGLE} does not exist, only {', '.join(pickles)}: a pickle can run any code "
            "and is never opened here. Convert it where you trust it: "
            "AutoModel.from_pretrained(directory).save_pretrained(directory) of transformers "
            "writes safetensors"
        )
    raise FileNotFoundError(f"{path}: no {SINGLE} and no {INDEX}")


def _files_of_index(index: Path) -> dict[Path, set[str] | None]:
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"]
        pairs = [(str(name), str(shard)) for name, shard in names.items()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files: {error!r}") from error
    files: dict[Path, set[str] | None] = {}
    for name, shard in pairs:
        place = PurePosixPath(shard)
        # "\\" and ":" mean something on other systems alone, and no checkpoint has them
        if place.is_absolute() or ".." in place.parts or {"\\", ":"} & set(shard):
            raise ValueError(f"{index}: {name}: {shard!r} points outside the directory")
        if place.suffix != ".safetensors":
            raise ValueError(f"{index}: {name}: {shard!r} is not a .safetensors file")
        files.setdefault(index.parent / place, set()).add(name)  # type: ignore[union-attr]
    return files


def _compare(file: Path, found: set[str], expected: set[str]) -> None:
    """A shard holds what the index says, no less and no more."""
    problems = [
        f"{what}: {', '.join(sorted(names))}"
        for what, names in (("missing", expected - found), ("unexpected", found - expected))
        if names
    ]
    if problems:
        raise ValueError(f"{file}: not what {INDEX} says: {'; '.join(problems)}")


def _read_header(file: Path) -> dict[str, Place]:
    safetensors = require("safetensors", "text", "reading weights")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such safetensors file")
    try:
        with safetensors.safe_open(file, framework="np"):
            pass  # checks the whole header against the length of the file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: broken or not a safetensors file: {error}") from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: Place(
            file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }
