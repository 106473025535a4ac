"""scaled_dot_product_attention against the float64 oracle: sizes at tile edges, every argument,
every layout.
"""

import fastmha as fm
import numpy as np
import pytest
import reference
import torch
from conftest import Random
from tolerance import assert_attention, assert_close, attention_bounds

# Tiles are 16 or 32 queries, up to 14 keys high and 64 to 256 keys long: straddle all of these.
Q_LENGTHS = [1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
KV_LENGTHS = [*Q_LENGTHS, 13, 14, 255, 256, 257]
HEAD_DIMS = [1, 2, 3, 8, 15, 16, 17, 33, 64, 80, 96, 128, 192]


def check(query, key, value, attn_mask=None, **options):
    asked = {name: options.pop(name, False) for name in ("return_weights", "return_lse")}
    result = fm.scaled_dot_product_attention(query, key, value, attn_mask, **options, **asked)
    options.pop("out", None)
    assert_attention(result, query, key, value, attn_mask, **options, **asked)
    return result


@pytest.mark.parametrize("kv_len", KV_LENGTHS)
@pytest.mark.parametrize("q_len", Q_LENGTHS)
def test_lengths(random, q_len, kv_len):
    query, key, value = random.attention(1, 2, q_len, kv_len, 16)
    check(query, key, value)
    check(query, key, value, is_causal=True, query_offset=kv_len - q_len)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 300), (5, 5), (17, 33), (70, 131)])
def test_head_dims(random, head_dim, q_len, kv_len):
    check(*random.attention(2, 2, q_len, kv_len, head_dim))


@pytest.mark.parametrize("value_dim", HEAD_DIMS)
@pytest.mark.parametrize("head_dim", [1, 8, 64, 96])
@pytest.mark.parametrize("q_len", [1, 7, 33])
def test_value_dim_differs_from_head_dim(random, q_len, head_dim, value_dim):
    query, key, value = random.attention(1, 2, q_len, 67, head_dim, value_dim=value_dim)
    check(query, key, value, return_weights=True, return_lse=True)


@pytest.mark.parametrize("kv_len", [4096, 4097, 5000])
def test_single_query_over_many_keys(random, kv_len):
    """The decode path splits the keys and merges the parts."""
    query, key, value = random.attention(1, 4, 1, kv_len, 64, kv_heads=2)
    check(query, key, value, return_weights=True, return_lse=True)
    check(query, key, value, is_causal=True, query_offset=kv_len - 2, window=(1500, None))


@pytest.mark.parametrize(("batch", "heads", "length"), [(1024, 8, 5), (64, 3, 9), (100, 2, 1)])
def test_many_tiny_sequences(random, batch, heads, length):
    query, key, value = random.attention(batch, heads, length, length, 64)
    # The oracle walks rows in Python: a sample of sequences, first and last included, says enough.
    out = fm.scaled_dot_product_attention(query, key, value)
    some = np.r_[0:5, batch // 2, batch - 5 : batch]
    q, k, v = query[some], key[some], value[some]
    assert_attention(out[some], q, k, v)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 1), (4, 2), (6, 2), (8, 1), (12, 4), (32, 8)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 40), (1, 600), (5, 5), (20, 70)])
def test_grouped_query_heads(random, heads, kv_heads, q_len, kv_len):
    query, key, value = random.attention(2, heads, q_len, kv_len, 24, kv_heads=kv_heads)
    check(query, key, value, return_weights=True, return_lse=True)


@pytest.mark.parametrize("q_len", [1, 6, 40])
@pytest.mark.parametrize("batch", [1, 3])
def test_two_and_three_dimensional_inputs(random, batch, q_len):
    query, key, value = random.attention(batch, 4, q_len, 45, 20, kv_heads=2, value_dim=12)
    ask = {"return_weights": True, "return_lse": True}
    options = {"is_causal": True, "query_offset": 30, "softcap": 5.0}
    for q, k, v in zip(query, key, value, strict=True):
        result = check(q, k, v, **options, **ask)  # (H, L, E)
        assert [part.shape for part in result] == [(4, q_len, 12), (4, q_len, 45), (4, q_len)]
        result = check(q[0], k[0], v[0], **options, **ask)  # (L, E)
        assert [part.shape for part in result] == [(q_len, 12), (q_len, 45), (q_len,)]
        alibi = np.array([0.5, 0.25, 0.125, 0.1], np.float32)
        check(q, k, v, alibi_slopes=alibi, **ask)
        mask = random.rng.random((q_len, 45)) < 0.6
        check(q, k, v, mask, **ask)
        check(q[0], k[0], v[0], mask, **ask)


