"""The keys and values of what was already read: room for `capacity` positions per sequence.

layout, one array for keys and one for values:

    (batch, kv_heads, capacity, head_dim)     sequence b holds the positions 0 .. lengths[b] - 1
                      |-- lengths[b] --|..free..|

Appending copies the new rows behind the old ones and advances the lengths; nothing else ever moves,
except the rows of sequences that change place in :meth:`KVCache.reorder` and
:meth:`KVCache.select`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastmha import _core
from fastmha._types import Float32, Float32Type, Int64, Integers, is_float32

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of a batch of sequences that grow.

    Parameters
    ----------
    batch, num_kv_heads, capacity, head_dim : int
        The cache holds up to `capacity` positions for each of `batch` sequences.
    value_head_dim : int, optional
        Width of a value; `head_dim` when not given.
    dtype : dtype, default float32
        float32 is the only one so far.

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        A size below 1.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> cache = fm.KVCache(batch=2, num_kv_heads=4, capacity=16, head_dim=8)
    >>> cache.append(np.ones((2, 4, 3, 8), np.float32), np.ones((2, 4, 3, 8), np.float32))
    >>> cache.lengths
    array([3, 3])
    >>> query = np.ones((2, 4, 1, 8), np.float32)
    >>> fm.attention_with_kvcache(query, cache, query, query).shape
    (2, 4, 1, 8)
    >>> cache
    KVCache(batch=2, num_kv_heads=4, capacity=16, head_dim=8, longest=4)
    """

    __slots__ = ("_key", "_lengths", "_storage", "_value")

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        value_head_dim: int | None = None,
        dtype: Float32Type = np.float32,
    ) -> None:
        if not is_float32(dtype):
            raise TypeError(f"KVCache: dtype must be float32, got {dtype!r}")
        value_head_dim = head_dim if value_head_dim is None else value_head_dim
        sizes = {
            "batch": batch,
            "num_kv_heads": num_kv_heads,
            "capacity": capacity,
            "head_dim": head_dim,
            "value_head_dim": value_head_dim,
        }
        for name, size in sizes.items():
            if not isinstance(size, int | np.integer) or isinstance(size, bool):
                raise TypeError(f"KVCache: {name} must be an int, got {size!r}")
            if size < 1:
                raise ValueError(f"KVCache: {name} must be at least 1, got {size}")
        # zeros, not empty: the memory comes from the kernel page by page, when it is first written
        self._storage = (
            np.zeros((batch, num_kv_heads, capacity, head_dim), np.float32),
            np.zeros((batch, num_kv_heads, capacity, value_head_dim), np.float32),
            np.zeros(batch, np.int64),
        )
        self._key, self._value, self._lengths = self._storage

    @property
    def key(self) -> Float32:
        """(batch, kv_heads, capacity, head_dim); the rows of sequence b at and past ``lengths[b]``
        mean nothing."""
        return self._key

    @property
    def value(self) -> Float32:
        """(batch, kv_heads, capacity, value_head_dim); the rows of sequence b at and past
        ``lengths[b]`` mean nothing."""
        return self._value

    @property
    def lengths(self) -> Int64:
        """(batch,): how many positions each sequence holds. A read-only view that follows the
        cache."""
        view = self._lengths.view()
        view.flags.writeable = False
        return view

    @property
    def batch(self) -> int:
        """How many sequences the cache holds now (fewer than at first after :meth:`select`)."""
        return self._key.shape[0]

    @property
    def capacity(self) -> int:
        """How many positions there is room for in each sequence."""
        return self._key.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all the room, filled or not."""
        return sum(array.nbytes for array in self._storage)

    def append(
        self,
        key: Float32,
        value: Float32,
        *,
        lengths: Integers | Sequence[int] | None = None,
    ) -> None:
        """Put new positions behind those that each sequence holds.

        Parameters
        ----------
        key, value : ndarray of float32
            (batch, kv_heads, T, head_dim) and (batch, kv_heads, T, value_head_dim).
        lengths : sequence of int, (batch,), optional
            How many of the T positions count for each sequence, the first ones; all of them when
            not given.

        Raises
        ------
        TypeError
            A dtype other than float32.
        ValueError
            Shapes that do not fit the cache, or no room left. The cache is as it was before.
        """
        _core.kv_cache_append(self._key, self._value, self._lengths, key, value, lengths)

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let slot b continue what slot ``beam_indices[b]`` holds, for all b at once, as beam
        search asks.

        Slots that stay where they are cost nothing.

        Parameters
        ----------
        beam_indices : sequence of int, (batch,)
            An index may occur several times.

        Raises
        ------
        TypeError
            Indices that are not integers.
        ValueError
            Not one index per slot, or an index outside 0 .. batch - 1. The cache is as it was
            before.

        Examples
        --------
        >>> import numpy as np, fastmha as fm
        >>> cache = fm.KVCache(2, 1, 4, 1)
        >>> row = np.array([1, 2], np.float32).reshape(2, 1, 1, 1)
        >>> cache.append(row, row)
        >>> cache.reorder([1, 1])
        >>> cache.key[:, 0, 0, 0]
        array([2., 2.], dtype=float32)
        """
        indices = self._checked("reorder", beam_indices)
        if indices.size != self.batch:
            raise ValueError(
                f"KVCache.reorder: beam_indices must name one slot for each of the {self.batch} "
                f"in use, got {indices.size}; select() keeps fewer"
            )
        self._move(indices)

    def select(self, indices: ArrayLike) -> None:
        """Keep the sequences in the slots `indices`, in that order, and forget the others:
        ``batch`` shrinks.

        Parameters
        ----------
        indices : sequence of int
            At most ``batch`` of them. :meth:`reset` gives the room of the others back.

        Raises
        ------
        TypeError
            Indices that are not integers.
        ValueError
            More indices than slots, or one outside 0 .. batch - 1. The cache is as it was before.
        """
        indices = self._checked("select", indices)
        if indices.size > self.batch:
            raise ValueError(
                f"KVCache.select: at most {self.batch} indices fit, got {indices.size}"
            )
        self._move(indices)
        kept = indices.size
        self._key, self._value = self._key[:kept], self._value[:kept]
        self._lengths = self._lengths[:kept]

    def reset(self) -> None:
        """Forget every sequence and offer all the room again, without touching it."""
        self._key, self._value, self._lengths = self._storage
        self._lengths[:] = 0

    def _checked(self, operation: str, indices: ArrayLike) -> Int64:
        array = np.asarray(indices)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise TypeError(
                f"KVCache.{operation}: indices must be integers, got {array.dtype}; "
                "cast them with .astype(np.int64)"
            )
        if array.ndim != 1:
            raise ValueError(
                f"KVCache.{operation}: indices must be one-dimensional, got {array.shape}"
            )
        outside = (array < 0) | (array >= self.batch)
        if outside.any():
            raise ValueError(
                f"KVCache.{operation}: indices must lie in 0 .. {self.batch - 1}, "
                f"got {int(array[outside][0])}"
            )
        return array.astype(np.int64)

    def _move(self, indices: Int64) -> None:
        moved = np.flatnonzero(indices != np.arange(indices.size))
        if moved.size == 0:
            return
        sources = indices[moved]
        used = int(self._lengths[sources].max())
        # All is gathered before the first row is written: a row may be a source and a target, and
        # when memory runs out nothing has changed.
        key = self._key[sources, :, :used]
        value = self._value[sources, :, :used]
        lengths = self._lengths[sources]
        self._key[moved, :, :used] = key
        self._value[moved, :, :used] = value
        self._lengths[moved] = lengths

    def __repr__(self) -> str:
        batch, heads, capacity, head_dim = self._key.shape
        value_head_dim = self._value.shape[3]
        value = f", value_head_dim={value_head_dim}" if value_head_dim != head_dim else ""
        longest = int(self._lengths.max(initial=0))
        return (
            f"KVCache(batch={batch}, num_kv_heads={heads}, capacity={capacity}, "
            f"head_dim={head_dim}{value}, longest={longest})"
        )
