"""varlen_attention: sequences packed end to end, against the oracle and against the padded form."""

import fastmha as fm
import numpy as np
import pytest
import reference
from conftest import Random
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close, attention_bounds


def packed(random, q_lengths, kv_lengths, heads, head_dim, *, kv_heads=None, value_dim=None):
    """(query, key, value, cu_seqlens_q, cu_seqlens_k)."""
    kv_heads = kv_heads or heads
    cu_q, cu_k = (
        np.r_[0, np.cumsum(lengths)].astype(np.int64) for lengths in (q_lengths, kv_lengths)
    )
    query = random.normal(cu_q[-1], heads, head_dim)
    key = random.normal(cu_k[-1], kv_heads, head_dim)
    value = random.normal(cu_k[-1], kv_heads, head_dim if value_dim is None else value_dim)
    return query, key, value, cu_q, cu_k


def bounds(query, key, value, cu_q, cu_k, **options):
    """attention_bounds of each sequence, laid out like the packed results."""
    offsets = np.broadcast_to(options.pop("query_offset", 0), (len(cu_q) - 1,))
    slopes = options.pop("alibi_slopes", None)
    out, lse = np.zeros((*query.shape[:2], value.shape[-1])), np.zeros(query.shape[:2])
    weights = []
    for n in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        own = slopes[n] if slopes is not None and slopes.ndim == 2 else slopes
        heads_first = [a.transpose(1, 0, 2) for a in (query[rows], key[keys], value[keys])]
        o, w, s = attention_bounds(
            *heads_first, query_offset=offsets[n], alibi_slopes=own, **options
        )
        out[rows], lse[rows] = o.transpose(1, 0, 2), s.T
        weights.append(w)
    return out, weights, lse


def check(query, key, value, cu_q, cu_k, **options):
    expected = reference.varlen_attention(query, key, value, cu_q, cu_k, **options)
    allowed = bounds(query, key, value, cu_q, cu_k, **options)
    out, weights, lse = fm.varlen_attention(
        query, key, value, cu_q, cu_k, **options, return_weights=True, return_lse=True
    )
    assert_close(out, expected[0], allowed[0], "out")
    assert_close(lse, expected[2], allowed[2], "lse")
    assert isinstance(weights, list)
    assert len(weights) == len(cu_q) - 1
    for n, (got, want, bound) in enumerate(zip(weights, expected[1], allowed[1], strict=True)):
        assert_close(got, want, bound, f"weights of sequence {n}")
    assert_close(
        fm.varlen_attention(query, key, value, cu_q, cu_k, **options), expected[0], allowed[0]
    )
    return out


LENGTHS = [
    [5], [1], [5, 3, 8], [1, 1, 1], [0, 4, 0, 2, 0], [33, 1, 64, 17, 128, 2], [300, 5], [0], [0, 0],
    [7] * 40,
]  # fmt: skip


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_self_attention(random, lengths, is_causal):
    query, key, value, cu, _ = packed(random, lengths, lengths, 4, 24, kv_heads=2, value_dim=17)
    check(query, key, value, cu, cu, is_causal=is_causal)
    a = fm.varlen_attention(query, key, value, cu, is_causal=is_causal)
    b = fm.varlen_attention(query, key, value, cu, cu, is_causal=is_causal)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("q_lengths", "kv_lengths"),
    [
        ([3, 7, 1], [9, 2, 40]), ([1, 1, 1], [300, 0, 17]), ([5, 0, 6], [0, 8, 9]), ([70, 3], [3,
        140]),
        ([1], [5000]), ([2, 1], [600, 600]),
    ],
)  # fmt: skip
def test_cross_attention(random, q_lengths, kv_lengths):
    check(*packed(random, q_lengths, kv_lengths, 2, 16))
    check(
        *packed(random, q_lengths, kv_lengths, 6, 8, kv_heads=3, value_dim=5),
        softcap=3.0,
        scale=0.4,
    )


def test_every_option(random):
    arrays = packed(random, [5, 40, 0, 1, 17], [9, 40, 3, 80, 0], 4, 16, kv_heads=2)
    offsets = np.array([4, 0, -2, 79, 3])
    per_sequence = random.normal(5, 4)
    for options in (
        {"query_offset": 3, "is_causal": True},
        {"query_offset": offsets, "is_causal": True},
        {"query_offset": offsets, "window": (6, 2)},
        {"window": (0, None)},
        {"alibi_slopes": per_sequence[0], "query_offset": offsets},
        {"alibi_slopes": per_sequence},
        {"relative_bias": random.normal(4, 11)},
        {"relative_bias": random.normal(4, 201), "query_offset": offsets, "is_causal": True},
        {"softcap": 2.0, "scale": 0.5},
        {
            "query_offset": offsets, "is_causal": True, "window": (30, 5),
            "alibi_slopes": per_sequence, "relative_bias": random.normal(4, 7),
            "softcap": 5.0, "scale": 0.2,
        },
    ):  # fmt: skip
        check(*arrays, **options)


@pytest.mark.parametrize("as_type", [list, tuple, np.int32, np.int64, np.uint16])
def test_cu_seqlens_types(random, as_type):
    query, key, value, cu, _ = packed(random, [5, 3], [5, 3], 2, 8)
    lengths = as_type(cu.tolist()) if as_type in (list, tuple) else cu.astype(as_type)
    expected = fm.varlen_attention(query, key, value, cu)
    np.testing.assert_array_equal(fm.varlen_attention(query, key, value, lengths), expected)