MASK_SHAPES = [
    (3, 4, 9, 21), (3, 1, 9, 21), (1, 4, 9, 21), (1, 1, 9, 21), (9, 21), (4, 9, 21), (3, 1, 1, 21),
    (21,), (1, 21), (9, 1), (3, 4, 9, 1), (3, 1, 1, 1), (1,), (), (4, 1, 1), (1, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float", "float with -inf"])
def test_mask_shapes(random, kind, shape):
    query, key, value = random.attention(3, 4, 9, 21, 16, kv_heads=2)
    mask = random.rng.random(shape) < 0.7 if kind == "bool" else random.normal(*shape, scale=3)
    mask = np.asarray(mask)
    if kind == "float with -inf":
        mask = np.where(random.rng.random(shape) < 0.3, np.float32(-np.inf), mask)
    before = mask.copy()
    check(query, key, value, mask, return_weights=True, return_lse=True)
    check(query[:, :, :1], key, value, mask[..., :1, :] if mask.ndim > 1 else mask, return_lse=True)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("kind", ["transposed", "reversed", "sliced", "broadcast", "F-order"])
def test_mask_layouts(random, kind):
    query, key, value = random.attention(2, 3, 20, 70, 16)
    full = random.rng.random((2, 3, 40, 140)) < 0.6
    mask = {
        "transposed": full[:, :, :20, :70].transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2),
        "reversed": full[:, :, :20, :70][..., ::-1, ::-1],
        "sliced": full[:, :, ::2, ::2],
        "broadcast": np.broadcast_to(full[:, :1, :1, :70], (2, 3, 20, 70)),
        "F-order": np.asfortranarray(full[:, :, :20, :70]),
    }[kind]
    check(query, key, value, mask)
    additive = np.where(mask, np.float32(0.5), np.float32(-np.inf))
    check(query, key, value, additive[..., ::-1, :])


def layouts(array):
    """The values of `array` (B, H, L, E) behind every kind of view."""
    batch, heads, length, dim = array.shape
    yield "contiguous", array.copy()
    yield "BLHE", np.ascontiguousarray(array.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    yield "LBHE", np.ascontiguousarray(array.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)
    yield "F-order", np.asfortranarray(array)
    yield "last axis strided", np.repeat(array, 2, axis=-1)[..., ::2]
    yield "last axis reversed", array[..., ::-1].copy()[..., ::-1]
    yield "rows reversed", array[:, :, ::-1].copy()[:, :, ::-1]
    yield "all reversed", array[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]
    yield "rows skipped", np.repeat(array, 3, axis=2)[:, :, ::3]
    wide = np.full((batch, heads, length, dim + 5), np.nan, np.float32)
    wide[..., 2:-3] = array
    yield "inside wider rows", wide[..., 2:-3]
    for offset in (1, 3):  # floats: off every vector boundary
        memory = np.full(array.size + 16, np.nan, np.float32)
        view = memory[offset : offset + array.size].reshape(array.shape)
        view[...] = array
        yield f"offset by {offset} floats", view
    read_only = array.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    # Bytes that do not start on a float: legal NumPy, so it must give the right answer.
    raw = np.zeros(array.nbytes + 8, np.uint8)
    odd = raw[1 : 1 + array.nbytes].view(np.float32).reshape(array.shape)
    odd[...] = array
    yield "not aligned to 4 bytes", odd


LAYOUTS = [name for name, _ in layouts(np.zeros((1, 1, 1, 1), np.float32))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 130), (5, 5), (19, 70)])
def test_layouts(random, layout, q_len, kv_len):
    plain = random.attention(2, 4, q_len, kv_len, 24, kv_heads=2, value_dim=20)
    views = [dict(layouts(array))[layout] for array in plain]
    for view, array in zip(views, plain, strict=True):
        np.testing.assert_array_equal(view, array)
    ask = {"return_weights": True, "return_lse": True}
    assert_attention(fm.scaled_dot_product_attention(*views, **ask), *plain, **ask)
    for changed in range(3):  # and one at a time
        mixed = [views[i] if i == changed else plain[i] for i in range(3)]
        assert_attention(
            fm.scaled_dot_product_attention(*mixed, is_causal=True), *plain, is_causal=True
        )
    for view, array in zip(views, plain, strict=True):
        np.testing.assert_array_equal(view, array)  # inputs are left alone


