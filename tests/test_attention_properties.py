"""Hypothesis over the whole argument space of attention: 2,500 cases against the oracle, and laws
that need none.
"""

import fastmha as fm
import numpy as np
from conftest import Random, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_attention

# Mostly small, sometimes past the edge of a tile (16, 32, 64, 128 queries or keys).
small = st.integers(0, 9)
lengths = st.one_of(small, small, st.integers(10, 40), st.sampled_from([63, 64, 65, 127, 129, 257]))
dims = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 24, 32, 33, 64, 80]))
LAYOUTS = ["plain", "BLHE", "strided", "reversed", "padded", "offset", "broadcast", "read-only"]


def arrange(array, layout):
    """A view with the values of `array` in the given layout; NaN lies wherever the view does not
    look.
    """
    if layout == "BLHE" and array.ndim >= 3:
        return np.ascontiguousarray(array.swapaxes(-2, -3)).swapaxes(-2, -3)
    if layout == "strided":
        wide = np.full((*array.shape[:-1], array.shape[-1] * 2), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "reversed":
        flip = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[flip])[flip]
    if layout == "padded":
        wide = np.full(
            (*array.shape[:-2], array.shape[-2] + 2, array.shape[-1] + 3), np.nan, array.dtype
        )
        wide[..., 1:-1, 1:-2] = array
        return wide[..., 1:-1, 1:-2]
    if layout == "offset":
        memory = np.full(array.size + 1, np.nan, array.dtype)
        memory[1:] = array.ravel()
        return memory[1:].reshape(array.shape)
    copy = array.copy()
    if layout == "broadcast" and array.ndim == 4 and array.shape[0] > 0:
        return np.broadcast_to(copy[:1], array.shape)  # every batch entry the first one
    copy.flags.writeable = layout != "read-only"
    return copy


@st.composite
def masks(draw, rng, shape):
    """None, bool or float, each axis kept or broadcast, leading axes present or not."""
    kind = draw(st.sampled_from(["none", "none", "bool", "float", "-inf"]))
    if kind == "none":
        return None
    keep = draw(st.tuples(*[st.booleans()] * len(shape)))
    shape = tuple(size if kept else 1 for size, kept in zip(shape, keep, strict=True))
    leading_ones = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    shape = shape[draw(st.integers(0, leading_ones)) :]
    density = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    visible = np.asarray(rng.random(shape) < density)
    if kind == "bool":
        return (
            arrange(visible, "reversed") if visible.ndim >= 2 and draw(st.booleans()) else visible
        )
    added = np.asarray(rng.normal(size=shape), np.float32)
    return np.where(visible, added, np.float32(-np.inf)) if kind == "-inf" else added


