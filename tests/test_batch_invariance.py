"""Bit for bit the same result whatever the threads, the batch, the place in it, the padding, the
form and the strides.

One exception is allowed: a call with a single query per sequence may round differently from a
longer one, so q_len 1 is compared with q_len 1 only.
"""

import fastmha as fm
import numpy as np
import pytest
from conftest import Random, assert_same_bits

# (q_len, kv_len, head_dim): below, at and above tile edges; long enough for several key blocks and
# decode splits.
SIZES = [
    (2, 2, 8), (5, 5, 64), (5, 77, 64), (16, 16, 16), (9, 12, 70), (14, 14, 33), (14, 15, 64),
    (17, 33, 20), (32, 64, 64), (33, 65, 33),
    (64, 300, 24),
    (129, 129, 64), (140, 520, 32), (1, 5, 64), (1, 64, 128), (1, 700, 64), (1, 3000, 32),
]  # fmt: skip
HEADS, KV_HEADS = 4, 2


def relative_bias(heads, reach):
    return Random(5).normal(heads, 2 * reach + 1)


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": 3},
    "window": {"window": (20, 4), "query_offset": 2},
    "softcap": {"softcap": 3.0, "scale": 0.4},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32)},
    "relative": {"relative_bias": relative_bias(HEADS, 40), "query_offset": 7},
    "everything": {
        "is_causal": True, "query_offset": 40, "window": (200, 30), "softcap": 3.0, "scale": 0.4,
        "alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32),
        "relative_bias": relative_bias(HEADS, 3),
    },
}  # fmt: skip

every_size = pytest.mark.parametrize(("q_len", "kv_len", "head_dim"), SIZES)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make(batch, q_len, kv_len, head_dim, seed=0):
    return Random(seed).attention(batch, HEADS, q_len, kv_len, head_dim, kv_heads=KV_HEADS)


def heads_last(array):
    """(H, L, E) -> (L, H, E), the layout of varlen_attention."""
    return array.transpose(1, 0, 2)


@every_option
@every_size
def test_threads(num_threads, q_len, kv_len, head_dim, options):
    for batch in (1, 5):
        arrays = make(batch, q_len, kv_len, head_dim)
        results = []
        for threads in (1, 2, 3, 4):
            num_threads(threads)
            results += [fm.scaled_dot_product_attention(*arrays, **options) for _ in range(2)]
        for result in results[1:]:
            assert_same_bits(result, results[0])


@every_option
@every_size
def test_batch_and_place(q_len, kv_len, head_dim, options):
    arrays = make(6, q_len, kv_len, head_dim)
    whole = fm.scaled_dot_product_attention(*arrays, **options)
    for n in range(6):
        alone = fm.scaled_dot_product_attention(*(a[n : n + 1] for a in arrays), **options)
        assert_same_bits(alone[0], whole[n], f"sequence {n} alone")
        flat = fm.scaled_dot_product_attention(*(a[n] for a in arrays), **options)
        assert_same_bits(flat, whole[n], f"sequence {n} without a batch axis")
    order = [4, 0, 5, 5, 2]
    shuffled = fm.scaled_dot_product_attention(*(a[order] for a in arrays), **options)
    assert_same_bits(shuffled, whole[order], "another order")


@every_size
def test_other_heads(q_len, kv_len, head_dim):
    """A head's result does not depend on the heads beside it either."""
    query, key, value = make(2, q_len, kv_len, head_dim)
    for bias in (None, relative_bias(HEADS, 9)):
        whole = fm.scaled_dot_product_attention(query, key, value, relative_bias=bias)
        for h in range(HEADS):
            g = h * KV_HEADS // HEADS
            alone = fm.scaled_dot_product_attention(
                query[:, h : h + 1], key[:, g : g + 1], value[:, g : g + 1],
                relative_bias=None if bias is None else bias[h : h + 1],
            )  # fmt: skip
            assert_same_bits(alone[:, 0], whole[:, h], f"head {h}")


