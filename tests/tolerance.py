"""How far a float32 result may lie from the float64 oracle: reduction length x magnitudes x
epsilon.

Nothing here is tuned by looking at results. With unit roundoff u = 2^-24, a float32 sum of n
products is off by at most about n u sum|a_k b_k| in any order of summation (Higham, Accuracy and
Stability, section 3.1); the rest is propagated to first order. `EXP_ERROR` is the bound that the
vectorised exponential states and that test_exp.py sweeps.
"""

import math

import numpy as np
import reference

U = 2.0**-24  # half an ulp of 1.0f
TINY = 2e-38  # exp is off by up to this much in absolute terms where its result is subnormal
EXP_ERROR = 2e-7  # relative, of exp over its whole normal range
SLACK = 8  # roundings that are not part of a reduction: scale, change of base, max, division, store


def assert_close(actual, expected, bound, what="result"):
    """|actual - expected| <= bound everywhere; NaN and infinities must stand at the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    assert actual.dtype == np.float32, f"{what}: dtype {actual.dtype}, expected float32"
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(
        actual[~finite], expected[~finite], err_msg=f"{what}: NaN or infinities"
    )
    with np.errstate(invalid="ignore"):
        error = np.where(finite, np.abs(actual - expected), 0.0)
    bound = np.broadcast_to(bound, expected.shape)
    wrong = finite & ~(error <= bound)
    if wrong.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(wrong, np.nan_to_num(error / bound, nan=np.inf), -1.0)
        worst = np.unravel_index(np.argmax(ratio), ratio.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} entries are off; "
            f"worst at {tuple(map(int, worst))}: "
            f"got {actual[worst]!r}, expected {expected[worst]!r}, "
            f"error {error[worst]:.3e}, allowed {bound[worst]:.3e}"
        )


def attention_bounds(
    query,
    key,
    value,
    attn_mask=None,
    *,
    softcap=0.0,
    alibi_slopes=None,
    scale=None,
    expected=None,
    **options,
):
    """Bounds for (out, weights, lse), from the same arguments as :func:`reference.attention` (whose
    result may be passed as `expected`, to save computing it twice).

    A score carries e_j = (E + c) u scale sum|q k| from its dot product (tanh and |x| do not enlarge
    an error), plus c u (|alibi| + |relative bias| + |mask| + softcap) for what is added. A weight
    is exp(s_j - lse), so its relative error is r_j = e_j + sum_k p_k e_k + (S + c) u + EXP_ERROR +
    c u |s|; the output adds p_j r_j |v_j| up.
    """
    lift = (None,) * (4 - query.ndim)
    query, key, value = (np.asarray(x, np.float64)[lift] for x in (query, key, value))
    terms = {"softcap": softcap, "alibi_slopes": alibi_slopes, "scale": scale, **options}
    scores, visible = reference.attention_scores(query, key, attn_mask, **terms)
    if expected is None:
        expected = reference.attention(query, key, value, attn_mask, **terms)
    weights, lse = expected[1].reshape(scores.shape), expected[2].reshape(scores.shape[:-1])

    head_dim, kv_len = query.shape[-1], key.shape[2]
    width = abs(1 / math.sqrt(head_dim) if scale is None else scale)
    with np.errstate(invalid="ignore", over="ignore"):
        dots, _ = reference.attention_scores(abs(query), abs(key), scale=width)
        added = np.abs(np.where(visible, scores, 0.0)) + softcap
        if alibi_slopes is not None:
            slopes = np.asarray(alibi_slopes, np.float64).reshape(-1, query.shape[1], 1, 1)
            offset = np.reshape(options.get("query_offset", 0), (-1, 1, 1, 1))
            distance = np.arange(query.shape[2])[:, None] + offset - np.arange(kv_len)
            added = added + np.abs(slopes * distance)
        if options.get("relative_bias") is not None:
            biases = np.abs(np.asarray(options["relative_bias"])).max(-1)
            added = added + biases[:, None, None]
        if attn_mask is not None and np.asarray(attn_mask).dtype != bool:
            added = added + np.abs(np.where(visible, attn_mask, 0.0))
        score_error = np.where(visible, (head_dim + SLACK) * U * dots + SLACK * U * added, 0.0)

        lse_error = (weights * score_error).sum(-1) + (kv_len + SLACK) * U + EXP_ERROR
        relative = np.expm1(score_error + lse_error[..., None] + EXP_ERROR)
        weight_bound = np.where(visible, weights * relative + TINY, 0.0)
        magnitudes = np.repeat(abs(value), query.shape[1] // value.shape[1], axis=1)
        magnitudes = np.where(np.isfinite(magnitudes), magnitudes, 0.0)
        weight_bound = np.where(
            np.isnan(weight_bound), 0.0, weight_bound
        )  # NaN rows are compared exactly
        out_bound = (
            weight_bound + (kv_len + SLACK) * U * np.nan_to_num(weights)
        ) @ magnitudes + TINY
        lse_bound = lse_error + SLACK * U * np.abs(np.where(np.isfinite(lse), lse, 0.0))
    drop = (0,) * len(lift)
    return out_bound[drop], weight_bound[drop], lse_bound[drop]


def assert_attention(
    result, query, key, value, attn_mask=None, *, return_weights=False, return_lse=False, **options
):
    """Compare what scaled_dot_product_attention returned with the oracle, extras included."""
    expected = reference.attention(query, key, value, attn_mask, **options)
    bounds = attention_bounds(query, key, value, attn_mask, expected=expected, **options)
    asked = [True, return_weights, return_lse]
    parts = result if return_weights or return_lse else (result,)
    assert isinstance(parts, tuple), f"got {type(result)} for {asked}"
    assert len(parts) == sum(asked), f"got {len(parts)} results for {asked}"
    names = [name for name, on in zip(("out", "weights", "lse"), asked, strict=True) if on]
    picks = [(e, b) for e, b, on in zip(expected, bounds, asked, strict=True) if on]
    for name, part, (want, bound) in zip(names, parts, picks, strict=True):
        assert_close(part, want, bound, name)


# The derivatives of gelu and silu stay below 1.13; their own arithmetic costs a few ulp of |x|,
# since both are x times a number in [0, 1] that is built from erf, tanh or exp with an absolute
# error of about EXP_ERROR.
def activation_bound(name, x):
    if name in (None, "relu"):
        return np.zeros(np.shape(x))
    return (EXP_ERROR + SLACK * U) * np.abs(x) + TINY


def linear_bound(x, weight, bias=None, activation=None, residual=None):
    """(K + c) u (|x| |W|^T + |b|) through the activation, plus the roundings after it."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    magnitude = abs(x) @ abs(weight).T + (0.0 if bias is None else abs(bias))
    bound = 1.13 * (x.shape[-1] + SLACK) * U * magnitude
    before = x @ weight.T + (0.0 if bias is None else bias)
    bound = bound + activation_bound(activation, before) + SLACK * U * abs(before)
    return bound if residual is None else bound + 2 * U * (abs(residual) + abs(before))