def test_broadcast_views(random):
    """Stride 0 along batch, heads, rows and even the last axis."""
    query, key, value = random.attention(3, 4, 7, 33, 16)
    one_batch = np.broadcast_to(key[:1], key.shape), np.broadcast_to(value[:1], value.shape)
    check(query, *one_batch)
    one_head = np.broadcast_to(key[:, :1], key.shape), np.broadcast_to(value[:, :1], value.shape)
    check(query, *one_head)
    one_row = np.broadcast_to(query[:, :, :1], query.shape)
    check(one_row, np.broadcast_to(key[:, :, :1], key.shape), value)
    one_number = np.broadcast_to(np.float32(0.3), query.shape)
    check(one_number, key, np.broadcast_to(np.float32(2.0), value.shape))


def test_same_array_as_query_key_and_value(random):
    x = random.normal(2, 3, 40, 16)
    check(x, x, x)


OUT_LAYOUTS = [
    "contiguous", "BLHE", "LBHE", "rows reversed", "all reversed", "rows skipped",
    "inside wider rows",
    "offset by 1 floats", "offset by 3 floats",
]  # fmt: skip


@pytest.mark.parametrize("layout", OUT_LAYOUTS)
@pytest.mark.parametrize("q_len", [1, 5, 40])
@pytest.mark.parametrize("value_dim", [5, 16])
def test_out(random, q_len, value_dim, layout):
    query, key, value = random.attention(2, 4, q_len, 50, 16, value_dim=value_dim)
    out = dict(layouts(np.full((2, 4, q_len, value_dim), np.nan, np.float32)))[layout]
    memory = out if out.base is None else out.base
    untouched = np.isnan(memory).sum() - out.size
    result = fm.scaled_dot_product_attention(query, key, value, out=out)
    assert result is out
    assert_attention(np.ascontiguousarray(out), query, key, value)
    assert np.isnan(memory).sum() == untouched, "wrote outside of out"


def test_out_with_extras(random):
    query, key, value = random.attention(2, 4, 6, 50, 16)
    out = np.empty((2, 4, 6, 16), np.float32)
    result = fm.scaled_dot_product_attention(query, key, value, out=out, return_lse=True)
    assert isinstance(result, tuple)
    assert result[0] is out
    assert_attention(result, query, key, value, return_lse=True)


def test_out_with_fewer_dimensions(random):
    query, key, value = random.attention(1, 3, 6, 9, 8)
    out = np.empty((3, 6, 8), np.float32)
    assert fm.scaled_dot_product_attention(query[0], key[0], value[0], out=out) is out
    assert_attention(out, query[0], key[0], value[0])


@pytest.mark.parametrize(
    ("batch", "heads", "q_len", "kv_len", "value_dim"),
    [
        (0, 2, 3, 4, 8),
        (2, 2, 0, 4, 8),
        (2, 2, 3, 0, 8),
        (2, 2, 1, 0, 8),
        (2, 0, 3, 4, 8),
        (2, 2, 3, 4, 0),
    ],
)
def test_empty(random, batch, heads, q_len, kv_len, value_dim):
    query, key, value = random.attention(batch, heads, q_len, kv_len, 8, value_dim=value_dim)
    out, weights, lse = fm.scaled_dot_product_attention(
        query, key, value, return_weights=True, return_lse=True
    )
    assert out.shape == (batch, heads, q_len, value_dim)
    assert weights.shape == (batch, heads, q_len, kv_len)
    assert lse.shape == (batch, heads, q_len)
    if kv_len == 0:
        assert not out.any()
        assert (lse == -np.inf).all()