@every_option
@every_size
@pytest.mark.parametrize("extra", [1, 3, 30, 300])
def test_padded_keys(q_len, kv_len, head_dim, options, extra):
    """More keys past key_lengths, filled with NaN."""
    query, key, value = make(3, q_len, kv_len, head_dim)
    lengths = np.array([kv_len, kv_len // 2, 1])
    padding = np.full((3, KV_HEADS, extra, head_dim), np.nan, np.float32)
    padded = [np.concatenate([a, padding], 2) for a in (key, value)]
    exact = fm.scaled_dot_product_attention(query, key, value, key_lengths=lengths, **options)
    assert_same_bits(
        fm.scaled_dot_product_attention(query, *padded, key_lengths=lengths, **options), exact
    )
    for n, length in enumerate(lengths):  # and exactly as if only the real keys were there
        cut = [a[n : n + 1, :, :length] for a in (key, value)]
        alone = fm.scaled_dot_product_attention(query[n : n + 1], *cut, **options)
        assert_same_bits(alone[0], exact[n], f"sequence {n} without padding")


@every_option
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("kv_len", "head_dim"), [(5, 64), (77, 20), (700, 128), (300, 80)])
def test_one_query_grouped_or_not(num_threads, group, kv_len, head_dim, options):
    """Heads that share keys are computed together; each gets what it would get alone."""
    options = dict(options)
    if "alibi_slopes" in options:
        options["alibi_slopes"] = np.linspace(0, 0.5, 2 * group, dtype=np.float32)
    if "relative_bias" in options:
        options["relative_bias"] = relative_bias(2 * group, 40)
    query, key, value = Random(0).attention(2, 2 * group, 1, kv_len, head_dim, kv_heads=2)
    own = [np.repeat(a, group, axis=1) for a in (key, value)]
    expected = fm.scaled_dot_product_attention(query, *own, **options)
    for threads in (1, 3):
        num_threads(threads)
        together = fm.scaled_dot_product_attention(query, key, value, **options)
        assert_same_bits(together, expected, f"{threads} threads")
    seen = np.ones((1, 1, 1, kv_len), bool)  # masked calls go head by head
    masked = fm.scaled_dot_product_attention(query, key, value, seen, **options)
    assert_same_bits(masked, expected, "with a mask that hides nothing")


@pytest.mark.parametrize("window", [None, (100, None), (600, None)], ids=str)
def test_one_query_of_uneven_lengths(num_threads, window):
    """A long sequence among short ones makes all be cut into pieces: as if each was alone."""
    lengths = [3, 5000, 0, 257, 256, 1, 900]
    query, key, value = Random(0).attention(len(lengths), 4, 1, 5000, 16, kv_heads=2)
    offsets = [length - 1 for length in lengths]
    options = {"window": window}
    num_threads(1)
    alone = [
        fm.scaled_dot_product_attention(
            query[n : n + 1], key[n : n + 1, :, :length], value[n : n + 1, :, :length],
            query_offset=offsets[n], **options,
        )
        for n, length in enumerate(lengths)
    ]  # fmt: skip
    for threads in (1, 2, 4):
        num_threads(threads)
        out, lse = fm.scaled_dot_product_attention(
            query, key, value, key_lengths=lengths, query_offset=offsets, return_lse=True, **options
        )
        assert_same_bits(out, np.concatenate(alone), f"{threads} threads")
        assert np.isneginf(lse[2]).all()
        assert not out[2].any()


@every_option
@every_size
@pytest.mark.parametrize("extra", [1, 3, 30, 130])
def test_padded_queries(q_len, kv_len, head_dim, options, extra):
    """More queries behind the real ones, filled with NaN."""
    if q_len == 1:
        q_len = 2  # one query may take the decode path, two and more may not differ
    query, key, value = make(2, q_len, kv_len, head_dim)
    padding = np.full((2, HEADS, extra, head_dim), np.nan, np.float32)
    longer = np.concatenate([query, padding], 2)
    exact = fm.scaled_dot_product_attention(query, key, value, **options)
    out = fm.scaled_dot_product_attention(longer, key, value, **options)
    assert_same_bits(out[:, :, :q_len], exact)


@every_option
def test_every_length_of_padding(options):
    """The sequence sits at the start of longer and longer arrays: no tile edge changes it."""
    query, key, value = make(1, 5, 9, 16)
    exact = fm.scaled_dot_product_attention(query, key, value, **options)
    for q_len in range(5, 70, 3):
        for kv_len in range(9, 140, 13):
            wide = [
                np.full((1, a.shape[1], length, 16), np.nan, np.float32)
                for a, length in ((query, q_len), (key, kv_len), (value, kv_len))
            ]
            for view, a in zip(wide, (query, key, value), strict=True):
                view[:, :, : a.shape[2]] = a
            out = fm.scaled_dot_product_attention(*wide, key_lengths=[9], **options)
            assert_same_bits(out[:, :, :5], exact, f"padded to {q_len} queries, {kv_len} keys")


@every_option
def test_short_sequences_of_every_length(options):
    """Each alone, and all as one call: lanes are shared with heads of the same length only."""
    lengths = [*range(1, 20)] * 2
    query, key, value = make(len(lengths), 19, 19, 24)
    whole = fm.scaled_dot_product_attention(query, key, value, key_lengths=lengths, **options)
    for n, length in enumerate(lengths):
        cut = [a[n : n + 1, :, :length] for a in (key, value)]
        for q_len in (2, 5, 14, 15, 19):
            alone = fm.scaled_dot_product_attention(query[n : n + 1, :, :q_len], *cut, **options)
            assert_same_bits(alone[0], whole[n, :, :q_len], f"{q_len} queries, {length} keys")


def test_large_calls_write_the_same():
    """Past some size outputs go past the caches; where one begins inside a line must not matter."""
    arrays = [np.concatenate([a] * 450) for a in make(4, 5, 5, 64)]
    expected = fm.scaled_dot_product_attention(*(a[:4] for a in arrays))
    for shift in (0, 1, 4):
        out = np.full(arrays[0].size + 16, np.nan, np.float32)[shift:][: arrays[0].size]
        out = out.reshape(450, 4, *expected.shape[1:])
        fm.scaled_dot_product_attention(*arrays, out=out.reshape(arrays[0].shape))
        for repetition in out:
            assert_same_bits(repetition, expected)
    heads_last_out = np.empty((1800, 5, 4, 64), np.float32).transpose(0, 2, 1, 3)
    fm.scaled_dot_product_attention(*arrays, out=heads_last_out)
    assert_same_bits(heads_last_out, out.reshape(arrays[0].shape))


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 127}], ids=str)
def test_signed_zeros_and_underflow(options):
    """Weights that underflow to 0, values of -0: a sum of zeros of either sign depends on where it
    starts, so the way in which a key is hidden, or a tile is filled, must not show in it.
    """
    query = np.ones((1, 1, 5, 1), np.float32)
    key = np.full((1, 1, 130, 1), -300, np.float32)
    value = np.full((1, 1, 130, 1), -1, np.float32)
    key[0, 0, 128] = 300  # takes all the weight; exp(-600) is 0
    value[0, 0, 128] = -0.0
    value[0, 0, 129] = 1
    visible = np.arange(130) < 129

    def run(q_len, **hidden):
        return fm.scaled_dot_product_attention(query[:, :, :q_len], key, value, **options, **hidden)

    expected = run(5, key_lengths=[129])
    assert (expected[0, 0, 1:] == 0).all()  # in causal order query 0 does not see key 128 yet
    for q_len in (2, 5):
        assert_same_bits(run(q_len, key_lengths=[129]), expected[:, :, :q_len], "key_lengths")
        assert_same_bits(run(q_len, attn_mask=visible), expected[:, :, :q_len], "bool mask")
    cut = fm.scaled_dot_product_attention(query, key[:, :, :129], value[:, :, :129], **options)
    assert_same_bits(cut, expected, "without the hidden key")
    for q_len in (2, 5):  # and where no key is hidden but by the order
        for name, array in (("all", {}), ("mask of all", {"attn_mask": np.ones(130, bool)})):
            assert_same_bits(run(q_len, **array), run(5)[:, :, :q_len], name)