def test_layouts_and_out(random):
    query, key, value, cu, _ = packed(random, [5, 30, 2], [5, 30, 2], 4, 16)
    expected = fm.varlen_attention(query, key, value, cu, is_causal=True)
    fused = np.full((37, 3, 4, 20), np.nan, np.float32)  # as one q, k, v projection leaves them
    fused[:, 0, :, :16], fused[:, 1, :, :16], fused[:, 2, :, :16] = query, key, value
    views = [fused[:, part, :, :16] for part in range(3)]
    np.testing.assert_array_equal(fm.varlen_attention(*views, cu, is_causal=True), expected)
    heads_first = [
        np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2) for a in (query, key, value)
    ]
    np.testing.assert_array_equal(fm.varlen_attention(*heads_first, cu, is_causal=True), expected)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in (query, key, value)]
    np.testing.assert_array_equal(fm.varlen_attention(*strided, cu, is_causal=True), expected)
    backwards = [a[::-1].copy()[::-1] for a in (query, key, value)]
    np.testing.assert_array_equal(fm.varlen_attention(*backwards, cu, is_causal=True), expected)
    out = np.full_like(expected, np.nan)
    assert fm.varlen_attention(query, key, value, cu, is_causal=True, out=out) is out
    np.testing.assert_array_equal(out, expected)
    wide = np.full((37, 4, 19), np.nan, np.float32)
    fm.varlen_attention(query, key, value, cu, is_causal=True, out=wide[..., 1:17])
    np.testing.assert_array_equal(wide[..., 1:17], expected)
    assert np.isnan(wide[..., [0, 17, 18]]).all()


def test_neighbours_are_never_read(random):
    """NaN in one sequence stays in that sequence."""
    query, key, value, cu, _ = packed(random, [5, 30, 0, 2, 70], [5, 30, 0, 2, 70], 2, 16)
    clean = fm.varlen_attention(query, key, value, cu)
    for n in (0, 1, 3, 4):
        rows = slice(cu[n], cu[n + 1])
        others = np.ones(len(query), bool)
        others[rows] = False
        dirty = [a.copy() for a in (query, key, value)]
        for a in dirty:
            a[rows] = np.nan
        out = fm.varlen_attention(*dirty, cu)
        assert np.isnan(out[rows]).all()
        np.testing.assert_array_equal(out[others], clean[others])


lengths = st.lists(st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 33, 65])), max_size=6)


@settings(max_examples=400)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_varlen_equals_the_oracle(data, seed):
    random = Random(seed)
    q_lengths = data.draw(lengths)
    if data.draw(st.booleans()):
        kv_lengths = q_lengths
    else:
        kv_lengths = [data.draw(st.integers(0, 40)) for _ in q_lengths]
    kv_heads = data.draw(st.integers(1, 2))
    heads = kv_heads * data.draw(st.integers(1, 3))
    dims = st.sampled_from([1, 3, 8, 16, 20])
    arrays = packed(
        random,
        q_lengths,
        kv_lengths,
        heads,
        data.draw(dims),
        kv_heads=kv_heads,
        value_dim=data.draw(dims),
    )
    offset = st.integers(-10, 40)
    options = {
        "is_causal": data.draw(st.booleans()),
        "query_offset": data.draw(offset),
        "softcap": data.draw(st.sampled_from([0.0, 2.0])),
        "scale": data.draw(st.sampled_from([None, 0.3])),
    }
    if data.draw(st.booleans()):
        options["query_offset"] = np.array([data.draw(offset) for _ in q_lengths], np.int64)
    side = st.one_of(st.none(), st.just(-1), st.integers(0, 20))
    options["window"] = data.draw(st.one_of(st.none(), st.tuples(side, side)))
    slopes = data.draw(st.sampled_from([None, (heads,), (len(q_lengths), heads)]))
    if slopes is not None:
        options["alibi_slopes"] = random.normal(*slopes)
    if data.draw(st.booleans()):
        options["relative_bias"] = random.normal(heads, 2 * data.draw(st.integers(0, 50)) + 1)
    check(*arrays, **options)


def test_weights_of_short_sequences_are_written(random):
    """Ragged weights lie in arrays of their own; short sequences once passed over them."""
    lengths = [5, 3, 14]
    bounds = np.cumsum([0, *lengths])
    query, key, value = (random.normal(bounds[-1], 4, 16) for _ in range(3))
    _, weights = fm.varlen_attention(query, key, value, bounds, return_weights=True)
    for n, length in enumerate(lengths):
        rows = slice(bounds[n], bounds[n + 1])
        q, k, v = (x[rows].transpose(1, 0, 2) for x in (query, key, value))
        _, alone = fm.scaled_dot_product_attention(q, k, v, return_weights=True)
        np.testing.assert_array_equal(weights[n], alone, f"sequence {n} of length {length}")


def test_empty_sequences_among_many_short_ones(random):
    """So many that results go past the caches and what comes next is fetched: nothing was divided
    into no steps."""
    lengths = [0, 0, *[5] * 400, 0, *[3] * 300, 0]
    bounds = np.cumsum([0, *lengths])
    q, k, v = (random.normal(bounds[-1], 8, 320) for _ in range(3))
    out = fm.varlen_attention(q, k, v, bounds)
    few = fm.varlen_attention(q[:13], k[:13], v[:13], [0, 5, 10, 13])
    np.testing.assert_array_equal(out[:10], few[:10])
    last = slice(bounds[-1] - 3, bounds[-1])
    alone = fm.varlen_attention(q[last], k[last], v[last], [0, 3])
    np.testing.assert_array_equal(out[last], alone)


@pytest.mark.parametrize("slope", [np.nan, np.inf, 3e38])
def test_slopes_that_are_no_numbers_are_refused(random, slope):
    q = random.normal(4, 2, 8)
    slopes = np.array([0.5, slope], np.float32)
    with pytest.raises(ValueError, match=r"alibi_slopes must be finite and at most 2\.3e38"):
        fm.varlen_attention(q, q, q, [0, 4], alibi_slopes=slopes)