@st.composite
def calls(draw, ndims=(4, 4, 4, 3, 2), min_batch=0):
    """(query, key, value, attn_mask, options) for one valid call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ndim = draw(st.sampled_from(ndims))
    batch = draw(st.integers(min_batch, 3)) if ndim == 4 else 1
    kv_heads = draw(st.integers(1, 3)) if ndim >= 3 else 1
    heads = kv_heads * draw(st.sampled_from([1, 1, 2, 3])) if ndim >= 3 else 1
    q_len, kv_len, head_dim = draw(lengths), draw(lengths), draw(dims)
    value_dim = draw(st.one_of(st.just(head_dim), dims))
    magnitude = draw(st.sampled_from([1.0, 1.0, 0.01, 8.0]))

    def array(heads, rows, columns):
        values = (rng.standard_normal((batch, heads, rows, columns)) * magnitude).astype(np.float32)
        values = values[(0,) * (4 - ndim)]
        return arrange(values, draw(st.sampled_from(LAYOUTS)))

    query = array(heads, q_len, head_dim)
    key, value = array(kv_heads, kv_len, head_dim), array(kv_heads, kv_len, value_dim)
    attn_mask = draw(masks(rng, (batch, heads, q_len, kv_len)[4 - ndim :]))

    options = {"is_causal": draw(st.booleans())}
    offsets = st.integers(-kv_len - 3, kv_len + 3)
    positions = st.one_of(st.just(0), st.just(kv_len - q_len), offsets)
    options["query_offset"] = draw(positions)
    if ndim == 4 and draw(st.booleans()):
        options["query_offset"] = np.array([draw(positions) for _ in range(batch)], np.int64)
    if ndim == 4 and draw(st.booleans()):
        limit = st.one_of(st.just(0), st.just(kv_len), st.integers(0, kv_len))
        options["key_lengths"] = np.array(
            [draw(limit) for _ in range(batch)], draw(st.sampled_from([np.int32, np.int64]))
        )
    side = st.one_of(st.none(), st.just(-1), st.integers(0, 70))
    options["window"] = draw(st.one_of(st.none(), st.tuples(side, side)))
    options["softcap"] = draw(st.sampled_from([0.0, 0.0, 0.5, 20.0]))
    options["scale"] = draw(st.sampled_from([None, None, 0.25, 1.0, -0.5, 0.0]))
    if ndim >= 3 and draw(st.booleans()):
        per_batch = ndim == 4 and draw(st.booleans())
        slopes = rng.normal(size=(batch, heads) if per_batch else (heads,))
        options["alibi_slopes"] = slopes.astype(np.float32)
    if draw(st.booleans()):
        reach = draw(st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 32, 128, 400])))
        bias = rng.normal(size=(heads, 2 * reach + 1)).astype(np.float32)
        options["relative_bias"] = arrange(bias, draw(st.sampled_from(LAYOUTS)))
    return query, key, value, attn_mask, options


@settings(max_examples=2500)
@given(call=calls(), return_weights=st.booleans(), return_lse=st.booleans(), use_out=st.booleans())
def test_attention_equals_the_oracle(call, return_weights, return_lse, use_out):
    query, key, value, attn_mask, options = call
    ask = {"return_weights": return_weights, "return_lse": return_lse}
    out = np.full((*query.shape[:-1], value.shape[-1]), np.nan, np.float32) if use_out else None
    result = fm.scaled_dot_product_attention(
        query, key, value, attn_mask, **options, **ask, out=out
    )
    if use_out:
        assert (result[0] if return_weights or return_lse else result) is out
    assert_attention(result, query, key, value, attn_mask, **options, **ask)


@settings(max_examples=300)
@given(call=calls(ndims=[4], min_batch=1))
def test_what_may_not_be_seen_does_not_matter(call):
    """NaN, inf and huge numbers behind every masked (query, key) pair leave the answer bit for bit
    alone.
    """
    query, key, value, attn_mask, options = call
    before = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    _, weights = fm.scaled_dot_product_attention(
        np.zeros_like(query), np.zeros_like(key), value, attn_mask,
        **{**options, "alibi_slopes": None, "relative_bias": None, "softcap": 0.0},
        return_weights=True,
    )  # fmt: skip
    batch, heads, q_len, kv_len = weights.shape
    kv_heads = key.shape[1]
    # With zero queries and keys (and a float mask near 0) a weight is 0 exactly where a key is
    # invisible.
    seen = (weights != 0).reshape(batch, kv_heads, heads // kv_heads, q_len, kv_len).any((2, 3))
    key, value = key.copy(), value.copy()
    key[~seen], value[~seen] = np.nan, np.inf
    assert_same_bits(
        fm.scaled_dot_product_attention(query, key, value, attn_mask, **options), before
    )


@settings(max_examples=300)
@given(call=calls(), threads=st.integers(1, 4))
def test_threads_do_not_change_a_bit(call, threads):
    query, key, value, attn_mask, options = call
    before = fm.get_num_threads()
    first = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    try:
        fm.set_num_threads(threads)
        again = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    finally:
        fm.set_num_threads(before)
    assert_same_bits(again, first)


@settings(max_examples=300)
@given(call=calls(ndims=[4], min_batch=1), data=st.data())
def test_each_sequence_is_computed_as_if_alone(call, data):
    query, key, value, attn_mask, options = call
    n = data.draw(st.integers(0, query.shape[0] - 1))
    alone = dict(options)
    for name in ("key_lengths", "query_offset", "alibi_slopes"):
        if np.ndim(alone.get(name)) == (2 if name == "alibi_slopes" else 1):
            alone[name] = alone[name][n : n + 1]
    if attn_mask is not None and attn_mask.ndim == 4 and attn_mask.shape[0] > 1:
        attn_mask_n = attn_mask[n : n + 1]
    else:
        attn_mask_n = attn_mask
    whole = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    one = slice(n, n + 1)
    part = fm.scaled_dot_product_attention(query[one], key[one], value[one], attn_mask_n, **alone)
    assert_same_bits(part, whole[one])


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), q_len=lengths, kv_len=st.integers(1, 140), value_dim=dims)
def test_output_is_an_average_of_values(seed, q_len, kv_len, value_dim):
    """Each output lies between the smallest and the largest value, and weights add up to 1."""
    query, key, value = Random(seed).attention(1, 2, q_len, kv_len, 8, value_dim=value_dim)
    out, weights = fm.scaled_dot_product_attention(query, key, value, return_weights=True)
    margin = 1e-5 * np.abs(value).max()
    assert (out <= value.max(2, keepdims=True) + margin).all()
    assert (out >= value.min(2, keepdims=True) - margin).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights >= 0).all()


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), q_len=st.integers(1, 20), kv_len=st.integers(1, 70))
def test_order_of_keys_does_not_matter(seed, q_len, kv_len):
    random = Random(seed)
    query, key, value = random.attention(1, 2, q_len, kv_len, 8)
    order = random.rng.permutation(kv_len)
    shuffled = fm.scaled_dot_product_attention(query, key[:, :, order], value[:, :, order])
    assert_attention(shuffled, query, key, value)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    q_len=st.integers(1, 20),
    kv_len=st.integers(2, 140),
    data=st.data(),
)
def test_parts_merge_by_their_lse(seed, q_len, kv_len, data):
    """What lse is for: attention over two halves of the keys, merged by their lse, is attention
    over all.
    """
    query, key, value = Random(seed).attention(1, 2, q_len, kv_len, 8)
    cut = data.draw(st.integers(1, kv_len - 1))
    parts = [
        fm.scaled_dot_product_attention(query, key[:, :, half], value[:, :, half], return_lse=True)
        for half in (slice(None, cut), slice(cut, None))
    ]
    outs = np.stack([part[0] for part in parts]).astype(np.float64)
    lse = np.stack([part[1] for part in parts]).astype(np.float64)
    share = np.exp(lse - np.logaddexp(*lse))
    merged = (share[..., None] * outs).sum(0)
    np.testing.assert_allclose(
        fm.scaled_dot_product_attention(query, key, value), merged, rtol=1e-4, atol=1e-5
    )