RAGGED = [
    ([5, 9, 2, 33], [5, 9, 2, 33]),
    ([2, 64, 17], [300, 70, 5]),
    ([3, 1, 40], [9, 30, 1]),  # a single query inside a call with longer ones
    ([130, 129], [520, 140]),
    ([1, 1, 1], [40, 700, 1]),  # every sequence has one query
    ([5, 5, 5, 3, 14, 7], [5, 5, 5, 14, 2, 7]),  # all are short
    ([5, 15, 14, 4, 1], [14, 14, 15, 4, 3]),  # some are
    ([4, 0, 3], [4, 2, 0]),  # no queries, no keys
]


@every_option
@pytest.mark.parametrize(("q_lengths", "kv_lengths"), RAGGED, ids=str)
def test_ragged_equals_padded(q_lengths, kv_lengths, options):
    batch, dim = len(q_lengths), 24
    query, key, value = make(batch, max(q_lengths), max(kv_lengths), dim)
    for n in range(batch):
        query[n, :, q_lengths[n] :] = np.nan
        key[n, :, kv_lengths[n] :] = np.nan
        value[n, :, kv_lengths[n] :] = np.nan
    padded = fm.scaled_dot_product_attention(query, key, value, key_lengths=kv_lengths, **options)

    def pack(array, lengths):
        return np.concatenate(
            [heads_last(array[n, :, :length]) for n, length in enumerate(lengths)]
        )

    cu_q, cu_k = np.r_[0, np.cumsum(q_lengths)], np.r_[0, np.cumsum(kv_lengths)]
    packed = pack(query, q_lengths), pack(key, kv_lengths), pack(value, kv_lengths)
    ragged = fm.varlen_attention(*packed, cu_q, cu_k, **options)
    for n in range(batch):
        rows = ragged[cu_q[n] : cu_q[n + 1]]
        assert_same_bits(rows, heads_last(padded[n, :, : q_lengths[n]]), f"sequence {n}")