def norm_bound(x, weight, bias=None, eps=1e-5, residual=None, *, centred=True):
    """Layer norm (centred) and RMS norm: error of the mean, then of the variance, through 1/sqrt
    and the affine map.
    """
    x = x.astype(np.float64)
    total = x if residual is None else x + residual
    size = abs(x) if residual is None else abs(x) + abs(residual)
    length = x.shape[-1]
    mean_error = (length + SLACK) * U * size.mean(-1, keepdims=True) if centred else 0.0
    centre = total - total.mean(-1, keepdims=True) if centred else total
    deviation_error = mean_error + SLACK * U * size
    variance = (centre**2).mean(-1, keepdims=True)
    variance_error = (2 * abs(centre) * deviation_error + deviation_error**2).mean(
        -1, keepdims=True
    )
    variance_error = variance_error + (length + SLACK) * U * variance
    spread = variance + eps
    relative = 0.5 * variance_error / spread + SLACK * U
    scale = abs(weight) / np.sqrt(spread)
    return (
        scale * (deviation_error + abs(centre) * relative)
        + SLACK * U * (0.0 if bias is None else abs(bias))
        + TINY
    )


def softmax_bound(x):
    """Relative: two exponentials, a sum of n terms, the rounding of x - max."""
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        spread = np.where(np.isfinite(x), np.abs(x) + np.abs(x.max(-1, keepdims=True)), 0.0)
        relative = 2 * EXP_ERROR + (x.shape[-1] + SLACK) * U + SLACK * U * spread
        return np.nan_to_num(reference.softmax(x) * np.expm1(relative)) + TINY
