"""Encoder and decoder blocks, and stacks of them.

Each block reads like its figure in "Attention Is All You Need" (https://arxiv.org/abs/1706.03762):
attention, add & norm, feed-forward, add & norm. A sub-layer with its addition and its norm is one
operation of the core.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastmha import _core
from fastmha._types import Float32, Int64, Integers
from fastmha.nn import torch_modules
from fastmha.nn.attention import MultiHeadAttention
from fastmha.nn.decoder_cache import DecoderBlockCache, DecoderCache
from fastmha.nn.layers import NORMS, LayerNorm, Linear, Norm, fused, norm_of
from fastmha.nn.module import UNSET, Module, Seed, check_size
from fastmha.nn.ragged import Rows, check_array, check_lengths

__all__ = ["Decoder", "DecoderBlock", "Encoder", "EncoderBlock", "FeedForward"]

Lengths = Integers | Sequence[int]
# Up to so many rows go through all blocks of an encoder or a decoder in one call of the core, in
# which all threads share every step. all-MiniLM-L6-v2 with two threads, block by block and so: 8
# tokens 0.91 and 0.64 ms, 32 tokens 1.97 and 1.84, 64 tokens 3.62 and 3.47, 128 tokens 6.90 and
# 6.84. A decoder's block of 512/8/2048 and one of 768/12/3072, the memory as long: 64 rows 1.16 and
# 1.16 ms, 2.83 and 2.72; 128 rows 2.43 and 2.43, 5.59 and 5.39.
FEW_ROWS = 64
# And of a decoder's memory. A block of 512/8/2048, sub-layer by sub-layer and so, in us: 5 rows and
# as many of the memory 138 and 123, 5 and 64 271 and 261, 32 and 128 820 and 797, 64 and 128 1333
# and 1342, 16 and 256 901 and 912, 32 and 256 1192 and 1215; 4 sequences of 8 and 64 1106 and 1148.
FEW_MEMORY_ROWS = 128
MEMORY_NAMES = ("memory", "memory_lengths", "memory_cu_seqlens")


class FeedForward(Module):
    """Two linear maps with an activation between them, and a gate if wanted.

    ``linear2(activation(linear1(x))) + residual``, or with `gated`
    ``linear2(activation(linear1(x)) * gate(x)) + residual``

    Parameters
    ----------
    d_model, d_ff : int
        Width of the rows, and between the two maps.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, default "relu"
    bias : bool, default True
    gated : bool, default False
        A third map, ``gate``, of linear1's shape (GLU: https://arxiv.org/abs/2002.05202).
    seed : int or numpy.random.Generator, optional
        Where the weights are drawn from until they are loaded.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.FeedForward(8, 32, activation="gelu", seed=0)(np.ones((3, 8), np.float32)).shape
    (3, 8)
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "relu",
        bias: bool = True,
        gated: bool = False,
        seed: Seed = None,
    ) -> None:
        self.linear1 = Linear.of_size(d_model, d_ff, bias=bias, activation=activation, seed=UNSET)
        self.linear2 = Linear.of_size(d_ff, d_model, bias=bias, seed=UNSET)
        self.gate = Linear.of_size(d_model, d_ff, bias=bias, seed=UNSET) if gated else None
        self._initialise(seed)

    def __call__(
        self,
        x: Float32,
        *,
        residual: Float32 | None = None,
        norm_before: Norm | None = None,
        norm_after: Norm | None = None,
        out: Float32 | None = None,
    ) -> Float32:
        """x (..., d_model) -> (..., d_model).

        `norm_before` is applied to x, `norm_after` to the result with its residual; `out`, where
        the result goes, may be x.
        """
        return _core.feed_forward(
            self.linear1._packed,
            self.linear2._packed,
            None if self.gate is None else self.gate._packed,
            x,
            residual,
            fused(norm_before),
            fused(norm_after),
            out,
        )

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "linear1", self.linear1
        yield "linear2", self.linear2
        if self.gate is not None:
            yield "gate", self.gate