@every_size
def test_ragged_threads_and_order(num_threads, q_len, kv_len, head_dim):
    arrays = [
        np.ascontiguousarray(a.transpose(0, 2, 1, 3)) for a in make(4, q_len, kv_len, head_dim)
    ]
    cu_q, cu_k = np.arange(5) * q_len, np.arange(5) * kv_len

    def run(order, cu_q=cu_q, cu_k=cu_k):
        query, key, value = (a[order].reshape(-1, *a.shape[2:]) for a in arrays)
        return fm.varlen_attention(query, key, value, cu_q, cu_k).reshape(
            len(order), q_len, HEADS, -1
        )

    expected = run([0, 1, 2, 3])
    for threads in (1, 2, 3, 4):
        num_threads(threads)
        assert_same_bits(run([0, 1, 2, 3]), expected)
        assert_same_bits(run([3, 1, 0, 2]), expected[[3, 1, 0, 2]])
    for n in range(4):
        assert_same_bits(run([n], cu_q[:2], cu_k[:2])[0], expected[n])


@every_size
def test_strides_and_alignment(q_len, kv_len, head_dim):
    from test_attention import LAYOUTS, layouts

    arrays = make(2, q_len, kv_len, head_dim)
    expected = fm.scaled_dot_product_attention(*arrays, is_causal=True, query_offset=3)
    for layout in LAYOUTS:
        views = [dict(layouts(a))[layout] for a in arrays]
        out = fm.scaled_dot_product_attention(*views, is_causal=True, query_offset=3)
        assert_same_bits(out, expected, layout)
    for shift in range(1, 17):  # every place of the first float inside a cache line
        views = []
        for a in arrays:
            memory = np.empty(a.size + 16, np.float32)
            views.append(memory[shift : shift + a.size].reshape(a.shape))
            views[-1][...] = a
        out = fm.scaled_dot_product_attention(*views, is_causal=True, query_offset=3)
        assert_same_bits(out, expected, f"shifted by {shift} floats")


