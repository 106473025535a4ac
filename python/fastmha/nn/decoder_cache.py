"""What a decoder remembers while it generates.

Per hypothesis the keys and values of its own positions, which grow; per source those of the
encoder's output, which are computed once: the hypotheses of a source attend to them together.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastmha._types import Float32, Int64, Integers
from fastmha.cache import KVCache
from fastmha.nn.module import check_size
from fastmha.nn.ragged import cumulative

__all__ = ["DecoderBlockCache", "DecoderCache"]

Lengths = Integers | Sequence[int]
Memory = tuple[Float32, Float32, Int64]


class DecoderBlockCache:
    """The cache of one decoder block; made by ``DecoderBlock.new_cache``.

    Attributes
    ----------
    self_attn : KVCache
        Keys and values of each hypothesis: the beams of source n are the slots n * beam_size and
        following.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> block = fm.DecoderBlock(64, 4, 128, seed=0)
    >>> cache = block.new_cache(batch=1, capacity=10, beam_size=2)
    >>> block(np.ones((2, 1, 64), np.float32), np.ones((1, 7, 64), np.float32), cache=cache).shape
    (2, 1, 64)
    >>> cache.self_attn
    KVCache(batch=2, num_kv_heads=4, capacity=10, head_dim=16, longest=1)
    """

    __slots__ = ("_bounds", "_memory", "beam_size", "self_attn")

    def __init__(
        self, batch: int, num_kv_heads: int, capacity: int, head_dim: int, beam_size: int
    ) -> None:
        check_size("new_cache", batch=batch, capacity=capacity, beam_size=beam_size)
        self.beam_size = beam_size
        self._memory: Memory | None = None
        self._bounds = np.arange(batch + 1)
        self.self_attn = KVCache(batch * beam_size, num_kv_heads, capacity, head_dim)

    @property
    def batch(self) -> int:
        """How many sources are still here."""
        return self.self_attn.batch // self.beam_size

    @property
    def has_memory(self) -> bool:
        return self._memory is not None

    @property
    def memory(self) -> Memory:
        """Keys and values (Tm, kv_heads, head_dim) of all sources, and the bounds of each."""
        if self._memory is None:
            raise ValueError("DecoderBlock: the first call with a cache needs memory")
        return self._memory

    def set_memory(self, key: Float32, value: Float32, cu_seqlens: Int64) -> None:
        """Keep the keys and values of the encoder's output."""
        if len(cu_seqlens) - 1 != self.batch:
            raise ValueError(
                f"DecoderBlock: the cache is for {self.batch} sources, "
                f"memory holds {len(cu_seqlens) - 1}"
            )
        self._memory = key, value, cu_seqlens

    def check_memory(self, lengths: Lengths | None, cu_seqlens: Lengths | None) -> None:
        """What later calls say about the memory must be what the cache holds, as they do not read
        it."""
        if lengths is None and cu_seqlens is None:
            return
        bounds = self.memory[2]
        for name, given, held in (
            ("memory_lengths", lengths, np.diff(bounds)),
            ("memory_cu_seqlens", cu_seqlens, bounds),
        ):
            if given is not None and not np.array_equal(given, held):
                raise ValueError(
                    f"DecoderBlock: {name} must be {held.tolist()}, as the cache has held its "
                    f"memory since the first call, or be left out; got {np.asarray(given).tolist()}"
                )

    def snapshot(self) -> tuple[Int64, Memory | None]:
        """What :meth:`restore` needs to undo calls of the block; costs no copy of keys or
        values."""
        return self.self_attn._lengths.copy(), self._memory

    def restore(self, snapshot: tuple[Int64, Memory | None]) -> None:
        """Forget what calls added since the snapshot."""
        self.self_attn._lengths[:], self._memory = snapshot

    def query_bounds(self, length: int) -> Int64:
        """The cumulative query rows of each source, when its hypotheses hold `length` each."""
        return self._bounds * (self.beam_size * length)

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let each hypothesis continue another one of the same source; see
        :meth:`fastmha.KVCache.reorder`."""
        self.self_attn.reorder(beam_indices)

    def select(self, sources: Int64) -> None:
        """Keep the sources at the places `sources`, which must rise, and forget the others."""
        if (np.diff(sources) <= 0).any():
            raise ValueError(f"DecoderCache.select: sources must rise, got {sources.tolist()}")
        count = self.batch
        beams = np.arange(self.beam_size)
        self.self_attn.select((sources[:, None] * self.beam_size + beams).ravel())
        self._bounds = self._bounds[: len(sources) + 1]
        if self._memory is not None:
            # Close the gaps: a call with queries for all of its sources, one each, takes the kernel
            # that splits the keys, whoever has left. Copying what stays costs less than one block.
            keys, values, bounds = self._memory
            stays = np.zeros(count, bool)
            stays[sources] = True
            lengths = np.diff(bounds)
            rows = np.repeat(stays, lengths)
            self._memory = keys[rows], values[rows], cumulative(lengths[sources])


class DecoderCache:
    """The caches of all blocks of a decoder; made by ``Decoder.new_cache``.

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
    >>> cache.lengths
    array([2, 2])
    """

    __slots__ = ("blocks",)

    def __init__(self, blocks: Sequence[DecoderBlockCache]) -> None:
        self.blocks = list(blocks)

    @property
    def lengths(self) -> Int64:
        """(hypotheses,): how many positions each one holds."""
        return self.blocks[0].self_attn.lengths

    @property
    def capacity(self) -> int:
        return self.blocks[0].self_attn.capacity

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let hypothesis b continue hypothesis ``beam_indices[b]``, of the same source, for all b
        at once."""
        for block in self.blocks:
            block.reorder(beam_indices)

    def select(self, sources: ArrayLike) -> None:
        """Keep the sources at the places `sources` among those still here, in rising order, and
        forget the others."""
        places = np.asarray(sources, np.int64)
        for block in self.blocks:
            block.select(places)