class _Block(Module):
    """What encoder and decoder blocks share: sizes, settings, self-attention, feed-forward."""

    self_attn: MultiHeadAttention
    _norms: tuple[str, ...]
    _attentions: tuple[str, ...] = ("self_attn",)

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        activation: str = "relu",
        norm_first: bool = False,
        norm_eps: float = 1e-5,
        bias: bool = True,
        norm: str = "layer_norm",
        gated: bool = False,
        head_dim: int | None = None,
        scale: float | None = None,
        seed: Seed = None,
    ) -> None:
        name = type(self).__name__
        check_size(name, d_model=d_model, num_heads=num_heads, d_ff=d_ff)
        if norm not in NORMS:
            raise ValueError(f"{name}: norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.d_model, self.num_heads, self.d_ff = d_model, num_heads, d_ff
        self.activation, self.norm_first = activation, bool(norm_first)
        for attention in self._attentions:
            mha = MultiHeadAttention(
                d_model, num_heads, bias=bias, head_dim=head_dim, scale=scale, seed=UNSET
            )
            setattr(self, attention, mha)
        self.feed_forward = FeedForward(
            d_model, d_ff, activation=activation, bias=bias, gated=gated, seed=UNSET
        )
        for place in self._norms:
            setattr(self, place, norm_of(norm, d_model, norm_eps, bias=bias))
        self._pack()
        self._initialise(seed)

    def _pack(self) -> None:
        """How the projections of attention are put together, where it is not the usual way."""

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "self_attn", self.self_attn
        yield "", self.feed_forward  # linear1 and linear2 are the block's own in torch
        for name in self._norms:
            yield name, getattr(self, name)

    def _add_and_norm(
        self, sublayer: Any, x: Float32, *inputs: Float32, norm: Norm, **options: Any
    ) -> Any:
        """``norm(x + sublayer(x))``, or with norm_first ``x + sublayer(norm(x))``.

        The feed-forward works in place (``out=x``) on what the attention before it returned: a new
        array of 10 MB costs 2% of such a block, in page faults.
        """
        if self.norm_first:
            return sublayer(x, *inputs, residual=x, norm_before=norm, **options)
        return sublayer(x, *inputs, residual=x, norm_after=norm, **options)

    def _take_torch(self, module: Any) -> None:
        for name in self._norms:  # torch lets each differ
            getattr(self, name).eps = getattr(module, name).eps
        self.load_state_dict(module.state_dict())

    def __repr__(self) -> str:
        order = ", norm_first=True" if self.norm_first else ""
        return (
            f"{type(self).__name__}({self.d_model}, num_heads={self.num_heads}, d_ff={self.d_ff}, "
            f"activation={self.activation!r}{order})"
        )


def _check_cache(operation: str, cache: object, kind: type, cu_seqlens: object) -> None:
    if not isinstance(cache, kind):
        raise TypeError(
            f"{operation}: cache must be a {kind.__name__}, got {type(cache).__name__}; "
            "new_cache() makes one"
        )
    if cu_seqlens is not None:
        raise ValueError(
            f"{operation}: cu_seqlens does not go with a cache; pass x as (hypotheses, length, "
            "d_model), with key_lengths if some have fewer new positions"
        )


class EncoderBlock(_Block):
    """Self-attention, add & norm, feed-forward, add & norm.

    ``norm_first=False`` (as in the paper)::

        x = norm1(x + self_attn(x))
        x = norm2(x + feed_forward(x))

    ``norm_first=True``::

        x = x + self_attn(norm1(x))
        x = x + feed_forward(norm2(x))

    Parameters
    ----------
    d_model, num_heads, d_ff : int
        Width of a row, heads of self-attention, width inside the feed-forward.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, default "relu"
    norm_first : bool, default False
    norm_eps : float, default 1e-5
    bias : bool, default True
        False leaves every bias out, of the norms too.
    norm : {"layer_norm", "rms_norm"}, default "layer_norm"
    gated : bool, default False
        A gate in the feed-forward; see :class:`FeedForward`.
    head_dim : int, optional
        Width of a head; ``d_model // num_heads`` when not given.
    scale : float, optional
        Of attention's scores; ``1 / sqrt(head_dim)`` when not given.
    seed : int or numpy.random.Generator, optional
        Where the weights are drawn from until they are loaded.

    Raises
    ------
    ValueError
        A size below 1, heads that do not divide d_model, an unknown activation or norm.

    Notes
    -----
    Parameters have the names and shapes of torch.nn.TransformerEncoderLayer; a gate's are
    ``gate.weight`` and ``gate.bias``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> block = fm.EncoderBlock(64, 4, 256, activation="gelu", seed=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64), dtype=np.float32)
    >>> padded = block(x, key_lengths=[5, 3])
    >>> ragged = block(np.concatenate([x[0], x[1, :3]]), cu_seqlens=[0, 5, 8])
    >>> bool(np.array_equal(padded[1, :3], ragged[5:])), bool(np.all(padded[1, 3:] == 0))
    (True, True)
    """

    norm1: Norm
    norm2: Norm
    _norms = ("norm1", "norm2")

    @classmethod
    def from_torch(cls, module: Any) -> "EncoderBlock":
        """The same as `module`, a torch.nn.TransformerEncoderLayer: its weights and all its
        settings.

        Inputs are always batch first here, whatever ``batch_first`` of its attention says.

        Raises
        ------
        TypeError
            Not such a module, or not float32.
        ValueError
            A setting that has no counterpart (an unknown activation, dropout in training mode).
        """
        self = cls(**torch_modules.encoder_block_settings(module), seed=UNSET)
        self._take_torch(module)
        return self

    def __call__(
        self,
        x: Float32,
        *,
        key_lengths: Lengths | None = None,
        cu_seqlens: Lengths | None = None,
        relative_bias: Float32 | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Run the block.

        Parameters
        ----------
        x : ndarray of float32, (B, L, d_model)
            Or ragged (T, d_model) with `cu_seqlens`; (L, d_model) without is one sequence.
        key_lengths : sequence of int, (B,), optional
            Rows at or past the length are padding: nothing reads them and they come back as zeros.
        cu_seqlens : sequence of int, (N + 1,), optional
            Cumulative lengths of a ragged batch.
        relative_bias : ndarray of float32, (num_heads, 2 R + 1), optional
            Added to the scores by distance, as for :func:`fastmha.scaled_dot_product_attention`.
        return_weights : bool, default False
            Also return the probabilities of self-attention, (B, num_heads, L, L); ragged or with
            lengths: a list with one (num_heads, L_n, L_n) per sequence.

        Returns
        -------
        out : ndarray of float32, of x's shape
        weights
            Only with `return_weights`.

        Raises
        ------
        TypeError
            An array of another dtype than float32.
        ValueError
            Shapes, lengths or cumulative lengths that do not fit.
        """
        check_array("EncoderBlock", "x", x, self.d_model)
        if x.ndim == 3 and key_lengths is None and cu_seqlens is None:
            return self._run(x, None, relative_bias, return_weights)
        batch = Rows("EncoderBlock", x, key_lengths, cu_seqlens)
        result = self._run(batch.rows, batch.cu_seqlens, relative_bias, return_weights)
        if return_weights:
            return batch.restore(result[0]), result[1]
        return batch.restore(result)

    def _run(
        self,
        x: Float32,
        cu_seqlens: Int64 | None,
        relative_bias: Float32 | None,
        return_weights: bool,
    ) -> Any:
        if not return_weights and _are_few(x, cu_seqlens):
            blocks = [self._core_arguments()]
            return _core.encoder_blocks(blocks, None, x, cu_seqlens, relative_bias)
        return self._forward(x, cu_seqlens, relative_bias, return_weights)

    def _core_arguments(self) -> tuple[Any, ...]:
        """The block for a call of the core that runs several."""
        attention, feed = self.self_attn, self.feed_forward
        return (
            attention._in_proj.part("qkv")._packed,
            attention.out_proj._packed,
            feed.linear1._packed,
            feed.linear2._packed,
            None if feed.gate is None else feed.gate._packed,
            fused(self.norm1),
            fused(self.norm2),
            self.norm_first,
            attention.num_heads,
            attention.num_kv_heads,
            attention.scale,
        )

    def _forward(
        self,
        x: Float32,
        cu_seqlens: Lengths | None,
        relative_bias: Float32 | None,
        return_weights: bool,
    ) -> Any:
        x = self._add_and_norm(
            self.self_attn,
            x,
            norm=self.norm1,
            cu_seqlens=cu_seqlens,
            relative_bias=relative_bias,
            return_weights=return_weights,
        )
        x, *weights = x if return_weights else (x,)
        out = self._add_and_norm(self.feed_forward, x, norm=self.norm2, out=x)
        return (out, *weights) if return_weights else out


def _are_few(x: Float32, cu_seqlens: Int64 | None) -> bool:
    """Whether these rows go through encoder blocks in one call of the core: one sequence must have
    two or more (single queries round otherwise)."""
    rows = len(x) if cu_seqlens is not None else x.shape[0] * x.shape[1]
    if not 2 <= rows <= FEW_ROWS:
        return False
    longest = x.shape[1] if cu_seqlens is None else int(np.diff(cu_seqlens).max())
    return longest >= 2


class DecoderBlock(_Block):
    """Masked self-attention, attention over the encoder's output, feed-forward.

    Each with add & norm.

    ``norm_first=False`` (as in the paper)::

        x = norm1(x + self_attn(x))
        x = norm2(x + multihead_attn(x, memory))
        x = norm3(x + feed_forward(x))

    ``norm_first=True``::

        x = x + self_attn(norm1(x))
        x = x + multihead_attn(norm2(x), memory)
        x = x + feed_forward(norm3(x))

    Self-attention is always causal. Parameters as for :class:`EncoderBlock`; their names and shapes
    are those of torch.nn.TransformerDecoderLayer.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> block = fm.DecoderBlock(64, 4, 256, seed=0)
    >>> x, memory = np.random.default_rng(0).standard_normal((2, 2, 5, 64), dtype=np.float32)
    >>> at_once = block(x, memory)
    >>> cache = block.new_cache(batch=2, capacity=5)
    >>> steps = [block(x[:, i:i+1], memory, cache=cache) for i in range(5)]
    >>> bool(np.allclose(np.concatenate(steps, axis=1), at_once, atol=1e-5))
    True
    """

    norm1: Norm
    norm2: Norm
    norm3: Norm
    multihead_attn: MultiHeadAttention
    _norms = ("norm1", "norm2", "norm3")
    _attentions = ("self_attn", "multihead_attn")

    def _pack(self) -> None:
        self.multihead_attn._use_for_cross_attention()

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield from super()._children()
        yield "multihead_attn", self.multihead_attn

    @classmethod
    def from_torch(cls, module: Any) -> "DecoderBlock":
        """The same as `module`, a torch.nn.TransformerDecoderLayer; see
        :meth:`EncoderBlock.from_torch`."""
        self = cls(**torch_modules.decoder_block_settings(module), seed=UNSET)
        self._take_torch(module)
        return self

    def new_cache(
        self, batch: int, capacity: int, *, beam_size: int = 1, empty: bool = False
    ) -> DecoderBlockCache:
        """A cache for this block alone; see :meth:`Decoder.new_cache`."""
        return DecoderBlockCache(batch, capacity, beam_size, empty, [self._cached_heads()])

    def _cached_heads(self) -> tuple[int, int]:
        return self.self_attn.num_kv_heads, self.self_attn.head_dim

    def __call__(
        self,
        x: Float32,
        memory: Float32 | None = None,
        *,
        key_lengths: Lengths | None = None,
        memory_lengths: Lengths | None = None,
        cu_seqlens: Lengths | None = None,
        memory_cu_seqlens: Lengths | None = None,
        cache: DecoderBlockCache | None = None,
        relative_bias: Float32 | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Run the block.

        Parameters
        ----------
        x : ndarray of float32, (B, L, d_model)
            Or ragged (T, d_model) with `cu_seqlens`; (L, d_model) without is one sequence. With a
            cache: the next L positions of each hypothesis, (B * beam_size, L, d_model), the beams
            of a source next to each other.
        memory : ndarray of float32, (B, S, d_model)
            What the encoder returned, or ragged (Tm, d_model) with `memory_cu_seqlens`. With a
            cache it is read by the first call only, which keeps its keys and values: later calls
            may leave it out, and its lengths must be those that the cache holds.
        key_lengths, memory_lengths : sequence of int, (B,), optional
            Rows at or past the length are padding: nothing reads them, and in x they come back as
            zeros. With a cache, `key_lengths` says how many of the L new positions count.
        cu_seqlens, memory_cu_seqlens : sequence of int, (N + 1,), optional
            Cumulative lengths of ragged batches; `cu_seqlens` not with a cache.
        cache : DecoderBlockCache, optional
            From :meth:`new_cache`: what came before, per hypothesis, and the memory's keys and
            values, per source.
        relative_bias : ndarray of float32, (num_heads, 2 R + 1), optional
            Added to the scores of self-attention by distance, as for
            :func:`fastmha.scaled_dot_product_attention`.
        return_weights : bool, default False
            Also return the probabilities of self-attention and of attention over the memory. Not
            with a cache.

        Returns
        -------
        out : ndarray of float32, of x's shape
        self_weights, memory_weights
            Only with `return_weights`: (B, num_heads, L, L) and (B, num_heads, L, S); ragged or
            with lengths: lists with one per sequence.

        Raises
        ------
        TypeError
            An array of another dtype than float32, or another kind of cache.
        ValueError
            Shapes or lengths that do not fit, no memory, no room left in the cache. The cache is as
            it was before.
        """
        check_array("DecoderBlock", "x", x, self.d_model)
        if cache is not None:
            _check_cache("DecoderBlock", cache, DecoderBlockCache, cu_seqlens)
            return _step(
                "DecoderBlock",
                [self],
                None,
                cache,
                x,
                memory,
                key_lengths=key_lengths,
                memory_lengths=memory_lengths,
                memory_cu_seqlens=memory_cu_seqlens,
                relative_bias=relative_bias,
                return_weights=return_weights,
            )
        x, memory, bounds, memory_bounds, batch = _over_memory(
            "DecoderBlock", x, memory, key_lengths, memory_lengths, cu_seqlens, memory_cu_seqlens
        )
        few = not return_weights and _are_few_over_memory(x, memory, bounds, memory_bounds)
        if few and self._attends_alike():
            blocks = [self._core_arguments("q", "kv")]
            result = _core.decoder_blocks(
                blocks, None, x, memory, bounds, memory_bounds, relative_bias
            )
        else:
            result = self._forward(x, memory, bounds, memory_bounds, relative_bias, return_weights)
        if batch is None:
            return result
        if return_weights:
            return batch.restore(result[0]), *result[1:]
        return batch.restore(result)

    def _forward(
        self,
        x: Float32,
        memory: Float32,
        cu_seqlens: Lengths | None,
        memory_cu_seqlens: Lengths | None,
        relative_bias: Float32 | None,
        return_weights: bool,
    ) -> Any:
        x = self._add_and_norm(
            self.self_attn,
            x,
            norm=self.norm1,
            is_causal=True,
            cu_seqlens=cu_seqlens,
            relative_bias=relative_bias,
            return_weights=return_weights,
        )
        x, *self_weights = x if return_weights else (x,)
        x = self._add_and_norm(
            self.multihead_attn,
            x,
            memory,
            norm=self.norm2,
            cu_seqlens=cu_seqlens,
            cu_seqlens_k=memory_cu_seqlens,
            return_weights=return_weights,
        )
        x, *memory_weights = x if return_weights else (x,)
        out = self._add_and_norm(self.feed_forward, x, norm=self.norm3, out=x)
        return (out, *self_weights, *memory_weights) if return_weights else out

    def join(
        self, cache: DecoderBlockCache, memory: Float32, cu_seqlens: Lengths | None = None
    ) -> None:
        """Let sources join those in a cache; see :meth:`Decoder.join`."""
        _check_cache("DecoderBlock.join", cache, DecoderBlockCache, None)
        _join("DecoderBlock.join", [self], cache, memory, cu_seqlens)

    def _attends_alike(self) -> bool:
        """Whether both attentions have the same heads and scale, as calls of the core for whole
        blocks need it: one of them may have been replaced."""
        own, over = self.self_attn, self.multihead_attn
        return (own.num_heads, own.num_kv_heads, own.head_dim, own.scale) == (
            over.num_heads,
            over.num_kv_heads,
            over.head_dim,
            over.scale,
        )

    def _core_arguments(self, *over: str) -> tuple[Any, ...]:
        """The block for a call of the core that runs several, with these projections of the
        attention over the memory."""
        own, over_memory, feed = self.self_attn, self.multihead_attn, self.feed_forward
        return (
            own._in_proj.part("qkv")._packed,
            own.out_proj._packed,
            *(over_memory._in_proj.part(letters)._packed for letters in over),
            over_memory.out_proj._packed,
            feed.linear1._packed,
            feed.linear2._packed,
            None if feed.gate is None else feed.gate._packed,
            fused(self.norm1),
            fused(self.norm2),
            fused(self.norm3),
            self.norm_first,
            own.num_heads,
            own.num_kv_heads,
            own.scale,
        )


def _over_memory(
    operation: str,
    x: Float32,
    memory: Float32 | None,
    key_lengths: Lengths | None,
    memory_lengths: Lengths | None,
    cu_seqlens: Lengths | None,
    memory_cu_seqlens: Lengths | None,
) -> tuple[Float32, Float32, Int64 | None, Int64 | None, Rows | None]:
    """x and memory as the core takes them, both (B, L, d_model), or both ragged with their
    cumulative lengths and with what restores x's form."""
    if memory is None:
        raise ValueError(f"{operation}: memory is needed, what the encoder returned")
    check_array(operation, "memory", memory, x.shape[-1])
    lengths = (key_lengths, memory_lengths, cu_seqlens, memory_cu_seqlens)
    if x.ndim == 3 and memory.ndim == 3 and all(given is None for given in lengths):
        _check_as_many(operation, len(x), len(memory))
        return x, memory, None, None, None
    rows = Rows(operation, x, key_lengths, cu_seqlens)
    source = Rows(operation, memory, memory_lengths, memory_cu_seqlens, MEMORY_NAMES)
    _check_as_many(operation, len(rows.cu_seqlens) - 1, len(source.cu_seqlens) - 1)
    return rows.rows, source.rows, rows.cu_seqlens, source.cu_seqlens, rows


def _check_as_many(operation: str, sequences: int, sources: int) -> None:
    if sequences != sources:
        raise ValueError(f"{operation}: x holds {sequences} sequences, memory {sources}")


def _are_few_over_memory(
    x: Float32, memory: Float32, cu_seqlens: Int64 | None, memory_cu_seqlens: Int64 | None
) -> bool:
    """The same for decoder blocks, whose memory must have few rows, too."""
    if not _are_few(x, cu_seqlens):
        return False
    rows = len(memory) if memory_cu_seqlens is not None else len(memory) * memory.shape[1]
    return bool(1 <= rows <= FEW_MEMORY_ROWS)


def _check_blocks(operation: str, blocks: Sequence[DecoderBlock], cache: DecoderCache) -> None:
    if len(cache.blocks) != len(blocks):
        raise ValueError(
            f"{operation}: the cache is for {len(cache.blocks)} blocks, "
            f"this decoder has {len(blocks)}"
        )
    for index, block in enumerate(blocks):
        if not block._attends_alike():
            raise ValueError(
                f"{operation}: with a cache self_attn and multihead_attn must have the same heads "
                f"and scale, those of block {index} differ; call without a cache"
            )


def _step(
    operation: str,
    blocks: Sequence[DecoderBlock],
    norm: Norm | None,
    cache: DecoderCache,
    x: Float32,
    memory: Float32 | None,
    *,
    key_lengths: Lengths | None,
    memory_lengths: Lengths | None,
    memory_cu_seqlens: Lengths | None,
    relative_bias: Float32 | None,
    return_weights: bool,
) -> Float32:
    """The next positions of every hypothesis, (hypotheses, length, d_model), through all blocks and
    the norm, or through none of them."""
    if return_weights:
        raise ValueError(f"{operation}: return_weights does not go with a cache")
    _check_blocks(operation, blocks, cache)
    hypotheses, d_model = len(cache.lengths), blocks[0].d_model
    if x.ndim != 3 or len(x) != hypotheses or x.shape[2] != d_model:
        raise ValueError(
            f"{operation}: with this cache x must be ({hypotheses}, length, {d_model}), "
            f"got {x.shape}"
        )
    new_lengths = None
    if key_lengths is not None:
        new_lengths = check_lengths(operation, "key_lengths", key_lengths, *x.shape[:2])
    before = cache.snapshot()
    try:
        if cache.has_memory:
            cache.check_memory(operation, memory_lengths, memory_cu_seqlens)
        elif memory is None:
            raise ValueError(f"{operation}: the first call with a cache needs memory")
        else:
            _join(operation, blocks, cache, memory, memory_cu_seqlens, memory_lengths)
        arguments = [block._core_arguments("q") for block in blocks]
        return cache.step(arguments, fused(norm), x, new_lengths, relative_bias)
    except BaseException:  # interrupted, too
        cache.restore(before)
        raise


def _join(
    operation: str,
    blocks: Sequence[DecoderBlock],
    cache: DecoderCache,
    memory: Float32,
    cu_seqlens: Lengths | None,
    lengths: Lengths | None = None,
) -> None:
    """The keys and values that every block makes of `memory`, to the cache, or nothing."""
    _check_blocks(operation, blocks, cache)
    check_array(operation, "memory", memory, blocks[0].d_model)
    source = Rows(operation, memory, lengths, cu_seqlens, MEMORY_NAMES)
    cache.check_join(operation, len(source.cu_seqlens) - 1)
    before = cache.snapshot()
    try:
        projected = [block.multihead_attn.project_kv(source.rows) for block in blocks]
        cache.join(projected, source.cu_seqlens)
    except BaseException:  # interrupted, too
        cache.restore(before)
        raise


class _Stack(Module):
    """Blocks one after the other, then a norm."""

    layers: Sequence[_Block]

    def __init__(self, blocks: Sequence[Any], norm: Norm | None = None) -> None:
        self.layers = list(blocks)
        self.norm = norm
        name = type(self).__name__
        if not self.layers:
            raise ValueError(f"{name}: at least one block is needed")
        widths = {block.d_model for block in self.layers} | ({norm.weight.size} if norm else set())
        if len(widths) > 1:
            raise ValueError(f"{name}: blocks and norm must have one width, got {sorted(widths)}")
        self.d_model = self.layers[0].d_model

    def _one_by_one(self, x: Float32, *arguments: Any) -> tuple[Float32, list[Any]]:
        """x through every block and the norm, with the weights of each block, or none of them;
        the last of the blocks' arguments says whether they give weights."""
        weights: list[Any] = []
        block: Any  # the kinds take other arguments
        for block in self.layers:
            result = block._forward(x, *arguments)
            if arguments[-1]:
                x, *own = result
                weights.append(own[0] if len(own) == 1 else tuple(own))
            else:
                x = result
        return (x if self.norm is None else self.norm(x)), weights

    def _children(self) -> Iterator[tuple[str, Module]]:
        for index, block in enumerate(self.layers):
            yield f"layers.{index}", block
        if self.norm is not None:
            yield "norm", self.norm

    def __repr__(self) -> str:
        norm = "" if self.norm is None else f", norm={self.norm!r}"
        return f"{type(self).__name__}({len(self.layers)} x {self.layers[0]!r}{norm})"


def _norm_from_torch(module: Any) -> LayerNorm | None:
    if module.norm is None:
        return None
    norm = LayerNorm(**torch_modules.norm_settings(module.norm))
    norm.load_state_dict(module.norm.state_dict())
    return norm


class Encoder(_Stack):
    """Encoder blocks one after the other, then an optional norm.

    Parameters
    ----------
    blocks : sequence of EncoderBlock
    norm : LayerNorm or RMSNorm, optional
        Applied to the last block's result.

    Raises
    ------
    ValueError
        No block, or widths that differ.

    Notes
    -----
    Parameters are named as in torch.nn.TransformerEncoder: ``layers.0.self_attn.in_proj_weight``,
    ..., ``norm.weight``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> blocks = [fm.EncoderBlock(64, 4, 128, seed=n) for n in range(2)]
    >>> encoder = fm.Encoder(blocks, fm.LayerNorm(64))
    >>> encoder(np.ones((7, 64), np.float32), cu_seqlens=[0, 5, 7]).shape
    (7, 64)
    """

    layers: list[EncoderBlock]

    @classmethod
    def from_torch(cls, module: Any) -> "Encoder":
        """The same as `module`, a torch.nn.TransformerEncoder; see
        :meth:`EncoderBlock.from_torch`."""
        torch_modules.check_stack(module, "TransformerEncoder")
        return cls(
            [EncoderBlock.from_torch(layer) for layer in module.layers], _norm_from_torch(module)
        )

    def __call__(
        self,
        x: Float32,
        *,
        key_lengths: Lengths | None = None,
        cu_seqlens: Lengths | None = None,
        relative_bias: Float32 | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Run all blocks; arguments as for :meth:`EncoderBlock.__call__`.

        With `return_weights` also returns a list with the weights of each block.
        """
        check_array("Encoder", "x", x, self.d_model)
        batch = None
        bounds: Int64 | None = None
        if x.ndim != 3 or key_lengths is not None or cu_seqlens is not None:
            batch = Rows("Encoder", x, key_lengths, cu_seqlens)
            x, bounds = batch.rows, batch.cu_seqlens
        weights: list[Any] = []
        if not return_weights and _are_few(x, bounds):
            blocks = [block._core_arguments() for block in self.layers]
            x = _core.encoder_blocks(blocks, fused(self.norm), x, bounds, relative_bias)
        else:
            x, weights = self._one_by_one(x, bounds, relative_bias, return_weights)
        if batch is not None:
            x = batch.restore(x)
        return (x, weights) if return_weights else x


class Decoder(_Stack):
    """Decoder blocks one after the other, then an optional norm.

    Parameters
    ----------
    blocks : sequence of DecoderBlock
    norm : LayerNorm or RMSNorm, optional
        Applied to the last block's result.

    Raises
    ------
    ValueError
        No block, or widths that differ.

    Notes
    -----
    Parameters are named as in torch.nn.TransformerDecoder: ``layers.0.self_attn.in_proj_weight``,
    ..., ``norm.weight``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> decoder = fm.Decoder([fm.DecoderBlock(64, 4, 128, seed=n) for n in range(2)])
    >>> x, memory = np.ones((3, 4, 64), np.float32), np.ones((3, 9, 64), np.float32)
    >>> decoder(x, memory, memory_lengths=[9, 2, 5]).shape
    (3, 4, 64)
    """

    layers: list[DecoderBlock]

    @classmethod
    def from_torch(cls, module: Any) -> "Decoder":
        """The same as `module`, a torch.nn.TransformerDecoder; see
        :meth:`EncoderBlock.from_torch`."""
        torch_modules.check_stack(module, "TransformerDecoder")
        return cls(
            [DecoderBlock.from_torch(layer) for layer in module.layers], _norm_from_torch(module)
        )

    def new_cache(
        self, batch: int, capacity: int, *, beam_size: int = 1, empty: bool = False
    ) -> DecoderCache:
        """A cache for `batch` sources with `beam_size` hypotheses of up to `capacity` positions
        each.

        The first call with it brings the memory of all sources. With `empty` no source is here at
        first: :meth:`join` brings them, at most `batch` at a time, and ``cache.select`` lets them
        go.
        """
        heads = [block._cached_heads() for block in self.layers]
        return DecoderCache(batch, capacity, beam_size, empty, heads)

    def join(self, cache: DecoderCache, memory: Float32, cu_seqlens: Lengths | None = None) -> None:
        """Let sources join those in a cache, behind them, with hypotheses that hold nothing yet.

        Hypotheses may stand at different positions; the bits of a source do not depend on who else
        is there.

        Parameters
        ----------
        cache : DecoderCache
            From :meth:`new_cache`.
        memory : ndarray of float32, (Tm, d_model)
            What the encoder returned for the new sources, end to end, or (B, S, d_model) without
            `cu_seqlens`.
        cu_seqlens : sequence of int, (N + 1,), optional
            Cumulative lengths of the new sources.

        Raises
        ------
        TypeError
            No DecoderCache, or an array of another dtype than float32.
        ValueError
            Shapes that do not fit, or no room for so many sources. The cache is as it was before.
        """
        _check_cache("Decoder.join", cache, DecoderCache, None)
        _join("Decoder.join", self.layers, cache, memory, cu_seqlens)

    def __call__(
        self,
        x: Float32,
        memory: Float32 | None = None,
        *,
        key_lengths: Lengths | None = None,
        memory_lengths: Lengths | None = None,
        cu_seqlens: Lengths | None = None,
        memory_cu_seqlens: Lengths | None = None,
        cache: DecoderCache | None = None,
        relative_bias: Float32 | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Run all blocks; arguments as for :meth:`DecoderBlock.__call__`.

        With `return_weights` also returns a list with (self_weights, memory_weights) of each block.
        """
        check_array("Decoder", "x", x, self.d_model)
        if cache is not None:
            _check_cache("Decoder", cache, DecoderCache, cu_seqlens)
            return _step(
                "Decoder",
                self.layers,
                self.norm,
                cache,
                x,
                memory,
                key_lengths=key_lengths,
                memory_lengths=memory_lengths,
                memory_cu_seqlens=memory_cu_seqlens,
                relative_bias=relative_bias,
                return_weights=return_weights,
            )
        x, memory, bounds, memory_bounds, batch = _over_memory(
            "Decoder", x, memory, key_lengths, memory_lengths, cu_seqlens, memory_cu_seqlens
        )
        weights: list[Any] = []
        few = not return_weights and _are_few_over_memory(x, memory, bounds, memory_bounds)
        if few and all(block._attends_alike() for block in self.layers):
            blocks = [block._core_arguments("q", "kv") for block in self.layers]
            x = _core.decoder_blocks(
                blocks, fused(self.norm), x, memory, bounds, memory_bounds, relative_bias
            )
        else:
            x, weights = self._one_by_one(
                x, memory, bounds, memory_bounds, relative_bias, return_weights
            )
        if batch is not None:
            x = batch.restore(x)
        return (x, weights) if return_weights else x
