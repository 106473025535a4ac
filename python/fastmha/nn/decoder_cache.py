"""What a decoder remembers while it generates.

Per hypothesis the keys and values of its own positions, which grow; per source those of the
encoder's output, which are computed once: the hypotheses of a source attend to them together.

    source        0          2          3            those present, in the order in which they came
    hypotheses    0    1     2    3     4    5       beam_size each, next to each other
    slots         4    1     0    5     2    3       where the next keys and values of each will lie
    memory        |0 0 0 0|. . .|2 2|3 3 3 . . . .   rows of all sources; gaps where some have left

A hypothesis that continues another one takes over the slots of its positions, and goes on in its
own: nothing is copied, as each position of a slot is written once. Sources that leave leave gaps,
which are closed when room is needed.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastmha import _core
from fastmha._types import Float32, Int64, Integers
from fastmha.nn.layers import FusedNorm
from fastmha.nn.module import check_size
from fastmha.nn.ragged import as_integers, cumulative

__all__ = ["DecoderBlockCache", "DecoderCache"]

Lengths = Integers | Sequence[int]
Snapshot = tuple[
    Int64, Int64, Int64 | None, Int64 | None, Int64, int, list[tuple[Float32, Float32]]
]


class BlockStore:
    """The keys and values of one block: (slots, kv_heads, capacity, head_dim) of hypotheses and
    (1, kv_heads, rows, head_dim) of the memory."""

    __slots__ = ("key", "memory_key", "memory_value", "value")

    def __init__(self, key: Float32, value: Float32) -> None:
        self.key, self.value = key, value
        self.memory_key = np.zeros((1, key.shape[1], 0, key.shape[3]), np.float32)
        self.memory_value = np.zeros((1, key.shape[1], 0, key.shape[3]), np.float32)


def keys_and_values(shapes: Sequence[tuple[int, ...]]) -> list[tuple[Float32, Float32]]:
    """Arrays for the keys and values of each block, in one piece: NumPy asks for large pages from
    4 MB on, and small ones would cost each head that is read a walk through the page tables."""
    # On pages that are mapped already where there are some: new ones are zeroed when they are first
    # written to, 30 of 460 ms for 16 sources of 32 tokens with 4 beams.
    sizes = [math.prod(shape) for shape in shapes for _ in "kv"]
    storage = _core.empty([sum(sizes)])
    parts = iter(np.split(storage, np.cumsum(sizes)[:-1]))
    return [(next(parts).reshape(shape), next(parts).reshape(shape)) for shape in shapes]


class DecoderCache:
    """The keys and values of all blocks of a decoder; made by ``Decoder.new_cache``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> decoder = fm.Decoder([fm.DecoderBlock(64, 4, 128, seed=n) for n in range(2)])
    >>> memory = np.ones((3, 7, 64), np.float32)
    >>> cache = decoder.new_cache(batch=3, capacity=10)
    >>> decoder(np.ones((3, 1, 64), np.float32), memory, cache=cache).shape
    (3, 1, 64)
    >>> cache.select([0, 2])  # the source in the middle is finished
    >>> decoder(np.ones((2, 1, 64), np.float32), cache=cache).shape
    (2, 1, 64)
    >>> decoder.join(cache, np.ones((5, 64), np.float32), [0, 5])  # another one takes its place
    >>> decoder(np.ones((3, 1, 64), np.float32), cache=cache).shape
    (3, 1, 64)
    >>> cache.lengths
    array([3, 3, 1])
    """

    __slots__ = (
        "_end",
        "_lengths",
        "_memory_lengths",
        "_memory_starts",
        "_position_slots",
        "_slots",
        "batch",
        "beam_size",
        "blocks",
        "capacity",
    )

    def __init__(
        self,
        batch: int,
        capacity: int,
        beam_size: int,
        empty: bool,
        heads: Sequence[tuple[int, int]],
    ) -> None:
        """`heads`: how many heads of keys each block has, and their width."""
        check_size("new_cache", batch=batch, capacity=capacity, beam_size=beam_size)
        self.batch, self.capacity, self.beam_size = batch, capacity, beam_size
        slots = batch * beam_size
        shapes = [(slots, kv_heads, capacity, head_dim) for kv_heads, head_dim in heads]
        needed = 2 * 4 * sum(math.prod(shape) for shape in shapes)
        if needed > sys.maxsize:
            raise ValueError(f"new_cache: keys and values of {needed} bytes fit no memory")
        self.blocks = [BlockStore(key, value) for key, value in keys_and_values(shapes)]
        present = 0 if empty else batch * beam_size
        self._slots = np.arange(present)
        self._lengths = np.zeros(present, np.int64)
        # (hypotheses, capacity): of the positions that each holds, and behind them its own; None
        # while all are its own
        self._position_slots: Int64 | None = None
        # of the sources; None until the first call brings their memory
        self._memory_starts: Int64 | None = np.zeros(0, np.int64) if empty else None
        self._memory_lengths = np.zeros(0, np.int64)
        self._end = 0  # rows of the memory up to the last one in use

    @property
    def sources(self) -> int:
        """How many sources are here now."""
        return len(self._slots) // self.beam_size

    @property
    def lengths(self) -> Int64:
        """(hypotheses,): how many positions each one holds. Read-only."""
        view = self._lengths.view()
        view.flags.writeable = False
        return view

    @property
    def has_memory(self) -> bool:
        """Whether the memory of the sources has come."""
        return self._memory_starts is not None

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let hypothesis b continue hypothesis ``beam_indices[b]``, of the same source, for all b
        at once, as beam search asks.

        No keys and values move, unless the hypotheses of a source hold different numbers of
        positions: then those of all sources are copied.

        Parameters
        ----------
        beam_indices : sequence of int, (hypotheses,)

        Raises
        ------
        TypeError
            Indices that are not integers.
        ValueError
            Not one index per hypothesis, or one of another source. The cache is as it was before.
        """
        parents = self._indices("reorder: beam_indices", beam_indices)
        places = np.arange(len(self._slots))
        if parents.size != places.size:
            raise ValueError(
                "DecoderCache.reorder: beam_indices must name one hypothesis for each of the "
                f"{places.size} here, got {parents.size}"
            )
        if np.array_equal(parents, places):
            return
        strangers = np.flatnonzero(parents // self.beam_size != places // self.beam_size)
        if strangers.size:
            raise ValueError(
                "DecoderCache.reorder: a hypothesis can only continue one of its own source, got "
                f"{int(parents[strangers[0]])} for hypothesis {int(strangers[0])}"
            )
        lengths = self._lengths[parents]
        held, own = self._position_slots, self._slots[:, None]
        if held is None:
            held = np.repeat(own, self.capacity, axis=1)
        if not np.array_equal(lengths, self._lengths):
            # One would write where another one reads.
            self._collect(held[parents], lengths)
            self._lengths, self._position_slots = lengths, None
            return
        columns = np.arange(self.capacity)
        self._position_slots = np.where(columns < lengths[:, None], held[parents], own)

    def _collect(self, held: Int64, lengths: Int64) -> None:
        """Copy the positions that lie in the slots `held` to the own slot of each hypothesis, in
        new arrays: what interrupts it changes nothing."""
        columns = np.arange(lengths.max(initial=0))
        collected = keys_and_values([block.key.shape for block in self.blocks])
        for block, (key, value) in zip(self.blocks, collected, strict=True):
            for old, new in ((block.key, key), (block.value, value)):
                rows = old[held[:, columns], :, columns]  # (hypotheses, columns, kv_heads, dim)
                new[self._slots, :, : columns.size] = rows.transpose(0, 2, 1, 3)
        for block, (key, value) in zip(self.blocks, collected, strict=True):
            block.key, block.value = key, value

    def select(self, sources: ArrayLike) -> None:
        """Keep the sources at the places `sources` among those here, in rising order, and forget
        the others. Nothing moves.

        Raises
        ------
        TypeError
            Places that are not integers.
        ValueError
            Places that do not rise, or one outside 0 .. sources - 1. The cache is as it was before.
        """
        places = self._indices("select: sources", sources)
        if (places[1:] <= places[:-1]).any():
            raise ValueError(f"DecoderCache.select: sources must rise, got {places.tolist()}")
        rows = (places[:, None] * self.beam_size + np.arange(self.beam_size)).ravel()
        slots, lengths = self._slots[rows], self._lengths[rows]
        if self._memory_starts is not None:
            memory = self._memory_starts[places], self._memory_lengths[places]
            self._memory_starts, self._memory_lengths = memory
        self._slots, self._lengths = slots, lengths
        if self._position_slots is not None:
            self._position_slots = self._position_slots[rows]

    def _indices(self, what: str, indices: ArrayLike) -> Int64:
        array = as_integers(indices, f"DecoderCache.{what}")
        count = len(self._slots) if what.startswith("reorder") else self.sources
        if array.ndim != 1:
            raise ValueError(f"DecoderCache.{what} must be one-dimensional, got {array.shape}")
        if array.size and (array.min() < 0 or array.max() >= count):
            wrong = array[(array < 0) | (array >= count)][0]
            raise ValueError(f"DecoderCache.{what} must lie in 0 .. {count - 1}, got {int(wrong)}")
        return array.astype(np.int64)

    # What the decoder does with it.

    def snapshot(self) -> Snapshot:
        """What :meth:`restore` needs to undo a join or a step; costs no copy of keys or values."""
        # of these arrays only _lengths is ever written to
        return (
            self._slots,
            self._lengths.copy(),
            self._position_slots,
            self._memory_starts,
            self._memory_lengths,
            self._end,
            [(block.memory_key, block.memory_value) for block in self.blocks],
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Forget what was added since the snapshot."""
        (
            self._slots,
            self._lengths,
            self._position_slots,
            self._memory_starts,
            self._memory_lengths,
            self._end,
            memories,
        ) = snapshot
        for block, (key, value) in zip(self.blocks, memories, strict=True):
            block.memory_key, block.memory_value = key, value

    def check_join(self, operation: str, sources: int) -> None:
        """Whether there is room for so many sources."""
        if self._memory_starts is None:
            if sources == self.sources:
                return
            raise ValueError(
                f"{operation}: the cache is for {self.sources} sources, memory holds {sources}"
            )
        if self.sources + sources > self.batch:
            raise ValueError(
                f"{operation}: the cache has room for {self.batch} sources, {self.sources} are "
                f"here and {sources} more were to join; make it with a larger batch"
            )

    def join(self, memory: Sequence[tuple[Float32, Float32]], cu_seqlens: Int64) -> None:
        """Take in sources: the keys and values (Tm, kv_heads, head_dim) of their memory in each
        block."""
        lengths = np.diff(cu_seqlens)
        self._make_room(int(cu_seqlens[-1]))
        for block, (key, value) in zip(self.blocks, memory, strict=True):
            end = np.array([self._end])
            key, value = key.transpose(1, 0, 2)[None], value.transpose(1, 0, 2)[None]
            _core.kv_cache_append(block.memory_key, block.memory_value, end, key, value, None)
        starts = self._end + cu_seqlens[:-1]
        self._end += int(cu_seqlens[-1])
        if self._memory_starts is None:
            self._memory_starts, self._memory_lengths = starts, lengths
            return
        free = np.ones(self.batch * self.beam_size, bool)
        free[self._slots] = False
        new = np.flatnonzero(free)[: len(lengths) * self.beam_size]
        self._slots = np.concatenate([self._slots, new])
        if self._position_slots is not None:
            own = np.repeat(new[:, None], self.capacity, axis=1)
            self._position_slots = np.concatenate([self._position_slots, own])
        self._lengths = np.concatenate([self._lengths, np.zeros(len(new), np.int64)])
        self._memory_starts = np.concatenate([self._memory_starts, starts])
        self._memory_lengths = np.concatenate([self._memory_lengths, lengths])

    def _make_room(self, rows: int) -> None:
        """Room for so many more rows of the memory: by closing gaps when they are half of it, or
        else in new arrays twice as long."""
        room = self.blocks[0].memory_key.shape[2]
        if self._end + rows <= room:
            return
        starts = self._memory_starts if self._memory_starts is not None else np.zeros(0, np.int64)
        bounds = cumulative(self._memory_lengths)
        live = int(bounds[-1])
        shift = np.repeat(starts - bounds[:-1], self._memory_lengths)
        kept = np.arange(live) + shift
        room = room if 2 * (live + rows) <= room else max(2 * room, live + rows)
        shapes = [
            (1, block.memory_key.shape[1], room, block.memory_key.shape[3]) for block in self.blocks
        ]
        moved = keys_and_values(shapes)
        for block, (key, value) in zip(self.blocks, moved, strict=True):
            key[:, :, :live] = block.memory_key[:, :, kept]
            value[:, :, :live] = block.memory_value[:, :, kept]
        for block, (key, value) in zip(self.blocks, moved, strict=True):
            block.memory_key, block.memory_value = key, value
        if self._memory_starts is not None:
            self._memory_starts = bounds[:-1]
        self._end = live

    def check_memory(
        self, operation: str, lengths: Lengths | None, cu_seqlens: Lengths | None
    ) -> None:
        """What later calls say about the memory must be what the cache holds, as they do not read
        it."""
        if lengths is None and cu_seqlens is None:
            return
        for name, given, held in (
            ("memory_lengths", lengths, self._memory_lengths),
            ("memory_cu_seqlens", cu_seqlens, cumulative(self._memory_lengths)),
        ):
            if given is not None and not np.array_equal(given, held):
                raise ValueError(
                    f"{operation}: {name} must be {held.tolist()}, as the cache has held its "
                    f"memory since the first call, or be left out; got {np.asarray(given).tolist()}"
                )

    def step(
        self,
        blocks: list[tuple[object, ...]],
        norm: FusedNorm | None,
        x: Float32,
        new_lengths: Int64 | None,
        relative_bias: Float32 | None,
    ) -> Float32:
        """The next positions of every hypothesis, (hypotheses, length, d_model), through blocks
        that are given as their arguments to the core; they are counted when all is done."""
        assert self._memory_starts is not None
        stores = [
            (*block, store.key, store.value, store.memory_key[0], store.memory_value[0])
            for block, store in zip(blocks, self.blocks, strict=True)
        ]
        out = _core.decoder_step(
            stores,
            norm,
            x,
            self.beam_size,
            self._slots,
            self._lengths,
            new_lengths,
            self._position_slots,
            self._memory_starts,
            self._memory_lengths,
            relative_bias,
        )
        self._lengths += x.shape[1] if new_lengths is None else new_lengths
        return out

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.blocks)} blocks, sources={self.sources} of "
            f"{self.batch}, beam_size={self.beam_size}, capacity={self.capacity})"
        )


class DecoderBlockCache(DecoderCache):
    """The same for one decoder block; made by ``DecoderBlock.new_cache``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> block = fm.DecoderBlock(64, 4, 128, seed=0)
    >>> cache = block.new_cache(batch=1, capacity=10, beam_size=2)
    >>> block(np.ones((2, 1, 64), np.float32), np.ones((1, 7, 64), np.float32), cache=cache).shape
    (2, 1, 64)
    >>> cache
    DecoderBlockCache(1 blocks, sources=1 of 1, beam_size=2, capacity=10)
    """

    __slots__ = ()