@pytest.mark.parametrize("q_len", [1, 9, 40])
@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0, 1e-3, 30.0, 1])
def test_scale(random, q_len, scale):
    query, key, value = random.attention(2, 2, q_len, 50, 16)
    check(query, key, value, scale=scale, return_weights=True, return_lse=True)


@pytest.mark.parametrize("q_len", [1, 40])
@pytest.mark.parametrize("softcap", [1.0, 30.0, 1e30])
def test_softcap_is_within_its_bound(q_len, softcap):
    """With a single key the log-sum-exp of a row is its score, and tanh stands there alone."""
    positive = np.concatenate([np.geomspace(1e-6, 1e4, 4000), np.linspace(0.1, 10, 4000)])
    x = np.concatenate([positive, -positive]).astype(np.float32).reshape(-1, 1, q_len, 1)
    query = x if softcap < 1e30 else x * np.float32(1e28)
    ones = np.ones((x.shape[0], 1, 1, 1), np.float32)
    result = fm.scaled_dot_product_attention(
        query, ones, ones, scale=1.0, softcap=softcap, return_lse=True
    )
    lse = result[-1].astype(np.float64)[..., None]
    want = softcap * np.tanh(query.astype(np.float64) / softcap)
    # tanh's 3.5e-7; the scale and the cap times log2(e), the products and ln(2) round 5 times.
    assert np.abs(lse / want - 1).max() <= 3.5e-7 + 6 * 2.0**-24


@pytest.mark.parametrize("q_len", [1, 9, 40])
@pytest.mark.parametrize("softcap", [0.0, 0.3, 5.0, 50.0, 1e4])
def test_softcap(random, q_len, softcap):
    query, key, value = random.attention(2, 2, q_len, 50, 16)
    check(4 * query, key, value, softcap=softcap, return_weights=True, return_lse=True)


@pytest.mark.parametrize("q_len", [1, 9, 40])
def test_alibi(random, q_len):
    query, key, value = random.attention(3, 4, q_len, 50, 16, kv_heads=2)
    slopes = np.array([0.5, 0.25, 2.0, 0.0], np.float32)
    per_batch = random.normal(3, 4)
    for alibi in (slopes, -slopes, per_batch, per_batch[:, ::-1], np.broadcast_to(slopes, (3, 4))):
        for offset in (0, 50 - q_len, -3, np.array([0, 7, -60])):
            options = {"alibi_slopes": alibi, "query_offset": offset}
            check(query, key, value, **options, return_weights=True, return_lse=True)
            check(query, key, value, **options, is_causal=True)


@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 50), (1, 700), (3, 5), (14, 14), (40, 50), (70, 300)]
)
@pytest.mark.parametrize("reach", [0, 1, 4, 31, 64, 800])
def test_relative_bias(random, q_len, kv_len, reach):
    """Every distance inside and outside the table, on both sides."""
    query, key, value = random.attention(2, 4, q_len, kv_len, 16, kv_heads=2)
    bias = 2 * random.normal(4, 2 * reach + 1)
    strided = np.full((8, 2 * reach + 4), np.nan, np.float32)[::2, 2:-1]
    strided[:] = bias
    for table in (bias, strided, -bias[:, ::-1], np.broadcast_to(bias[1], bias.shape)):
        for offset in (0, kv_len - q_len, -3, 2**40, -(2**40), np.array([reach + 9, -kv_len])):
            options = {"relative_bias": table, "query_offset": offset}
            check(query, key, value, **options, return_weights=True, return_lse=True)
            check(query, key, value, **options, is_causal=True, window=(40, None), softcap=2.0)


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 50), (5, 9), (40, 50)])
def test_relative_bias_of_distances_that_do_not_occur_is_never_read(random, q_len, kv_len):
    query, key, value = random.attention(2, 4, q_len, kv_len, 16)
    bias = random.normal(4, 401)
    offsets = np.array([7, -20])
    expected = fm.scaled_dot_product_attention(
        query, key, value, relative_bias=bias, query_offset=offsets
    )
    bias[:, : 200 - (q_len - 1 + 7)] = np.nan
    bias[:, 200 + kv_len + 20 :] = np.inf
    got = fm.scaled_dot_product_attention(
        query, key, value, relative_bias=bias, query_offset=offsets
    )
    np.testing.assert_array_equal(got, expected)


