"""Every operation as its formula, in the precision of what goes in.

In float64 they give the expected answers; in float32 they are the rival called NumPy, which is why
they work in place where NumPy can.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bench.problems import Block

Array = NDArray[Any]

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def softmax_in_place(x: Array) -> Array:
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def softmax(x: Array) -> Array:
    return softmax_in_place(x.copy())


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    visible: Array | None = None,
    added: Array | None = None,
    softcap: float = 0.0,
) -> Array:
    """softmax(Q K^T / sqrt(E) + added) V, over the visible keys."""
    heads, kv_heads = query.shape[-3], key.shape[-3]
    if heads != kv_heads:  # query head h reads key/value head h // group
        if visible is not None or added is not None:
            raise NotImplementedError("attention: grouped heads with a mask")
        grouped = query.reshape(*query.shape[:-3], kv_heads, heads // kv_heads, *query.shape[-2:])
        key, value = key[..., None, :, :], value[..., None, :, :]
    else:
        grouped = query
    scores = grouped @ key.swapaxes(-1, -2)
    scores *= query.dtype.type(1 / math.sqrt(query.shape[-1]))
    if softcap:
        scores /= softcap
        np.tanh(scores, out=scores)
        scores *= softcap
    if added is not None:
        scores += added
    if visible is not None:
        np.copyto(scores, -np.inf, where=~visible)
    out = softmax_in_place(scores) @ value
    return out.reshape(*query.shape[:-1], value.shape[-1])


def linear(x: Array, weight: Array, bias: Array) -> Array:
    # one product of two matrices: NumPy would do one for each entry of the batch
    out = x.reshape(-1, x.shape[-1]) @ weight.T
    out += bias
    return out.reshape(*x.shape[:-1], -1)


def layer_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None = None,
    eps: float = 1e-5,
) -> Array:
    """(z - mean) / sqrt(var + eps) * weight + bias with z = x + residual."""
    z = x if residual is None else x + residual
    centred = z - z.mean(-1, keepdims=True)
    scale = np.einsum("...i,...i->...", centred, centred)[..., None] / x.shape[-1]
    centred /= np.sqrt(scale + x.dtype.type(eps))
    centred *= weight
    centred += bias
    return centred


def gelu_exact(x: Array) -> Array:
    """x Phi(x) by the complementary error function: no digits are lost far below 0."""
    return 0.5 * x * _erfc(-x / math.sqrt(2))


def gelu(x: Array) -> Array:
    """x Phi(x) as NumPy alone can: it has no erf, so Abramowitz and Stegun 7.1.26 (error below
    1.5e-7) stands in."""
    z = np.abs(x)
    z *= x.dtype.type(math.sqrt(0.5))
    t = 1 / (1 + x.dtype.type(0.3275911) * z)
    poly = x.dtype.type(1.061405429) * t
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly += x.dtype.type(coefficient)
        poly *= t
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    z *= poly  # erfc(|x| / sqrt(2))
    np.subtract(1, z, out=z)
    np.copysign(z, x, out=z)
    z += 1
    z *= x
    z *= x.dtype.type(0.5)
    return z


def block(problem: "Block", dtype: type[np.floating[Any]]) -> Array:
    """MultiHeadAttention, or a block with norms behind its sublayers and ReLU, as torch.nn does."""
    state = {name: array.astype(dtype, copy=False) for name, array in problem.state.items()}
    x = problem.x.astype(dtype, copy=False)
    if problem.kind == "attention":
        return _multi_head(state, "", problem.heads, x, x, causal=False)
    memory = problem.memory
    x = _normed(
        state,
        "norm1",
        x,
        _multi_head(state, "self_attn.", problem.heads, x, x, causal=memory is not None),
    )
    if memory is not None:
        memory = memory.astype(dtype, copy=False)
        crossed = _multi_head(state, "multihead_attn.", problem.heads, x, memory, causal=False)
        x = _normed(state, "norm2", x, crossed)
    hidden = linear(x, state["linear1.weight"], state["linear1.bias"])
    np.maximum(hidden, 0, out=hidden)
    fed = linear(hidden, state["linear2.weight"], state["linear2.bias"])
    return _normed(state, "norm2" if memory is None else "norm3", x, fed)


def _normed(state: dict[str, Array], name: str, x: Array, y: Array) -> Array:
    return layer_norm(y, state[f"{name}.weight"], state[f"{name}.bias"], x)


def _multi_head(
    state: dict[str, Array], prefix: str, heads: int, x: Array, memory: Array, *, causal: bool
) -> Array:
    weight, bias = state[f"{prefix}in_proj_weight"], state[f"{prefix}in_proj_bias"]
    width = x.shape[-1]

    def heads_of(rows: Array) -> Array:  # (B, L, d) -> (B, H, L, d / H)
        return rows.reshape(*rows.shape[:2], heads, -1).swapaxes(1, 2)

    if x is memory:
        query, key, value = np.split(linear(x, weight, bias), 3, -1)
    else:
        query = linear(x, weight[:width], bias[:width])
        key, value = np.split(linear(memory, weight[width:], bias[width:]), 2, -1)
    visible = np.tri(x.shape[1], memory.shape[1], dtype=bool) if causal else None
    joined = attention(*map(heads_of, (query, key, value)), visible=visible)
    rows = joined.swapaxes(1, 2).reshape(x.shape)
    return linear(rows, state[f"{prefix}out_proj.weight"], state[f"{prefix}out_proj.bias"])


def sentence(state: dict[str, Array], heads: int, eps: float, ids: Array) -> Array:
    """The embedding of one text by a BERT: the mean of its hidden states, at length 1. The names in
    `state` are those of the checkpoint."""

    def of(name: str) -> tuple[Array, Array]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def normed(name: str, x: Array, residual: Array | None = None) -> Array:
        return layer_norm(x, *of(f"{name}.LayerNorm"), residual, eps)

    def heads_of(rows: Array) -> Array:  # (L, d) -> (H, L, d / H)
        return rows.reshape(len(rows), heads, -1).swapaxes(0, 1)

    words, positions, types = (
        state[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
    )
    x = normed("embeddings", words[ids] + positions[: len(ids)] + types[0])
    layers = sum(name.endswith("intermediate.dense.bias") for name in state)
    for layer in (f"encoder.layer.{n}" for n in range(layers)):
        parts = (linear(x, *of(f"{layer}.attention.self.{p}")) for p in ("query", "key", "value"))
        joined = attention(*map(heads_of, parts)).swapaxes(0, 1).reshape(x.shape)
        output = f"{layer}.attention.output"
        x = normed(output, linear(joined, *of(f"{output}.dense")), x)
        hidden = gelu_exact(linear(x, *of(f"{layer}.intermediate.dense")))
        x = normed(f"{layer}.output", linear(hidden, *of(f"{layer}.output.dense")), x)
    pooled = x.mean(0)
    return pooled / np.sqrt(pooled @ pooled)
