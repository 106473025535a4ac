"""Masked positions are never read: NaN, inf or garbage there changes no bit; visible NaN reaches
its rows and no others.
"""

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits
from tolerance import assert_attention

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 20
GARBAGE = [np.nan, np.inf, -np.inf, np.float32(3e38)]


def mask_cases(q_len, kv_len, rng):
    """(name, attn_mask, options): every way to hide a key, alone and joined."""
    shape = (BATCH, HEADS, q_len, kv_len)
    lengths = np.array([kv_len // 2, kv_len - 1])
    end = kv_len - q_len
    boolean = rng.random(shape) < 0.5
    # One whole group of query heads must agree on hiding a key before that key may hold garbage.
    boolean[..., kv_len // 3 :: 3] = False
    additive = np.where(boolean, np.float32(0.25), np.float32(-np.inf))
    yield "key_lengths", None, {"key_lengths": lengths}
    yield "no keys", None, {"key_lengths": np.array([0, kv_len])}
    yield "causal", None, {"is_causal": True}
    yield "causal, offset", None, {"is_causal": True, "query_offset": np.array([end - 2, end // 2])}
    yield "negative offset", None, {"is_causal": True, "query_offset": -q_len}
    yield "window", None, {"window": (3, 2), "query_offset": end // 2}
    yield "window, relative bias", None, {
        "window": (8, 3), "relative_bias": rng.standard_normal((HEADS, 11)).astype(np.float32),
        "query_offset": end // 2,
    }  # fmt: skip
    yield "window left", None, {"window": (5, None), "query_offset": end}
    yield "window past the end", None, {"window": (1, 1), "query_offset": kv_len + 50}
    yield "bool", boolean, {}
    yield "bool over keys", boolean[:1, :1, :1], {}
    yield "-inf", additive, {}
    yield "-inf over keys", additive[:1, :1, :1], {}
    yield "all together", boolean, {
        "key_lengths": lengths, "is_causal": True, "query_offset": end, "window": (kv_len // 2, 0),
        "alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32), "softcap": 4.0,
        "relative_bias": rng.standard_normal((HEADS, 21)).astype(np.float32),
    }  # fmt: skip


CASE_NAMES = [name for name, _, _ in mask_cases(2, 8, np.random.default_rng(0))]
SIZES = [(1, 70), (1, 1030), (2, 9), (5, 13), (20, 40), (33, 130), (70, 257)]


def visibility(query, key, attn_mask, options):
    from reference import attention_scores

    return attention_scores(query, key, attn_mask, **options)[1]


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_garbage_where_no_query_looks(random, q_len, kv_len, case, garbage):
    """Keys hidden from every query of their kv head: their rows of K and V may hold anything."""
    query, key, value = random.attention(BATCH, HEADS, q_len, kv_len, DIM, kv_heads=KV_HEADS)
    cases = {name: rest for name, *rest in mask_cases(q_len, kv_len, random.rng)}
    attn_mask, options = cases[case]
    visible = visibility(query, key, attn_mask, options)
    hidden = ~visible.reshape(BATCH, KV_HEADS, -1, kv_len).any(2)  # (B, Hkv, S)
    assert hidden.any() or case.startswith("causal"), "the case hides nothing"

    ask = {"return_weights": True, "return_lse": True}
    dirty_key, dirty_value = key.copy(), value.copy()
    dirty_key[hidden], dirty_value[hidden] = garbage, garbage
    clean = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    dirty = fm.scaled_dot_product_attention(query, dirty_key, dirty_value, attn_mask, **options)
    assert_same_bits(dirty, clean)
    with_parts = fm.scaled_dot_product_attention(
        query, dirty_key, dirty_value, attn_mask, **options, **ask
    )
    assert_attention(with_parts, query, key, value, attn_mask, **options, **ask)
    for name, part in (("key", (dirty_key, value)), ("value", (key, dirty_value))):
        assert_same_bits(
            fm.scaled_dot_product_attention(query, *part, attn_mask, **options), clean, name
        )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["key", "value", "both"])
@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_each_pair_on_its_own(random, q_len, kv_len, case, where, garbage):
    """One non-finite row of K or V: every row that may see it is spoiled, every other keeps its
    bits.
    """
    query, key, value = random.attention(BATCH, HEADS, q_len, kv_len, DIM, kv_heads=KV_HEADS)
    cases = {name: rest for name, *rest in mask_cases(q_len, kv_len, random.rng)}
    attn_mask, options = cases[case]
    visible = visibility(query, key, attn_mask, options)
    clean = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    for j in {0, 1, kv_len // 3, kv_len // 2, kv_len - 2, kv_len - 1}:
        dirty_key, dirty_value = key.copy(), value.copy()
        # A key of +-inf alone may be a legitimate score of -inf; NaN in keys, anything in values.
        if where != "value":
            dirty_key[:, :, j, DIM // 2] = np.nan
        if where != "key":
            dirty_value[:, :, j] = garbage
        out = fm.scaled_dot_product_attention(query, dirty_key, dirty_value, attn_mask, **options)
        sees = visible[..., j]  # (B, Hq, L)
        assert_same_bits(out[~sees], clean[~sees], f"rows that may not see key {j}")
        assert not np.isfinite(out[sees]).any(), f"rows that see key {j} must show it"
        if where != "value" or np.isnan(garbage):
            assert np.isnan(out[sees]).all()


@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_weights_and_lse_of_spoiled_rows(random, q_len, kv_len, case):
    """A visible NaN in a key spoils the weights that its rows give to visible keys, and their lse;
    what they give to hidden keys stays 0."""
    query, key, value = random.attention(BATCH, HEADS, q_len, kv_len, DIM, kv_heads=KV_HEADS)
    cases = {name: rest for name, *rest in mask_cases(q_len, kv_len, random.rng)}
    attn_mask, options = cases[case]
    ask = {"return_weights": True, "return_lse": True}
    for j in {0, kv_len // 2, kv_len - 1}:
        dirty = key.copy()
        dirty[:, :, j, 0] = np.nan
        result = fm.scaled_dot_product_attention(query, dirty, value, attn_mask, **options, **ask)
        assert_attention(result, query, dirty, value, attn_mask, **options, **ask)


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_nan_in_one_query_stays_in_its_row(random, q_len, kv_len):
    query, key, value = random.attention(BATCH, HEADS, q_len, kv_len, DIM, kv_heads=KV_HEADS)
    clean = fm.scaled_dot_product_attention(query, key, value, return_lse=True)
    for i in {0, q_len // 2, q_len - 1}:
        dirty = query.copy()
        dirty[:, :, i, 3] = np.nan
        out, lse = fm.scaled_dot_product_attention(dirty, key, value, return_lse=True)
        others = np.arange(q_len) != i
        assert np.isnan(out[:, :, i]).all()
        assert np.isnan(lse[:, :, i]).all()
        assert_same_bits(out[:, :, others], clean[0][:, :, others])
        assert_same_bits(lse[:, :, others], clean[1][:, :, others])


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_nan_in_one_value_column_stays_in_its_column(random, q_len, kv_len):
    query, key, value = random.attention(1, 2, q_len, kv_len, DIM)
    clean = fm.scaled_dot_product_attention(query, key, value)
    value[:, :, kv_len // 2, 7] = np.nan
    out = fm.scaled_dot_product_attention(query, key, value)
    others = np.arange(DIM) != 7
    assert np.isnan(out[..., 7]).all()
    assert_same_bits(out[..., others], clean[..., others])


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_nan_in_a_query_without_keys(random, q_len, kv_len):
    """A row that may see no key is zero, whatever its query holds."""
    query, key, value = random.attention(BATCH, 2, q_len, kv_len, DIM)
    query[0], key[0], value[0] = np.nan, np.nan, np.nan
    out, weights, lse = fm.scaled_dot_product_attention(
        query, key, value, key_lengths=[0, kv_len], return_weights=True, return_lse=True
    )
    assert not out[0].any()
    assert not weights[0].any()
    assert (lse[0] == -np.inf).all()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("hide", ["bool", "-inf", "window", "causal", "key_lengths"])
@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_rows_without_keys_are_zero(random, q_len, kv_len, hide):
    query, key, value = random.attention(BATCH, 2, q_len, kv_len, DIM)
    attn_mask, options = {
        "bool": (np.zeros((q_len, kv_len), bool), {}),
        "-inf": (np.full((q_len, kv_len), -np.inf, np.float32), {}),
        "window": (None, {"window": (2, 2), "query_offset": kv_len + 3}),
        "causal": (None, {"is_causal": True, "query_offset": -q_len}),
        "key_lengths": (None, {"key_lengths": [0, 0]}),
    }[hide]
    out, weights, lse = fm.scaled_dot_product_attention(
        query, key, value, attn_mask, **options, return_weights=True, return_lse=True
    )
    assert_same_bits(out, np.zeros_like(out))
    assert_same_bits(weights, np.zeros_like(weights))
    assert_same_bits(lse, np.full_like(lse, -np.inf))


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_nan_in_a_float_mask(random, q_len, kv_len):
    """NaN in the mask is not -inf: its position is visible, so its row is NaN, and no other."""
    query, key, value = random.attention(1, 2, q_len, kv_len, DIM)
    attn_mask = np.zeros((q_len, kv_len), np.float32)
    clean = fm.scaled_dot_product_attention(query, key, value, attn_mask)
    attn_mask[q_len // 2, kv_len // 2] = np.nan
    out = fm.scaled_dot_product_attention(query, key, value, attn_mask)
    others = np.arange(q_len) != q_len // 2
    assert np.isnan(out[:, :, q_len // 2]).all()
    assert_same_bits(out[:, :, others], clean[:, :, others])


@pytest.mark.parametrize(("q_len", "kv_len"), SIZES)
def test_lowest_float_in_a_mask(random, q_len, kv_len):
    """Some write the lowest float for "masked". It is finite: beside other keys its weight is 0,
    but a row of nothing else is the average of its values, not zeros and not NaN."""
    query, key, value = random.attention(1, 2, q_len, kv_len, DIM)
    lowest = np.finfo(np.float32).min
    attn_mask = np.zeros((q_len, kv_len), np.float32)
    attn_mask[:, kv_len // 2 :] = lowest
    out, weights = fm.scaled_dot_product_attention(
        query, key, value, attn_mask, return_weights=True
    )
    assert not weights[..., kv_len // 2 :].any()
    assert_attention(out, query, key[:, :, : kv_len // 2], value[:, :, : kv_len // 2])
    attn_mask[:] = lowest
    out, weights = fm.scaled_dot_product_attention(
        query, key, value, attn_mask, return_weights=True
    )
    np.testing.assert_allclose(weights, 1 / kv_len, rtol=1e-5)
    average = value.mean(2, keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(out, np.broadcast_to(average, out.shape), atol=1e-5)


@pytest.mark.parametrize("q_len", [2, 5, 20, 70])
def test_mask_values_where_no_key_exists(random, q_len):
    """What a mask says about keys past key_lengths is never read either."""
    query, key, value = random.attention(BATCH, 2, q_len, 50, DIM)
    attn_mask = random.normal(BATCH, 1, q_len, 50)
    lengths = np.array([13, 37])
    clean = fm.scaled_dot_product_attention(query, key, value, attn_mask, key_lengths=lengths)
    for n, length in enumerate(lengths):
        attn_mask[n, :, :, length:] = np.nan
    dirty = fm.scaled_dot_product_attention(query, key, value, attn_mask, key_lengths=lengths)
    assert_same_bits(dirty, clean)


@pytest.mark.parametrize("q_len", [1, 5, 40])
def test_garbage_around_the_arrays(random, q_len):
    """Vector loads at the edges of an array see foreign memory: it must not reach a result."""
    plain = random.attention(2, 2, q_len, 37, 19)
    clean = fm.scaled_dot_product_attention(*plain)
    views = []
    for array in plain:
        wide = np.full((4, 4, array.shape[2] + 4, array.shape[3] + 4), np.nan, np.float32)
        wide[1:3, 1:3, 2:-2, 2:-2] = array
        views.append(wide[1:3, 1:3, 2:-2, 2:-2])
    assert_same_bits(fm.scaled_dot_product_attention(*views), clean)
