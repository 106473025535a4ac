"""The float64 oracle: every operation written as its formula in plain NumPy, with no regard for
speed.

Masked positions are left out by selection, so that whatever lies there cannot matter; visible NaN
propagates.
"""

import math

import numpy as np

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def attention_scores(
    query,
    key,
    attn_mask=None,
    *,
    is_causal=False,
    scale=None,
    key_lengths=None,
    query_offset=0,
    window=None,
    alibi_slopes=None,
    relative_bias=None,
    softcap=0.0,
):
    """Final scores and visibility, both (B, Hq, L, S); invisible scores are -inf."""
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    query, key = query.astype(np.float64), key.astype(np.float64)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    with np.errstate(invalid="ignore", over="ignore"):
        key = np.repeat(key, heads // kv_heads, axis=1)  # query head h reads kv head h // group
        scores = scale * (query @ key.transpose(0, 1, 3, 2))
        if softcap:
            scores = softcap * np.tanh(scores / softcap)

    positions = np.arange(q_len)[:, None] + np.reshape(query_offset, (-1, 1, 1, 1))
    keys = np.arange(kv_len)
    if alibi_slopes is not None:
        slopes = np.asarray(alibi_slopes, np.float64).reshape(-1, heads, 1, 1)
        scores = scores - slopes * np.abs(positions - keys)
    if relative_bias is not None:
        reach = relative_bias.shape[1] // 2
        places = reach + np.clip(keys - positions, -reach, reach)  # (1 or B, 1, L, S)
        scores = (
            scores + np.asarray(relative_bias, np.float64)[np.arange(heads)[:, None, None], places]
        )

    visible = np.ones((batch, heads, q_len, kv_len), bool)
    if key_lengths is not None:
        visible &= keys < np.reshape(key_lengths, (-1, 1, 1, 1))
    if is_causal:
        visible &= keys <= positions
    left, right = (None, None) if window is None else window
    if left is not None and left != -1:
        visible &= keys >= positions - left
    if right is not None and right != -1:
        visible &= keys <= positions + right
    if attn_mask is not None:
        mask = np.asarray(attn_mask)
        if mask.dtype == bool:
            visible &= mask
        else:
            visible &= mask != -np.inf
            with np.errstate(invalid="ignore"):
                scores = scores + mask
    return np.where(visible, scores, -np.inf), visible


def attention(query, key, value, attn_mask=None, **options):
    """(out, weights, lse) in float64 for 4-D, 3-D or 2-D inputs; a row without visible keys is (0,
    0, -inf).
    """
    lift = (None,) * (4 - query.ndim)
    if attn_mask is not None and lift:
        attn_mask = np.asarray(attn_mask)  # trailing axes align by broadcasting
    scores, visible = attention_scores(query[lift], key[lift], attn_mask, **options)
    value = value[lift].astype(np.float64)
    batch, heads, q_len, _ = scores.shape
    group = heads // value.shape[1]

    out = np.zeros((batch, heads, q_len, value.shape[-1]))
    weights = np.zeros(scores.shape)
    lse = np.full((batch, heads, q_len), -np.inf)
    for b, h, i in np.ndindex(batch, heads, q_len):
        see = visible[b, h, i]
        if not see.any():
            continue
        with np.errstate(invalid="ignore"):
            row = scores[b, h, i, see]
            exps = np.exp(row - row.max())
            total = exps.sum()
            weights[b, h, i, see] = exps / total
            lse[b, h, i] = row.max() + np.log(total)
            out[b, h, i] = (exps / total) @ value[b, h // group, see]
    drop = (0,) * len(lift)
    return out[drop], weights[drop], lse[drop]


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k=None, **options):
    """(out (Tq, Hq, Ev), list of weights (Hq, Lq, Lk), lse (Tq, Hq)): each sequence by
    :func:`attention`.
    """
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    sequences = len(cu_seqlens_q) - 1
    offsets = np.broadcast_to(options.pop("query_offset", 0), (sequences,))
    slopes = options.pop("alibi_slopes", None)
    out = np.zeros((*query.shape[:2], value.shape[-1]))
    lse = np.zeros(query.shape[:2])
    weights = []
    for n in range(sequences):
        rows = slice(cu_seqlens_q[n], cu_seqlens_q[n + 1])
        keys = slice(cu_seqlens_k[n], cu_seqlens_k[n + 1])
        own_slopes = slopes[n] if slopes is not None and np.ndim(slopes) == 2 else slopes
        heads_first = (
            query[rows].transpose(1, 0, 2),
            key[keys].transpose(1, 0, 2),
            value[keys].transpose(1, 0, 2),
        )
        o, w, s = attention(
            *heads_first, query_offset=offsets[n], alibi_slopes=own_slopes, **options
        )
        out[rows], lse[rows] = o.transpose(1, 0, 2), s.T
        weights.append(w)
    return out, weights, lse


def softmax(x):
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        exps = np.exp(x - x.max(-1, keepdims=True))
        return exps / exps.sum(-1, keepdims=True)


def relu(x):
    return np.maximum(x.astype(np.float64), 0)


# 1 + erf and 1 + tanh lose every digit far below 0, where the functions are tiny but not 0: hence
# erfc and exp.
def gelu(x):
    """x Phi(x) = x / 2 (1 + erf(x / sqrt(2))), written with erfc(-x / sqrt(2)) = 1 + erf(x /
    sqrt(2)).
    """
    x = x.astype(np.float64)
    return 0.5 * x * _erfc(-x / math.sqrt(2))


def gelu_tanh(x):
    """x / 2 (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3), written with 2 / (1 + exp(-2u)) = 1
    + tanh(u).
    """
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


ACTIVATIONS = {None: lambda x: x, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def linear(x, weight, bias=None, activation=None, residual=None):
    """activation(x @ weight.T + bias) + residual."""
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    y = y if bias is None else y + bias
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def layer_norm(x, weight, bias=None, eps=1e-5, residual=None):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis of x (+ residual)."""
    x = x.astype(np.float64) if residual is None else x.astype(np.float64) + residual
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight
    return y if bias is None else y + bias


def rms_norm(x, weight, eps=1e-6, residual=None):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, of x + residual when given."""
    x = x.astype(np.float64) if residual is None else x.astype(np.float64) + residual
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
