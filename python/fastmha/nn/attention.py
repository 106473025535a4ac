"""Multi-head attention: project, split into heads, attend, join, project.

The heads are split by views. The rows of a packed projection hold

    in_proj(x)  (..., (heads + 2 kv_heads) * head_dim)  =  | q of head 0 | ... | k of head 0 | ... |
    v of head 0 | ... |

so that (batch, length, all heads, head_dim) is a reshape, and the attention kernel reads q, k and v
where they lie. A call without mask, cache and weights is one operation of the core, whose threads
take slices of the batch through all of it in their caches; the others go step by step.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from fastmha import _core
from fastmha._types import Bool, Float32, Integers
from fastmha.cache import KVCache
from fastmha.functional import (
    attention_with_kvcache,
    scaled_dot_product_attention,
    varlen_attention,
)
from fastmha.nn import torch_modules
from fastmha.nn.layers import Linear, Norm, fused
from fastmha.nn.module import UNSET, Module, Seed, Shape, check_size, uniform
from fastmha.nn.ragged import check_array, check_lengths, valid_rows

__all__ = ["MultiHeadAttention"]

Lengths = Integers | Sequence[int]


class InProjection:
    """The rows of in_proj_weight, packed by how they are used together.

    Self-attention wants one product for queries, keys and values ("qkv"), cross-attention one for
    the queries ("q") and one for what comes from the encoder ("kv"). A part is packed from the
    others when it is first asked for.
    """

    def __init__(self, rows: dict[str, int], widths: dict[str, int]) -> None:
        self.rows = rows  # of q, k and v
        self.widths = widths
        self.one_input = len(set(widths.values())) == 1
        self._packed: dict[str, Linear] = {}

    def part(self, letters: str) -> Linear:
        linear = self._packed.get(letters)
        if linear is None:
            weights, biases = zip(*(self.rows_of(letter) for letter in letters), strict=True)
            bias = None if biases[0] is None else np.concatenate(biases)
            linear = self._packed[letters] = Linear(np.concatenate(weights), bias)
        return linear

    def rows_of(self, letter: str) -> tuple[Float32, Float32 | None]:
        for letters, linear in self._packed.items():
            if letter in letters:
                start = sum(self.rows[other] for other in letters[: letters.index(letter)])
                rows = slice(start, start + self.rows[letter])
                bias = linear.bias
                return linear.weight[rows], None if bias is None else bias[rows]
        raise RuntimeError("MultiHeadAttention: no weights yet; load_state_dict() brings them")

    def set(
        self, weights: dict[str, Float32], bias: Float32 | None, parts: tuple[str, ...]
    ) -> None:
        biases: dict[str, Float32] = {}
        if bias is not None:
            ends = np.cumsum([self.rows[letter] for letter in "qkv"])
            biases = dict(zip("qkv", np.split(bias, ends[:-1]), strict=True))
        packed = {}
        for letters in parts:
            weight = np.concatenate([weights[letter] for letter in letters])
            own = np.concatenate([biases[letter] for letter in letters]) if biases else None
            packed[letters] = Linear(weight, own)
        self._packed = packed

    def state(self) -> tuple[dict[str, Float32], Float32 | None]:
        """The weight of each letter, and the bias of all."""
        rows = {letter: self.rows_of(letter) for letter in "qkv"}
        weights = {letter: weight for letter, (weight, _) in rows.items()}
        biases = [bias for _, bias in rows.values() if bias is not None]
        return weights, np.concatenate(biases) if biases else None


class MultiHeadAttention(Module):
    r"""Attention of `num_heads` heads, each with its own projections.

    .. math:: \mathrm{out} = \mathrm{concat}(\mathrm{head}_1, \ldots) W_O + b_O, \quad
              \mathrm{head}_h = \mathrm{attention}(x_q W_Q^h, x_k W_K^h, x_v W_V^h)

    Parameters
    ----------
    embed_dim : int
        Width of the queries and of the result; without `head_dim` a multiple of `num_heads`.
    num_heads : int
    num_kv_heads : int, optional
        Heads of keys and values, a divisor of `num_heads` (GQA, MQA); `num_heads` when not given.
    kdim, vdim : int, optional
        Width of the inputs that keys and values are made from; `embed_dim` when not given.
    bias : bool, default True
    head_dim : int, optional
        Width of a head; ``embed_dim // num_heads`` when not given.
    scale : float, optional
        Of the scores; ``1 / sqrt(head_dim)`` when not given.
    seed : int or numpy.random.Generator, optional
        Where the weights are drawn from, as torch.nn.MultiheadAttention draws them, until they are
        loaded.

    Raises
    ------
    ValueError
        Sizes that do not divide each other.

    Notes
    -----
    Parameters are torch's: ``in_proj_weight`` ((num_heads + 2 num_kv_heads) * head_dim, embed_dim),
    ``in_proj_bias``, ``out_proj.weight``, ``out_proj.bias``; when `kdim` or `vdim` differ,
    ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` replace ``in_proj_weight``.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", section 3.2.2, https://arxiv.org/abs/1706.03762.
    GQA: Ainslie et al., https://arxiv.org/abs/2305.13245.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> mha = fm.MultiHeadAttention(embed_dim=64, num_heads=4, seed=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64), dtype=np.float32)
    >>> mha(x).shape
    (2, 5, 64)
    >>> out, weights = mha(x, is_causal=True, return_weights=True)
    >>> weights.shape
    (2, 4, 5, 5)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        head_dim: int | None = None,
        scale: float | None = None,
        seed: Seed = None,
    ) -> None:
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        check_size(
            "MultiHeadAttention",
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            kdim=kdim,
            vdim=vdim,
        )
        if head_dim is not None:
            check_size("MultiHeadAttention", head_dim=head_dim)
        elif embed_dim % num_heads:
            raise ValueError(
                f"MultiHeadAttention: embed_dim ({embed_dim}) must be a multiple of "
                f"num_heads ({num_heads}); or give head_dim"
            )
        if num_heads % num_kv_heads:
            raise ValueError(
                f"MultiHeadAttention: num_heads ({num_heads}) must be a multiple of "
                f"num_kv_heads ({num_kv_heads})"
            )
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.kdim, self.vdim = kdim, vdim
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.scale = None if scale is None else float(scale)
        rows = num_heads * self.head_dim
        kv_rows = num_kv_heads * self.head_dim
        self._in_proj = InProjection(
            {"q": rows, "k": kv_rows, "v": kv_rows},
            {"q": embed_dim, "k": kdim, "v": vdim},
        )
        self._has_bias = bias
        self._parts: tuple[str, ...] = ("qkv",) if self._in_proj.one_input else ("q", "k", "v")
        self.out_proj = Linear.of_size(rows, embed_dim, bias=bias, seed=UNSET)
        self._initialise(seed)

    @classmethod
    def from_torch(cls, module: Any) -> "MultiHeadAttention":
        """The same as `module`, a torch.nn.MultiheadAttention: its weights and all its settings.

        Inputs are always batch first here, whatever ``module.batch_first`` says.

        Raises
        ------
        TypeError
            Not a torch.nn.MultiheadAttention, or not float32.
        ValueError
            It uses ``add_bias_kv`` or ``add_zero_attn``, or it is in training mode with dropout.
        """
        self = cls(**torch_modules.attention_settings(module), seed=UNSET)
        self.load_state_dict(module.state_dict())
        return self

    def __call__(
        self,
        query: Float32,
        key: Float32 | None = None,
        value: Float32 | None = None,
        *,
        attn_mask: Bool | Float32 | None = None,
        is_causal: bool = False,
        key_lengths: Lengths | None = None,
        cu_seqlens: Lengths | None = None,
        cu_seqlens_k: Lengths | None = None,
        cache: KVCache | None = None,
        relative_bias: Float32 | None = None,
        residual: Float32 | None = None,
        norm_before: Norm | None = None,
        norm_after: Norm | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Attend from `query` to `key` and `value`, or to itself.

        Parameters
        ----------
        query : ndarray of float32, (B, L, embed_dim)
            Or ragged (T, embed_dim) with `cu_seqlens`; (L, embed_dim) without is one sequence.
        key : ndarray of float32, (B, S, kdim), optional
            `query` when not given. Ragged (Tk, kdim) with `cu_seqlens` and `cu_seqlens_k`.
        value : ndarray of float32, (B, S, vdim), optional
            `key` when not given.
        attn_mask : ndarray of bool or float32, broadcastable to (B, num_heads, L, S), optional
            bool: True = may attend, the **opposite** of torch.nn.MultiheadAttention. float32: added
            to the scores. Not for ragged input.
        is_causal : bool, default False
            Position i sees the keys 0 .. i (with a cache: and all that came before).
        key_lengths : sequence of int, (B,), optional
            Keys at or past the length do not exist; in self-attention those rows come back as
            zeros. With a cache: how many of the L new positions count.
        cu_seqlens, cu_seqlens_k : sequence of int, (N + 1,), optional
            Cumulative lengths of a ragged batch, of the queries and of the keys (`cu_seqlens` when
            not given).
        cache : KVCache, optional
            The new keys and values are appended to it, and the queries attend to all that it holds
            then.
        relative_bias : ndarray of float32, (num_heads, 2 R + 1), optional
            Added to the scores by distance, as for :func:`fastmha.scaled_dot_product_attention`.
        residual : ndarray of float32, of query's shape, optional
            Added to the result as it is stored.
        norm_before, norm_after : LayerNorm or RMSNorm, optional
            Applied to `query` (and so to what is made from it), and to the result with its
            residual.
        return_weights : bool, default False
            Also return the probabilities of every head.

        Returns
        -------
        out : ndarray of float32, of query's shape
        weights : ndarray of float32, (B, num_heads, L, S)
            Only with `return_weights`. Ragged: a list with one (num_heads, L_n, S_n) per sequence.

        Raises
        ------
        TypeError
            An array of another dtype than float32, or a cache that is no KVCache.
        ValueError
            Shapes that do not fit, or arguments that exclude each other. The cache is as it was
            before.
        """
        self._check_call(query, key, value, attn_mask, key_lengths, cu_seqlens, cu_seqlens_k, cache)
        plain = attn_mask is None and cache is None and not return_weights
        if plain and self._made_from_one_input(key, value):
            return self._attend_fused(
                query,
                key,
                is_causal=is_causal,
                key_lengths=key_lengths,
                cu_seqlens=cu_seqlens,
                cu_seqlens_k=cu_seqlens_k,
                relative_bias=relative_bias,
                residual=residual,
                norm_before=norm_before,
                norm_after=norm_after,
            )
        scores: dict[str, Any] = {"is_causal": is_causal, "scale": self.scale}
        if relative_bias is not None:
            scores["relative_bias"] = relative_bias
        if norm_before is not None:
            query = norm_before(query)
        if cu_seqlens is not None:
            q, k, v = self._project(query, key, value, 2)
            attended = varlen_attention(
                q,
                k,
                v,
                cu_seqlens,
                cu_seqlens_k,
                **scores,
                return_weights=return_weights,
            )
            return self._join(attended, residual, norm_after, return_weights)
        if query.ndim == 2:  # one sequence without its batch axis
            result = self(
                query[None],
                None if key is None else key[None],
                None if value is None else value[None],
                attn_mask=attn_mask,
                is_causal=is_causal,
                key_lengths=key_lengths,
                cache=cache,
                relative_bias=relative_bias,
                residual=None if residual is None else residual[None],
                norm_after=norm_after,
                return_weights=return_weights,
            )
            return (result[0][0], result[1][0]) if return_weights else result[0]

        q, k, v = self._project(query, key, value, 3)
        if cache is not None:
            before = cache._lengths.copy()
            try:
                attended = self._attend_cached(
                    q, k, v, cache, attn_mask, key_lengths, scores, return_weights
                )
                return self._join(attended, residual, norm_after, return_weights)
            except BaseException:  # nothing is changed by a call that fails, or that is interrupted
                cache._lengths[:] = before
                raise
        out = _core.empty(q.shape)  # (batch, q_len, heads, head_dim)
        attended = scaled_dot_product_attention(
            q.transpose(0, 2, 1, 3),
            k.transpose(0, 2, 1, 3),
            v.transpose(0, 2, 1, 3),
            attn_mask,
            **scores,
            key_lengths=key_lengths,
            return_weights=return_weights,
            out=out.transpose(0, 2, 1, 3),
        )
        weights = attended[1] if return_weights else None
        joined = self._join(out, residual, norm_after, False)
        if key is None and key_lengths is not None:
            padding = ~valid_rows(np.asarray(key_lengths), query.shape[1])
            joined[padding] = 0
            if weights is not None:
                weights.transpose(0, 2, 1, 3)[padding] = 0
        return (joined, weights) if return_weights else joined

    def _check_call(
        self,
        query: Float32,
        key: Float32 | None,
        value: Float32 | None,
        attn_mask: Bool | Float32 | None,
        key_lengths: Lengths | None,
        cu_seqlens: Lengths | None,
        cu_seqlens_k: Lengths | None,
        cache: KVCache | None,
    ) -> None:
        """What is no array of that width, and arguments that exclude each other."""
        check_array("MultiHeadAttention", "query", query, self.embed_dim)
        if key is not None:
            check_array("MultiHeadAttention", "key", key, self.kdim)
        if value is not None:
            check_array("MultiHeadAttention", "value", value, self.vdim)
        if cache is not None and not isinstance(cache, KVCache):
            raise TypeError(
                f"MultiHeadAttention: cache must be a KVCache, got {type(cache).__name__}; make "
                "one: fm.KVCache(batch, num_kv_heads, capacity, head_dim)"
            )
        if cu_seqlens_k is not None and (cu_seqlens is None or key is None):
            raise ValueError(
                "MultiHeadAttention: cu_seqlens_k is for ragged keys: give cu_seqlens and key with "
                "it, or leave it out"
            )
        if cu_seqlens is not None and not (
            attn_mask is None and key_lengths is None and cache is None
        ):
            raise ValueError(
                "MultiHeadAttention: cu_seqlens (ragged input) does not go with attn_mask, "
                "key_lengths or cache"
            )

    def _made_from_one_input(self, key: Float32 | None, value: Float32 | None) -> bool:
        """Whether keys and values come out of one product, of `query` or of `key`."""
        if key is None:
            return value is None and self._in_proj.one_input
        return (value is None or value is key) and self.kdim == self.vdim

    def _attend_fused(
        self,
        query: Float32,
        key: Float32 | None,
        *,
        is_causal: bool,
        key_lengths: Lengths | None,
        cu_seqlens: Lengths | None,
        cu_seqlens_k: Lengths | None,
        relative_bias: Float32 | None,
        residual: Float32 | None,
        norm_before: Norm | None,
        norm_after: Norm | None,
    ) -> Float32:
        """All of a call in one operation."""
        ndim = 2 if cu_seqlens is not None or query.ndim == 2 else 3
        if query.ndim != ndim:
            self._wrong_rank("query", query, ndim)
        if key is not None and key.ndim != ndim:
            self._wrong_rank("key", key, ndim)
        in_proj = self._in_proj
        out = _core.multi_head_attention(
            in_proj.part("qkv" if key is None else "q")._packed,
            None if key is None else in_proj.part("kv")._packed,
            self.out_proj._packed,
            self.num_heads,
            self.num_kv_heads,
            self.scale,
            relative_bias,
            query,
            key,
            is_causal,
            key_lengths,
            cu_seqlens,
            cu_seqlens_k,
            residual,
            fused(norm_before),
            fused(norm_after),
            None,
        )
        if key is None and key_lengths is not None:
            padding = ~valid_rows(np.asarray(key_lengths), query.shape[-2])
            out.reshape(*padding.shape, -1)[padding] = 0
        return out

    def project_kv(self, memory: Float32) -> tuple[Float32, Float32]:
        """Keys and values of `memory` (..., embed_dim), each (..., kv_heads, head_dim): one
        product, two views."""
        rows = self._in_proj.part("kv")(memory)
        heads = rows.reshape(*rows.shape[:-1], 2 * self.num_kv_heads, self.head_dim)
        return heads[..., : self.num_kv_heads, :], heads[..., self.num_kv_heads :, :]

    def _project(
        self, query: Float32, key: Float32 | None, value: Float32 | None, ndim: int
    ) -> tuple[Float32, Float32, Float32]:
        """q, k and v, each (..., heads, head_dim)."""
        if query.ndim != ndim:
            self._wrong_rank("query", query, ndim)
        heads, kv_heads, head_dim = self.num_heads, self.num_kv_heads, self.head_dim
        if key is None:
            if value is not None:
                raise ValueError("MultiHeadAttention: value without key; give both, or neither")
            if not self._in_proj.one_input:
                raise ValueError(
                    "MultiHeadAttention: key is needed, because keys and values are made from "
                    f"kdim={self.kdim} and vdim={self.vdim}, not from embed_dim={self.embed_dim}"
                )
            rows = self._in_proj.part("qkv")(query)
            split = rows.reshape(*rows.shape[:-1], heads + 2 * kv_heads, head_dim)
            return (
                split[..., :heads, :],
                split[..., heads : heads + kv_heads, :],
                split[..., heads + kv_heads :, :],
            )
        if key.ndim != ndim:
            self._wrong_rank("key", key, ndim)
        if value is not None and value.ndim != ndim:
            self._wrong_rank("value", value, ndim)
        q = self._in_proj.part("q")(query)
        q = q.reshape(*q.shape[:-1], heads, head_dim)
        if (value is None or value is key) and self.kdim == self.vdim:
            k, v = self.project_kv(key)
            return q, k, v
        k = self._in_proj.part("k")(key)
        v = self._in_proj.part("v")(key if value is None else value)
        return (
            q,
            k.reshape(*k.shape[:-1], kv_heads, head_dim),
            v.reshape(*v.shape[:-1], kv_heads, head_dim),
        )

    def _wrong_rank(self, name: str, x: Float32, ndim: int) -> NoReturn:
        shape = "(total, width) with cu_seqlens" if ndim == 2 else "(batch, length, width)"
        raise ValueError(f"MultiHeadAttention: {name} must be {shape}, got {x.shape}")

    def _attend_cached(
        self,
        q: Float32,
        k: Float32,
        v: Float32,
        cache: KVCache,
        attn_mask: Bool | Float32 | None,
        key_lengths: Lengths | None,
        scores: dict[str, Any],
        return_weights: bool,
    ) -> Any:
        """Append to the cache, then attend to all that it holds.

        The result is (batch, q_len, heads, head_dim).
        """
        q, k, v = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        out = _core.empty((q.shape[0], q.shape[2], self.num_heads, self.head_dim))
        heads_first = out.transpose(0, 2, 1, 3)
        if attn_mask is None and key_lengths is None and not return_weights:
            attention_with_kvcache(q, cache, k, v, **scores, out=heads_first)
            return out
        batch, q_len = out.shape[:2]
        if key_lengths is not None:
            key_lengths = check_lengths(
                "MultiHeadAttention", "key_lengths", key_lengths, batch, q_len
            )
        before = cache._lengths.copy()
        cache.append(k, v, lengths=key_lengths)
        longest = int(cache.lengths.max(initial=0))
        attended: Any = scaled_dot_product_attention(
            q,
            cache.key[:, :, :longest],
            cache.value[:, :, :longest],
            attn_mask,
            **scores,
            key_lengths=cache.lengths,
            query_offset=before,
            return_weights=return_weights,
            out=heads_first,
        )
        if key_lengths is not None:
            out[~valid_rows(key_lengths, q_len)] = 0
        return (out, attended[1]) if return_weights else out

    def _join(
        self,
        attended: Any,
        residual: Float32 | None,
        norm_after: Norm | None,
        return_weights: bool,
    ) -> Any:
        """(..., heads, head_dim) -> (..., embed_dim), through the output map."""
        heads = attended[0] if return_weights else attended
        rows = heads.reshape(*heads.shape[:-2], self.num_heads * self.head_dim)
        out = self.out_proj(rows, residual=residual)
        if norm_after is not None:
            out = norm_after(out)
        return (out, attended[1]) if return_weights else out

    def _use_for_cross_attention(self) -> None:
        """Pack queries apart from keys and values, as a decoder block's second attention needs
        them."""
        self._parts = ("q", "kv") if self.kdim == self.vdim else ("q", "k", "v")

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "out_proj", self.out_proj

    def _own_shapes(self) -> dict[str, Shape]:
        rows, widths = self._in_proj.rows, self._in_proj.widths
        shapes: dict[str, Shape] = (
            {"in_proj_weight": (sum(rows.values()), self.embed_dim)}
            if self._in_proj.one_input
            else {f"{letter}_proj_weight": (rows[letter], widths[letter]) for letter in "qkv"}
        )
        return shapes | {"in_proj_bias": (sum(rows.values()),)} if self._has_bias else shapes

    def _own_state(self) -> dict[str, Float32]:
        weights, bias = self._in_proj.state()
        state = (
            {"in_proj_weight": np.concatenate(list(weights.values()))}
            if self._in_proj.one_input
            else {f"{letter}_proj_weight": weight for letter, weight in weights.items()}
        )
        return state if bias is None else state | {"in_proj_bias": bias}

    def _set_own(self, state: dict[str, Float32]) -> None:
        rows = self._in_proj.rows
        if self._in_proj.one_input:
            ends = np.cumsum([rows[letter] for letter in "qkv"])
            parts = np.split(state["in_proj_weight"], ends[:-1])
            weights = dict(zip("qkv", parts, strict=True))
        else:
            weights = {letter: state[f"{letter}_proj_weight"] for letter in "qkv"}
        self._in_proj.set(weights, state.get("in_proj_bias"), self._parts)

    def _draw_own(self, rng: np.random.Generator) -> dict[str, Float32]:
        drawn = {}
        for name, shape in self._own_shapes().items():
            if name == "in_proj_bias":
                drawn[name] = np.zeros(shape, np.float32)
            else:  # Xavier
                drawn[name] = uniform(rng, shape, (6 / sum(shape)) ** 0.5)
        return drawn

    def __repr__(self) -> str:
        kv_heads = (
            f", num_kv_heads={self.num_kv_heads}" if self.num_kv_heads != self.num_heads else ""
        )
        head_dim = (
            f", head_dim={self.head_dim}"
            if self.head_dim * self.num_heads != self.embed_dim
            else ""
        )
        return (
            f"MultiHeadAttention({self.embed_dim}, num_heads={self.num_heads}{kv_heads}{head_dim})"
        )
