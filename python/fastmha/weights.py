"""Weights between files, torch tensors and float32 arrays.

Everything computes in float32. float16 and bfloat16 are widened, which is exact; float64 and
integers are refused, because narrowing them would change the weights behind their owner's back.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmha._extras import require
from fastmha._types import Float32

__all__ = ["as_float32", "read_safetensors", "write_safetensors"]

INDEX = "model.safetensors.index.json"


def as_float32(array: Any, name: str) -> Float32:
    """`array` (NumPy or torch) as float32; float16 and bfloat16 are widened, anything else is
    refused.

    Raises
    ------
    TypeError
        The dtype cannot become float32 without loss; the message shows the cast.
    """
    if hasattr(array, "detach"):  # a torch tensor, without importing torch
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":  # NumPy has no such dtype
            array = array.float()
        array = array.numpy()
    array = np.asarray(array)
    if array.dtype == np.float32:
        plain: Float32 = np.asarray(array, np.float32)  # native-endian
        return plain
    if array.dtype == np.float16:
        widened: Float32 = array.astype(np.float32)
        return widened
    raise TypeError(
        f"{name}: expected float32 (or float16, bfloat16), got {array.dtype}; "
        "cast it with .astype(np.float32), a torch module with .float()"
    )


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read every tensor of a safetensors file, or of all files of a checkpoint directory.

    Each keeps its dtype (checkpoints hold integers too), except bfloat16, which NumPy does not
    know: it comes back as float32. The file is mapped into memory, not read.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file, or a directory that holds ``model.safetensors`` or the index of
        several.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ModuleNotFoundError
        safetensors is not installed; ``pip install "fastmha[text]"`` brings it.
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated or not a safetensors file.
    """
    files = _files(Path(path))
    tensors: dict[str, NDArray[Any]] = {}
    for file in files:
        tensors.update(_read_file(file))
    return tensors


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index}: not an index of safetensors files: {error!r}") from error
        return [path / str(name) for name in names]
    return [path / "model.safetensors"]


def _read_file(file: Path) -> dict[str, NDArray[Any]]:
    safetensors = require("safetensors", "text", "reading weights")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such safetensors file")
    try:
        with safetensors.safe_open(file, framework="np") as tensors:
            dtypes = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
            native = {name: tensors.get_tensor(name) for name in dtypes if dtypes[name] != "BF16"}
        if len(native) == len(dtypes):
            return native
        raw = dict(safetensors.deserialize(file.read_bytes()))
        return {n: native[n] if n in native else _from_bfloat16(raw[n]) for n in dtypes}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: broken or not a safetensors file: {error}") from error


def _from_bfloat16(tensor: Mapping[str, Any]) -> Float32:
    """bfloat16 is the upper half of a float32."""
    upper = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16
    return upper.view(np.float32).reshape(tensor["shape"])


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Float32]) -> None:
    """Write `tensors` to a safetensors file; an existing file is replaced only once the new one is
    complete.

    Raises
    ------
    ModuleNotFoundError
        safetensors is not installed; ``pip install "fastmha[text]"`` brings it.
    OSError
        The file cannot be written.
    """
    safetensors_numpy = require("safetensors.numpy", "text", "writing weights")
    target = Path(path)
    # Bytes through Python's own file rather than save_file, whose error for a missing folder is not
    # an OSError.
    data = safetensors_numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    )
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
