"""Padded batches and ragged ones.

    padded (batch, length, d_model)          ragged (total, d_model)
    with lengths [3, 1]                      with cu_seqlens [0, 3, 4]

        a0 a1 a2  .                              a0 a1 a2 b0
        b0  .  .  .

Blocks drop padding at the door and put zeros there again on the way out: no work is spent on it,
and whatever lies in it cannot reach a result.
"""

from collections.abc import Sequence

import numpy as np

from fastmha._types import Bool, Float32, Int64, Integers

FLOAT32 = np.dtype(np.float32)


def check_array(operation: str, name: str, x: object, width: int | None = None) -> None:
    """`x` must be an array of float32, of that width where one is given."""
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"{operation}: {name} must be a NumPy array of float32, got {type(x).__name__}; "
            f"np.asarray({name}, np.float32) makes one"
        )
    if x.dtype != FLOAT32:
        raise TypeError(
            f"{operation}: {name} must be float32, got {x.dtype}; cast it: "
            f"{name}.astype(np.float32)"
        )
    if width is not None and x.shape[-1:] != (width,):
        raise ValueError(
            f"{operation}: {name} must have {width} features on its last axis, got {x.shape}"
        )


def check_iterable(what: str, things: object, expected: str) -> None:
    """`things` must be several of a kind, which `expected` says; a string is one."""
    iterates = hasattr(things, "__iter__") or hasattr(things, "__getitem__")
    if not iterates or isinstance(things, str | bytes | bytearray):
        raise TypeError(f"{what} must be {expected}, got {type(things).__name__}")
    if getattr(things, "shape", None) == ():  # has __iter__, which fails
        raise TypeError(f"{what} must be {expected}, got one of shape ()")


def as_integers(values: object, what: str) -> Integers:
    """`values` as an array of integers."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{what} must be integers, got lists of different lengths in one another"
        ) from None
    if array.size == 0:
        return array.astype(np.int64)  # an empty list is an array of floats
    if np.issubdtype(array.dtype, np.integer):
        return array
    if isinstance(values, np.ndarray) or array.dtype.kind not in "OSU":
        raise TypeError(
            f"{what} must be integers, got {array.dtype}; cast them with .astype(np.int64)"
        )
    for value in array.ravel().tolist():  # no cast would help
        if not isinstance(value, int):
            raise TypeError(f"{what} must be integers, got {type(value).__name__}")
    raise ValueError(f"{what} must be integers of 64 bits, got {max(array.flat, key=abs)}")


def check_lengths(
    operation: str, name: str, lengths: Integers | Sequence[int], batch: int, longest: int
) -> Int64:
    """`lengths` as int64 (batch,), each in 0 .. longest."""
    array = as_integers(lengths, f"{operation}: {name}")
    if array.shape != (batch,):
        raise ValueError(f"{operation}: {name} must have shape ({batch},), got {array.shape}")
    if array.size and (array.min() < 0 or array.max() > longest):
        wrong = array[(array < 0) | (array > longest)][0]
        raise ValueError(f"{operation}: {name} must lie in 0 .. {longest}, got {int(wrong)}")
    return array.astype(np.int64)


def check_cu_seqlens(
    operation: str, name: str, cu_seqlens: Integers | Sequence[int], total: int
) -> Int64:
    """`cu_seqlens` as int64: from 0 to `total` without falling."""
    array = as_integers(cu_seqlens, f"{operation}: {name}")
    if array.ndim != 1 or array.size == 0 or array[0] != 0 or array[-1] != total:
        raise ValueError(
            f"{operation}: {name} must be one-dimensional, start at 0 and end at the number of "
            f"rows, {total}; got shape {array.shape}"
            + (f" from {array[0]} to {array[-1]}" if array.ndim == 1 and array.size else "")
        )
    bounds = array.astype(np.int64)
    if (bounds[1:] < bounds[:-1]).any():
        raise ValueError(f"{operation}: {name} must never fall, got {bounds.tolist()}")
    return bounds


def cumulative(lengths: Integers) -> Int64:
    """[3, 1] -> [0, 3, 4]."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def valid_rows(lengths: Int64, longest: int) -> Bool:
    """(batch, longest): True where a padded batch holds a row."""
    mask: Bool = np.arange(longest) < lengths[:, None]
    return mask


class Rows:
    """The rows of a batch without its padding, and the way back.

    `rows` is (total, d_model), `cu_seqlens` says which rows are whose; `restore` gives the rows of
    a result the shape that the batch came in.
    """

    __slots__ = ("_shape", "_valid", "cu_seqlens", "rows")

    def __init__(
        self,
        operation: str,
        x: Float32,
        lengths: Integers | Sequence[int] | None,
        cu_seqlens: Integers | Sequence[int] | None,
        names: tuple[str, str, str] = ("x", "key_lengths", "cu_seqlens"),
    ) -> None:
        check_array(operation, names[0], x)
        self._valid: Bool | None = None
        self._shape = x.shape
        x_name, lengths_name, cu_name = names
        if cu_seqlens is not None:
            if x.ndim != 2:
                raise ValueError(
                    f"{operation}: {x_name} with {cu_name} must be ragged (total, d_model), "
                    f"got {x.shape}"
                )
            if lengths is not None:
                raise ValueError(f"{operation}: give {lengths_name} or {cu_name}, not both")
            self.rows = x
            self.cu_seqlens = check_cu_seqlens(operation, cu_name, cu_seqlens, len(x))
        elif x.ndim == 2:
            if lengths is not None:
                raise ValueError(
                    f"{operation}: {lengths_name} is for a padded {x_name} "
                    f"(batch, length, d_model), got {x.shape}"
                )
            self.rows, self.cu_seqlens = x, np.array([0, len(x)])
        elif x.ndim == 3:
            batch, longest, d_model = x.shape
            if lengths is None:
                self.rows = x.reshape(batch * longest, d_model)
                self.cu_seqlens = np.arange(batch + 1) * longest
            else:
                lengths = check_lengths(operation, lengths_name, lengths, batch, longest)
                self._valid = valid_rows(lengths, longest)
                self.rows, self.cu_seqlens = x[self._valid], cumulative(lengths)
        else:
            raise ValueError(
                f"{operation}: {x_name} must be (batch, length, d_model), or ragged "
                f"(total, d_model) with {cu_name}; got {x.shape}"
            )

    def restore(self, rows: Float32) -> Float32:
        """(total, width) -> the shape of x, zeros where padding was."""
        shape = (*self._shape[:-1], rows.shape[-1])
        if self._valid is None:
            return rows.reshape(shape)
        padded = np.zeros(shape, np.float32)
        padded[self._valid] = rows
        return padded