@pytest.mark.parametrize(("heads", "head_dim"), [(8, 64), (8, 128), (12, 64)])
def test_heads_beside_each_other(heads, head_dim):
    """(batch, length, heads, head_dim): rows 2, 4 and 3 KiB apart: other tiles."""
    q, k, v = Random(5).attention(2, heads, 70, 200, head_dim)
    expected = fm.scaled_dot_product_attention(q, k, v, is_causal=True, query_offset=130)
    views = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v)]
    result = fm.scaled_dot_product_attention(*views, is_causal=True, query_offset=130)
    assert_same_bits(result, expected)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "query_offset": 700}, {"window": (300, 9)}]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_long_heads_beside_each_other(num_threads, threads, options):
    """Rows 4 KiB apart and 1024 keys or more: panels share copies of K and V."""
    num_threads(threads)
    q, k, v = Random(6).attention(2, 8, 530, 1200, 128)
    k[0, :, 1199] = v[1, :, 1190:] = np.nan  # behind the lengths
    lengths = np.array([1199, 1190])
    expected = fm.scaled_dot_product_attention(q, k, v, key_lengths=lengths, **options)
    assert np.isfinite(expected).all()
    views = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v)]
    result = fm.scaled_dot_product_attention(*views, key_lengths=lengths, **options)
    assert_same_bits(result, expected)
    v[0, :, 600, 5] = np.inf  # hidden from some, seen by others
    views[2][...] = v
    expected = fm.scaled_dot_product_attention(q, k, v, key_lengths=lengths, **options)
    result = fm.scaled_dot_product_attention(*views, key_lengths=lengths, **options)
    assert_same_bits(result, expected)


@every_size
def test_run_after_run(q_len, kv_len, head_dim):
    arrays = make(3, q_len, kv_len, head_dim)
    first = fm.scaled_dot_product_attention(*arrays)
    for _ in range(20):
        # Calls of another shape in between leave their own traces in any scratch memory.
        fm.scaled_dot_product_attention(*make(1, 9, 50, 40, seed=1))
        assert_same_bits(fm.scaled_dot_product_attention(*arrays), first)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_cache_and_threads(num_threads, threads):
    query, key, value = make(2, 1, 900, 64)

    def run():
        cache = fm.KVCache(2, KV_HEADS, 1000, 64)
        cache.append(key, value)
        return fm.attention_with_kvcache(query, cache)

    num_threads(1)
    expected = run()
    num_threads(threads)
    assert_same_bits(run(), expected)


# ---- the other operations: one row's result does not depend on the rows around it ----

ROWS = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    12,
    13,
    14,
    15,
    16,
    17,
    28,
    31,
    33,
    56,
    64,
    65,
    100,
    128,
    129,
    225,
    300,
]


@pytest.mark.parametrize(
    ("in_features", "out_features"), [(3, 5), (64, 48), (512, 100), (700, 33), (2100, 64)]
)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_linear_rows(num_threads, in_features, out_features, activation):
    random = Random(0)
    x, residual = random.normal(300, in_features), random.normal(300, out_features)
    bias = random.normal(out_features)
    linear = fm.Linear(random.normal(out_features, in_features), bias, activation=activation)
    expected = linear(x, residual=residual)
    for rows in ROWS:
        for first in {0, 1, 300 - rows}:
            some = slice(first, first + rows)
            for threads in (1, 2, 4):
                num_threads(threads)
                out = linear(x[some], residual=residual[some])
                assert_same_bits(
                    out, expected[some], f"rows {first} to {first + rows}, {threads} threads"
                )
    assert_same_bits(
        linear(x.reshape(3, 100, -1), residual=residual.reshape(3, 100, -1)).reshape(300, -1),
        expected,
    )
    wide = np.full((300, in_features + 7), np.nan, np.float32)
    wide[:, 3:-4] = x
    assert_same_bits(linear(wide[:, 3:-4], residual=residual), expected, "strided rows")
    assert_same_bits(linear(x[::-1], residual=residual[::-1]), expected[::-1], "reversed rows")
    assert_same_bits(linear(np.asfortranarray(x), residual=residual), expected, "F-order")


ROW_OPERATIONS = [
    "layer_norm", "add_norm", "rms_norm", "softmax", "gelu", "gelu_tanh", "silu", "relu",
]  # fmt: skip


