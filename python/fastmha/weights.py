"""Weights between files, torch tensors and float32 arrays.

Everything computes in float32. float16 and bfloat16 are widened, which is exact; float64 and
integers are refused, because narrowing them would change the weights behind their owner's back.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmha._extras import require
from fastmha._types import Float32
from fastmha.tensors import Tensors

__all__ = ["as_float32", "read_safetensors", "write_safetensors"]


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
    """Every tensor of a safetensors file, or of all files of a checkpoint directory.

    Each is read-only and keeps its dtype (checkpoints hold integers too), except bfloat16, which
    NumPy does not know: it comes back as float32. The files are mapped into memory, not read.

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
    return dict(Tensors(path))


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