def test_relative_bias_is_a_mask_by_distance(random):
    """What it means, written out: a float mask whose entry depends on j - i."""
    query, key, value = random.attention(2, 3, 70, 150, 16)
    bias = random.normal(3, 201)
    distance = np.arange(150) - np.arange(70)[:, None]
    mask = bias[:, 100 + np.clip(distance, -100, 100)]
    np.testing.assert_array_equal(
        fm.scaled_dot_product_attention(query, key, value, relative_bias=bias),
        fm.scaled_dot_product_attention(query, key, value, mask),
    )


@pytest.mark.parametrize("q_len", [1, 6, 40])
@pytest.mark.parametrize(
    "window",
    [None, (None, None), (-1, -1), (0, 0), (3, 0), (0, 3), (-1, 2), (2, None), (100, 100), (1, -1)],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_window(random, q_len, window, is_causal):
    query, key, value = random.attention(2, 2, q_len, 45, 16)
    for offset in (0, 45 - q_len, -2, 60, np.array([5, -4])):
        options = {"window": window, "is_causal": is_causal, "query_offset": offset}
        check(query, key, value, **options, return_weights=True, return_lse=True)


@pytest.mark.parametrize("kv_len", [64, 130, 300, 700])
@pytest.mark.parametrize("window", [(0, 0), (1, 1), (16, 0), (17, 5), (63, 64), (130, None)])
def test_window_over_many_tiles(random, kv_len, window):
    query, key, value = random.attention(1, 1, kv_len, kv_len, 8)
    check(query, key, value, window=window)
    check(query, key, value, window=window, is_causal=True)


@pytest.mark.parametrize("q_len", [1, 6, 40])
@pytest.mark.parametrize("as_type", [np.int64, np.int32, np.uint8, list, tuple])
def test_key_lengths(random, q_len, as_type):
    query, key, value = random.attention(5, 2, q_len, 70, 16)
    lengths = [0, 1, 33, 69, 70]
    if as_type not in (list, tuple):
        lengths = np.array(lengths, as_type)
    check(query, key, value, key_lengths=as_type(lengths) if as_type in (list, tuple) else lengths)
    for options in ({"is_causal": True}, {"window": (4, 4), "query_offset": 3}, {"softcap": 2.0}):
        ask = {"return_weights": True, "return_lse": True}
        check(query, key, value, key_lengths=lengths, **options, **ask)


def test_strided_index_arrays(random):
    query, key, value = random.attention(3, 2, 6, 20, 16)
    lengths = np.array([7, 99, 0, 99, 20, 99], np.int64)[::2]
    offsets = np.array([1, -5, 14], np.int32)[::-1]
    check(query, key, value, key_lengths=lengths, query_offset=offsets, is_causal=True)


@pytest.mark.parametrize("q_len", [1, 6, 40])
def test_query_offset(random, q_len):
    query, key, value = random.attention(4, 2, q_len, 45, 16)
    for offset in (0, 5, 45 - q_len, -3, 1000, -1000, np.array([0, -50, 20, 45]), [1, 2, 3, 4]):
        check(query, key, value, is_causal=True, query_offset=offset, return_lse=True)


def test_causal_picture():
    """The picture of the documentation: q_len 2, kv_len 5, query_offset 3."""
    query, key, value = Random(1).attention(1, 1, 2, 5, 4)
    _, weights = fm.scaled_dot_product_attention(
        query, key, value, is_causal=True, query_offset=3, return_weights=True
    )
    np.testing.assert_array_equal(weights[0, 0] > 0, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("q_len", [1, 6, 40])
def test_everything_at_once(random, q_len):
    query, key, value = random.attention(3, 4, q_len, 77, 24, kv_heads=2, value_dim=10)
    mask = random.normal(3, 1, q_len, 77)
    mask[random.rng.random(mask.shape) < 0.2] = -np.inf
    check(
        query, key, value, mask, is_causal=True, scale=0.3, key_lengths=[0, 40, 77],
        query_offset=np.array([3, 20, 77 - q_len]), window=(30, 20), alibi_slopes=random.normal(3,
        4),
        softcap=3.0, relative_bias=random.normal(4, 41), return_weights=True, return_lse=True,
        out=np.empty((3, 4, q_len, 10),
        np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("q_len", [1, 9])
@pytest.mark.parametrize("magnitude", [1e-20, 1e-3, 30.0, 300.0])
def test_extreme_scores(random, q_len, magnitude):
    """Scores far beyond exp's range: the running maximum keeps every exponent at or below 0."""
    query, key, value = random.attention(1, 2, q_len, 300, 16)
    check(query * np.float32(magnitude), key, value, return_lse=True)
    rising = np.sort(random.normal(1, 2, 300, 1), axis=2) * np.ones(16, np.float32)
    for order in (rising, rising[:, :, ::-1]):  # the maximum arrives last, or first
        check(abs(query) * np.float32(magnitude), order, value, return_weights=True)


def test_large_values_keep_their_precision(random):
    """Values of 1e30 neither overflow nor lose relative precision."""
    query, key, value = random.attention(1, 2, 7, 90, 16)
    check(query, key, value * np.float32(1e30))
    check(query, key, value * np.float32(1e-30))


def test_scores_of_equal_size_average(random):
    """With zero queries every weight is 1/S: the simplest answer that can be known without the
    oracle.
    """
    value = random.normal(1, 1, 50, 16)
    zeros = np.zeros_like(value)
    out, weights, lse = fm.scaled_dot_product_attention(
        zeros, zeros, value, return_weights=True, return_lse=True
    )
    np.testing.assert_allclose(weights, 1 / 50, rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(50), rtol=1e-6)
    np.testing.assert_allclose(
        out, value.mean(2, keepdims=True).repeat(50, 2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_oracle_agrees_with_torch(random, is_causal, mask, heads, kv_heads):
    """The oracle itself, in float64, against torch wherever torch can say the same."""
    join_masks = is_causal and mask is not None  # torch refuses is_causal together with attn_mask
    query, key, value = random.attention(2, heads, 9, 13, 8, kv_heads=kv_heads, value_dim=5)
    attn_mask = None
    if mask:
        attn_mask = random.rng.random((2, 1, 9, 13)) < 0.7
        attn_mask[..., 0] = True  # torch leaves rows without keys to the backend
        attn_mask = attn_mask if mask == "bool" else np.where(attn_mask, 0.7, -np.inf)
    expected, _, _ = reference.attention(query, key, value, attn_mask, is_causal=is_causal)
    torch_mask = attn_mask
    if join_masks:
        causal = np.tril(np.ones((9, 13), bool))
        torch_mask = causal & attn_mask if mask == "bool" else np.where(causal, attn_mask, -np.inf)
    result = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).double() for x in (query, key, value)),
        attn_mask=None if torch_mask is None else torch.from_numpy(torch_mask),
        is_causal=is_causal and not join_masks,
        enable_gqa=heads != kv_heads,
    )
    np.testing.assert_allclose(expected, result.numpy(), rtol=1e-12, atol=1e-12)


def test_bounds_are_tight_enough_to_see_a_bug(random):
    """A wrong scale, an off-by-one mask or a lost key must lie far outside the tolerance."""
    query, key, value = random.attention(1, 2, 20, 60, 64)
    out, _, _ = reference.attention(query, key, value)
    bound, _, _ = attention_bounds(query, key, value)
    assert (bound < 1e-3).all()
    assert_close(out.astype(np.float32), out, bound)
    wrong = [
        reference.attention(query, key, value, scale=0.126)[0],
        reference.attention(query, key, value, key_lengths=[59])[0],
        reference.attention(query, key, value, is_causal=True, query_offset=58)[0],
    ]
    for other in wrong:
        with pytest.raises(AssertionError, match="entries are off"):
            assert_close(other.astype(np.float32), out, bound)