def row_operation(name, features):
    random = Random(1)
    weight, bias = random.normal(features), random.normal(features)
    return {
        "layer_norm": lambda x: fm.layer_norm(x, weight, bias),
        "add_norm": lambda x: fm.layer_norm(x, weight, residual=x),
        "rms_norm": lambda x: fm.rms_norm(x, weight),
        "softmax": fm.softmax,
        "gelu": fm.gelu,
        "gelu_tanh": lambda x: fm.gelu(x, approximate="tanh"),
        "silu": fm.silu,
        "relu": fm.relu,
    }[name]


@pytest.mark.parametrize("features", [1, 7, 16, 64, 65, 512, 1000])
@pytest.mark.parametrize("name", ROW_OPERATIONS)
def test_row_operations(num_threads, name, features):
    random = Random(0)
    x = random.normal(400, features)
    run = row_operation(name, features)
    expected = run(x)
    for threads in (1, 2, 3, 4):
        num_threads(threads)
        assert_same_bits(run(x), expected, f"{threads} threads")
    for rows in (1, 2, 3, 7, 16, 33):
        for first in (0, 1, 400 - rows):
            some = slice(first, first + rows)
            assert_same_bits(run(x[some]), expected[some], f"rows {first} to {first + rows}")
    assert_same_bits(run(x[5]), expected[5], "one row, one axis")
    wide = np.full((400, features + 5), np.nan, np.float32)
    wide[:, 1:-4] = x
    assert_same_bits(run(wide[:, 1:-4]), expected, "strided rows")
    assert_same_bits(run(np.asfortranarray(x)), expected, "F-order")


@pytest.mark.parametrize("name", ROW_OPERATIONS)
@pytest.mark.parametrize("rows", [700, 7000])
def test_row_operations_from_l3_and_memory(num_threads, name, rows):
    """Large calls prefetch and store past the caches; a row alone does neither."""
    run = row_operation(name, 777)
    x = np.random.default_rng(5).standard_normal((rows, 777), dtype=np.float32)
    num_threads(2)
    result = run(x)
    num_threads(1)
    assert_same_bits(run(x), result)
    for row in range(0, rows, 97):
        assert_same_bits(run(x[row : row + 1]), result[row : row + 1])


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_block_over_few_and_many_rows(num_threads, norm_first):
    """Few rows and a small memory go through a block in one parallel region, more in slices or in
    shared steps, and several blocks go together."""
    random = Random(8)
    decoder = fm.Decoder(
        [fm.DecoderBlock(64, 4, 160, norm_first=norm_first, seed=seed) for seed in (1, 2)]
    )
    lengths, memory_lengths = [2, 5, 1, 33, 16], [7, 5, 1, 20, 70]
    x = random.normal(5, max(lengths), 64)
    memory = random.normal(5, max(memory_lengths), 64)
    every = decoder(x, memory, key_lengths=lengths, memory_lengths=memory_lengths)
    repeated = decoder(
        *(np.concatenate([array] * 9) for array in (x, memory)),
        key_lengths=lengths * 9,
        memory_lengths=memory_lengths * 9,
    )
    for n, (length, memory_length) in enumerate(zip(lengths, memory_lengths, strict=True)):
        expected = every[n, :length]
        assert_same_bits(repeated[n + 20, :length], expected, f"sequence {n}, many rows")
        if length == 1:
            continue
        own, source = x[n : n + 1, :length], memory[n : n + 1, :memory_length]
        for threads in (1, 2, 3):
            num_threads(threads)
            assert_same_bits(decoder(own, source)[0], expected, f"sequence {n} alone")
            rows = own
            for block in decoder.layers:
                rows = block(rows, source)
            assert_same_bits(rows[0], expected, f"sequence {n}, block by block")
            padded = decoder(x[n:], memory[n:], key_lengths=[length] + [0] * (4 - n),
                             memory_lengths=[memory_length] + [0] * (4 - n))  # fmt: skip
            assert_same_bits(padded[0, :length], expected, f"sequence {n} beside empty ones")
