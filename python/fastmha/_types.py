"""The array types that signatures speak of, and the dtype that arrays have."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Bool: TypeAlias = NDArray[np.bool_]
Int64: TypeAlias = NDArray[np.int64]
Integers: TypeAlias = NDArray[np.integer[Any]]
Float32Type: TypeAlias = type[np.float32] | np.dtype[np.float32] | str


def is_float32(dtype: object) -> bool:
    """Whether `dtype` names float32, in any of NumPy's ways: the name, the type, the dtype."""
    try:
        return np.dtype(dtype) == np.float32  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, SyntaxError):  # no dtype at all; NumPy parses text with commas
        return False
