"""The compiled core: argument-checked entry points behind :mod:`fastmha`.

Every function takes its arguments by position, checks them, releases the GIL while it computes and
never keeps a reference to an array. The documented functions are in :mod:`fastmha.functional`,
:mod:`fastmha.cache` and :mod:`fastmha.nn`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

__version__: str

def scaled_dot_product_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    attn_mask: NDArray[np.bool_] | Float32 | None,
    is_causal: bool,
    scale: float | None,
    key_lengths: NDArray[np.integer[Any]] | Sequence[int] | None,
    query_offset: int | NDArray[np.integer[Any]] | Sequence[int],
    window: tuple[int | None, int | None] | None,
    alibi_slopes: Float32 | None,
    relative_bias: Float32 | None,
    softcap: float,
    return_weights: bool,
    return_lse: bool,
    out: Float32 | None,
) -> Any: ...
def varlen_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    cu_seqlens_q: NDArray[np.integer[Any]] | Sequence[int],
    cu_seqlens_k: NDArray[np.integer[Any]] | Sequence[int] | None,
    is_causal: bool,
    scale: float | None,
    query_offset: int | NDArray[np.integer[Any]] | Sequence[int],
    window: tuple[int | None, int | None] | None,
    alibi_slopes: Float32 | None,
    relative_bias: Float32 | None,
    softcap: float,
    return_weights: bool,
    return_lse: bool,
    out: Float32 | None,
) -> Any: ...
def kv_cache_append(
    key_cache: Float32,
    value_cache: Float32,
    lengths: NDArray[np.int64],
    key: Float32,
    value: Float32,
    new_lengths: NDArray[np.integer[Any]] | Sequence[int] | None,
) -> None:
    """Copy ``key`` and ``value`` (B, Hkv, T, E) behind what each sequence holds, then advance
    ``lengths``.
    """

def attention_with_kvcache(
    query: Float32,
    key_cache: Float32,
    value_cache: Float32,
    lengths: NDArray[np.int64],
    key: Float32 | None,
    value: Float32 | None,
    is_causal: bool,
    scale: float | None,
    window: tuple[int | None, int | None] | None,
    alibi_slopes: Float32 | None,
    relative_bias: Float32 | None,
    softcap: float,
    out: Float32 | None,
) -> Float32:
    """Append ``key`` and ``value`` when given, then attend with query_offset = lengths - q_len."""

class PackedLinear:
    """A weight (out_features, in_features) packed into panels, with its bias and activation."""

    def __init__(self, weight: Float32, bias: Float32 | None, activation: str | None) -> None: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def activation(self) -> str | None: ...
    @property
    def nbytes(self) -> int: ...
    def __call__(self, x: Float32, residual: Float32 | None, out: Float32 | None) -> Float32:
        """activation(x @ weight.T + bias) + residual for x (..., in_features)."""

    def unpack(self) -> Float32:
        """The weight again, (out_features, in_features), bit for bit what was packed."""

Norm = tuple[Float32, Float32 | None, float] | tuple[Float32, float]
"""(weight, bias, eps) of a layer norm, or (weight, eps) of an RMS norm."""

def feed_forward(
    linear1: PackedLinear,
    linear2: PackedLinear,
    gate: PackedLinear | None,
    x: Float32,
    residual: Float32 | None,
    norm_before: Norm | None,
    norm_after: Norm | None,
    out: Float32 | None,
) -> Float32:
    """norm_after(linear2(linear1(norm_before(x))) + residual) for x (..., in_features).

    With `gate`, its result multiplies that of linear1.
    """

def multi_head_attention(
    in_proj: PackedLinear,
    kv_proj: PackedLinear | None,
    out_proj: PackedLinear,
    heads: int,
    kv_heads: int,
    scale: float | None,
    relative_bias: Float32 | None,
    x: Float32,
    memory: Float32 | None,
    is_causal: bool,
    key_lengths: NDArray[np.integer[Any]] | Sequence[int] | None,
    cu_seqlens: NDArray[np.integer[Any]] | Sequence[int] | None,
    cu_seqlens_memory: NDArray[np.integer[Any]] | Sequence[int] | None,
    residual: Float32 | None,
    norm_before: Norm | None,
    norm_after: Norm | None,
    out: Float32 | None,
) -> Float32:
    """norm_after(out_proj(attention(in_proj(norm_before(x)))) + residual).

    x is (batch, length, width), (length, width), or ragged (total, width) with `cu_seqlens`. With
    `kv_proj`, `in_proj` gives queries alone and keys and values are made from `memory`; without, it
    gives queries, keys and values.
    """

def encoder_blocks(
    blocks: list[tuple[object, ...]],
    norm: Norm | None,
    x: Float32,
    cu_seqlens: NDArray[np.int64] | None,
    relative_bias: Float32 | None,
) -> Float32:
    """x (batch, length, width), or ragged (total, width) with `cu_seqlens`, through encoder blocks
    and a norm, in one parallel region; for few rows, see fastmha/encoder.h.

    A block is (in_proj, out_proj, linear1, linear2, gate or None, norm1, norm2, norm_first, heads,
    kv_heads, scale or None).
    """

def decoder_blocks(
    blocks: list[tuple[object, ...]],
    norm: Norm | None,
    x: Float32,
    memory: Float32,
    cu_seqlens: NDArray[np.int64] | None,
    cu_seqlens_memory: NDArray[np.int64] | None,
    relative_bias: Float32 | None,
) -> Float32:
    """x and memory (batch, length, width), or both ragged (total, width) with their cu_seqlens,
    through decoder blocks and a norm, in one parallel region; for few rows, see fastmha/decoder.h.

    A block is (in_proj, out_proj, memory_q_proj, memory_kv_proj, memory_out_proj, linear1, linear2,
    gate or None, norm1, norm2, norm3, norm_first, heads, kv_heads, scale or None).
    """

def decoder_step(
    blocks: list[tuple[object, ...]],
    norm: Norm | None,
    x: Float32,
    beam_size: int,
    slots: NDArray[np.int64],
    lengths: NDArray[np.int64],
    new_lengths: NDArray[np.int64] | None,
    position_slots: NDArray[np.int64] | None,
    memory_starts: NDArray[np.int64],
    memory_lengths: NDArray[np.int64],
    relative_bias: Float32 | None,
) -> Float32:
    """x (hypotheses, length, width) through decoder blocks and a norm; see DecoderStepParams.

    A block is (in_proj, out_proj, memory_q_proj, memory_out_proj, linear1, linear2, gate or None,
    norm1, norm2, norm3, norm_first, heads, kv_heads, scale or None, key, value, memory_key,
    memory_value). New keys and values are written; the caller counts them in `lengths`.
    """

def layer_norm(
    x: Float32,
    weight: Float32,
    bias: Float32 | None,
    eps: float,
    residual: Float32 | None,
    out: Float32 | None,
) -> Float32: ...
def rms_norm(
    x: Float32, weight: Float32, eps: float, residual: Float32 | None, out: Float32 | None
) -> Float32: ...
def softmax(x: Float32, out: Float32 | None) -> Float32: ...
def activation(name: str, x: Float32, out: Float32 | None) -> Float32:
    """``name`` is one of relu, gelu, gelu_tanh, silu."""

def exp(x: Float32) -> Float32:
    """The vectorised exponential that the kernels use, for tests of its error bound."""

def top_k(logits: Float32, k: int) -> tuple[Float32, NDArray[np.int64], Float32]:
    """The ``k`` largest of each row of logits (R, V), and log(sum(exp(row))).

    Returns values (R, k) in descending order, their columns (R, k), and lse (R,): ``values -
    lse[:, None]`` are logarithms of softmax. Of equal values the smaller column comes first; NaN
    comes last. 1 <= k <= V. A row's bits depend on that row alone.
    """

def set_num_threads(num_threads: int) -> None: ...
def get_num_threads() -> int: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def build_info() -> dict[str, Any]:
    """version, compiler, build_type, isa, available_isas, num_threads, openmp (bool), cpu,
    idle_memory (bytes)."""

def release_memory() -> int: ...
def empty(shape: Sequence[int]) -> Float32:
    """np.empty(shape, np.float32) on memory that is already mapped, where there is some."""
