"""A sub-layer in one operation gives bit for bit what its steps give one after the other.

The steps are public operations here: Linear, attention, layer_norm. Which way the core shares the
work out (slices of the batch, or all threads on every step) depends on sizes and threads.
"""

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits
from fastmha.nn import FeedForward

# (batch, length): many short sequences, few long ones, one, single tokens, lengths around a tile
SHAPES = [(300, 5), (40, 29), (3, 130), (1, 77), (200, 1), (2, 14), (1, 1)]
# d_model, heads, kv_heads: whole vectors and panels, and sizes that are neither
DIMS = [(64, 4, 4), (60, 3, 1), (36, 6, 2)]
NORMS = ["no norm", "norm before", "norm after", "both norms", "both rms"]


def shaken(module, seed=1):
    """`module` with every parameter random, so that no bias is 0 and no norm weight is 1."""
    rng = np.random.default_rng(seed)
    state = module.state_dict()
    noise = {k: rng.standard_normal(v.shape).astype(np.float32) * 0.2 for k, v in state.items()}
    module.load_state_dict({k: v + noise[k] for k, v in state.items()})
    return module


def norms(name, width):
    kind = fm.RMSNorm if name == "both rms" else fm.LayerNorm
    before, after = (shaken(kind(width, 1e-3), seed) for seed in (2, 3))
    return {
        "both rms": {"norm_before": before, "norm_after": after},
        "no norm": {},
        "norm before": {"norm_before": before},
        "norm after": {"norm_after": after},
        "both norms": {"norm_before": before, "norm_after": after},
    }[name]


def around(steps, x, residual, norm_before=None, norm_after=None):
    """norm_after(residual + steps(norm_before(x))): `steps` adds the residual."""
    y = steps(x if norm_before is None else norm_before(x), residual)
    return y if norm_after is None else norm_after(y)


def attend(
    mha,
    query,
    key,
    *,
    is_causal,
    residual,
    key_lengths=None,
    bounds=None,
    norms=None,
    relative_bias=None,
):
    """The steps of multi-head attention."""

    def steps(x, residual):
        q, k, v = mha._project(x, key, None, x.ndim)
        if bounds is not None:
            attended = fm.varlen_attention(
                q, k, v, *bounds, is_causal=is_causal, scale=mha.scale, relative_bias=relative_bias
            )
        else:
            attended = fm.scaled_dot_product_attention(
                *(a.transpose(0, 2, 1, 3) for a in (q, k, v)),
                is_causal=is_causal,
                scale=mha.scale,
                relative_bias=relative_bias,
                key_lengths=key_lengths,
            ).transpose(0, 2, 1, 3)
        joined = np.ascontiguousarray(attended).reshape(*x.shape[:-1], mha.num_heads * mha.head_dim)
        return mha.out_proj(joined, residual=residual)

    return around(steps, query, residual, **(norms or {}))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("batch", "length"), SHAPES)
@pytest.mark.parametrize(("d_model", "heads", "kv_heads"), DIMS)
def test_attention(random, num_threads, d_model, heads, kv_heads, batch, length, norm):
    bias = norm != "norm after"
    mha = shaken(fm.MultiHeadAttention(d_model, heads, num_kv_heads=kv_heads, bias=bias, seed=0))
    x = random.normal(batch, length, d_model)
    memory = random.normal(batch, 2 * length - 1, d_model)
    residual = x if norm != "both norms" else None
    options = norms(norm, d_model)
    for key, is_causal in ((None, False), (None, True), (memory, False)):
        expected = attend(mha, x, key, is_causal=is_causal, residual=residual, norms=options)
        for threads in (1, 2, 3):
            num_threads(threads)
            actual = mha(x, key, is_causal=is_causal, residual=residual, **options)
            assert_same_bits(actual, expected, f"{threads} threads, causal {is_causal}")


@pytest.mark.parametrize("norm", ["norm before", "norm after"])
@pytest.mark.parametrize(
    "lengths",
    [
        [5] * 100, [3, 0, 7, 1, 60, 0, 12], [200, 1, 1, 1, 3], [1, 1, 0, 1], [150],
        list(range(40)), [0, 0], [],
    ],
    ids=str,
)  # fmt: skip
def test_ragged_attention(random, num_threads, lengths, norm):
    mha = shaken(fm.MultiHeadAttention(64, 4, seed=0))
    others = lengths[::-1]
    bounds, memory_bounds = (
        np.concatenate([[0], np.cumsum(n)]).astype(int) for n in (lengths, others)
    )
    x, memory = random.normal(bounds[-1], 64), random.normal(bounds[-1], 64)
    options = norms(norm, 64)
    for key, key_bounds, is_causal in ((None, bounds, True), (memory, memory_bounds, False)):
        both = (bounds, key_bounds)
        expected = attend(mha, x, key, is_causal=is_causal, residual=x, bounds=both, norms=options)
        for threads in (1, 2, 3):
            num_threads(threads)
            actual = mha(
                x,
                key,
                is_causal=is_causal,
                cu_seqlens=bounds,
                cu_seqlens_k=None if key is None else key_bounds,
                residual=x,
                **options,
            )
            assert_same_bits(actual, expected, f"{threads} threads")


@pytest.mark.parametrize(("batch", "length"), [(120, 6), (2, 70)])
def test_attention_with_lengths(random, batch, length):
    mha = shaken(fm.MultiHeadAttention(64, 4, seed=0))
    x, memory = random.normal(batch, length, 64), random.normal(batch, length, 64)
    lengths = np.arange(batch) % (length + 1)
    padding = np.arange(length) >= lengths[:, None]
    for key in (None, memory):
        expected = attend(mha, x, key, is_causal=False, residual=x, key_lengths=lengths)
        if key is None:
            expected[padding] = 0
            x[padding] = np.nan
        else:
            memory[padding] = np.nan
        assert_same_bits(mha(x, key, key_lengths=lengths, residual=x), expected)
        x = np.nan_to_num(x)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_heads_of_another_width(random, num_threads, scale):
    """Heads that do not make up embed_dim, and scores without the usual scale, as in T5."""
    mha = shaken(fm.MultiHeadAttention(30, 3, head_dim=16, scale=scale, bias=False, seed=0))
    assert mha.state_shapes() == {"in_proj_weight": (144, 30), "out_proj.weight": (30, 48)}
    assert repr(mha) == "MultiHeadAttention(30, num_heads=3, head_dim=16)"
    memory = random.normal(40, 9, 30)
    for batch, length in ((40, 5), (2, 60), (3, 1)):
        x = random.normal(batch, length, 30)
        for key in (None, memory[:batch]):
            expected = attend(mha, x, key, is_causal=False, residual=x)
            for threads in (1, 2):
                num_threads(threads)
                assert_same_bits(mha(x, key, residual=x), expected)
            if length > 1:  # step by step
                assert_same_bits(mha(x, key, residual=x, return_weights=True)[0], expected)
    cache = fm.KVCache(3, 3, 4, 16)
    x = random.normal(3, 4, 30)
    steps = [mha(x[:, i : i + 1], cache=cache, is_causal=True) for i in range(4)]
    np.testing.assert_allclose(np.concatenate(steps, 1), mha(x, is_causal=True), atol=1e-4)


@pytest.mark.parametrize("reach", [0, 3, 200])
def test_relative_bias(random, num_threads, reach):
    mha = shaken(fm.MultiHeadAttention(64, 4, seed=0))
    bias = random.normal(4, 2 * reach + 1)
    for batch, length in ((40, 5), (2, 60), (1, 130), (30, 1)):
        x, memory = random.normal(batch, length, 64), random.normal(batch, length + 4, 64)
        bounds = np.arange(batch + 1) * length
        options = {"residual": x, "relative_bias": bias}
        for key, is_causal in ((None, True), (None, False), (memory, False)):
            expected = attend(mha, x, key, is_causal=is_causal, **options)
            for threads in (1, 2):
                num_threads(threads)
                actual = mha(x, key, is_causal=is_causal, **options)
                assert_same_bits(actual, expected, f"{threads} threads")
        rows = x.reshape(-1, 64)
        expected = attend(mha, x, None, is_causal=False, **options).reshape(-1, 64)
        actual = mha(rows, cu_seqlens=bounds, residual=rows, relative_bias=bias)
        assert_same_bits(actual, expected, "ragged")
    with pytest.raises(ValueError, match=r"relative_bias must have shape \(heads, 2 R \+ 1\)"):
        mha(x, relative_bias=bias[:3])
    with pytest.raises(ValueError, match="relative_bias must be finite"):
        mha(x, relative_bias=bias + np.float32(np.nan))


@pytest.mark.parametrize(("batch", "length"), [(1, 9), (64, 32), (300, 64)])
def test_a_relative_bias_with_one_nan_is_refused_before_slices_are_shared_out(
    random, num_threads, batch, length
):
    """An error inside a parallel region would end the process. What does not occur is not read."""
    mha = shaken(fm.MultiHeadAttention(32, 4, seed=0))
    x, bounds = random.normal(batch, length, 32), np.arange(batch + 1) * length
    reach = 100
    for threads in (1, 2):
        num_threads(threads)
        for distance in (-(length - 1), 0, 1, length - 1):
            bias = random.normal(4, 2 * reach + 1)
            bias[1, reach + distance] = np.nan
            for call in (
                lambda bias=bias: mha(x, relative_bias=bias),
                lambda bias=bias: mha(x, x, relative_bias=bias),
                lambda bias=bias: mha(x.reshape(-1, 32), cu_seqlens=bounds, relative_bias=bias),
            ):
                with pytest.raises(ValueError, match=r"relative_bias must be finite.*for head 1"):
                    call()
        far = random.normal(4, 2 * reach + 1)
        far[:, np.abs(np.arange(-reach, reach + 1)) >= length] = np.nan
        assert np.isfinite(mha(x, relative_bias=far)).all()


def test_a_scale_that_is_no_number_is_refused(random):
    with pytest.raises(ValueError, match="scale must be finite"):
        fm.MultiHeadAttention(64, 4, scale=float("nan"), seed=0)(random.normal(300, 5, 64))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [0, 1, 5, 27, 28, 113, 700])
@pytest.mark.parametrize(("d_model", "d_ff"), [(64, 1100), (30, 100), (1, 1)])
def test_feed_forward(random, num_threads, d_model, d_ff, rows, norm, gated):
    bias = norm != "no norm"
    feed = shaken(FeedForward(d_model, d_ff, activation="gelu", bias=bias, gated=gated, seed=0))
    x, residual = random.normal(rows, d_model), random.normal(rows, d_model)
    options = norms(norm, d_model)

    def steps(x, residual):
        hidden = feed.linear1(x)
        if feed.gate is not None:
            hidden *= feed.gate(x)
        return feed.linear2(hidden, residual=residual)

    expected = around(steps, x, residual, **options)
    for threads in (1, 2, 3):
        num_threads(threads)
        assert_same_bits(feed(x, residual=residual, **options), expected)
        in_place = x.copy()
        result = feed(in_place, residual=residual, out=in_place, **options)
        assert result is in_place
        assert_same_bits(in_place, expected, "in place")


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(100, 5), (3, 60)])
def test_blocks(random, batch, length, norm_first):
    """With return_weights, attention goes step by step."""
    x, memory = random.normal(batch, length, 64), random.normal(batch, length + 3, 64)
    before = x.copy()
    encoder = shaken(fm.EncoderBlock(64, 4, 128, norm_first=norm_first, seed=0))
    decoder = shaken(fm.DecoderBlock(64, 4, 128, norm_first=norm_first, seed=0))
    assert_same_bits(encoder(x), encoder(x, return_weights=True)[0])
    assert_same_bits(decoder(x, memory), decoder(x, memory, return_weights=True)[0])
    assert_same_bits(x, before, "the input")


def test_single_tokens_beside_a_sequence_that_fills_the_scratch(random):
    """The threads share every step then, round by round. A round of single tokens alone is not a
    call of single tokens alone, which rounds differently."""
    long, singles = 400_000, 40
    x = random.normal(long + singles, 16)
    bounds = np.concatenate([[0], np.arange(long, long + singles + 1)])
    # One query sees one key: nothing rounds but the projections, so a memory makes it a test.
    memory = random.normal(1 + 300 * singles, 16)
    memory_bounds = np.concatenate([[0], 1 + 300 * np.arange(singles + 1)])
    cross = shaken(fm.MultiHeadAttention(16, 2, seed=1))
    out = cross(x, memory, cu_seqlens=bounds, cu_seqlens_k=memory_bounds)
    pair = np.concatenate([x[:2], x[long:]])
    pair_bounds = np.concatenate([[0], np.arange(2, 2 + singles + 1)])
    alone = cross(pair, memory, cu_seqlens=pair_bounds, cu_seqlens_k=memory_bounds)
    assert_same_bits(out[long:], alone[2:])


def test_wrong_calls(random):
    feed = FeedForward(8, 16, seed=0)
    mha = fm.MultiHeadAttention(8, 2, seed=0)
    x = random.normal(2, 3, 8)
    for f, name in (feed, "x"), (mha, "query"):
        with pytest.raises(ValueError, match=rf"{name} must have 8 features .*\(2, 3, 7\)"):
            f(x[..., :7])
        with pytest.raises(TypeError, match=r"LayerNorm or None, got tuple"):
            f(x, norm_before=(np.ones(8, np.float32), None, 1e-6))
        with pytest.raises(TypeError, match=rf"{name} must be float32, got float64; cast it"):
            f(x.astype(np.float64))
        with pytest.raises(ValueError, match=r"residual must have shape \(2, 3, 8\)"):
            f(x, residual=x[:1])
        with pytest.raises(ValueError, match=r"norm_after\.weight must have shape \(8,\)"):
            f(x, norm_after=fm.LayerNorm(7))
    with pytest.raises(ValueError, match=r"out must be x itself or must not share memory"):
        feed(x[:, :2], out=x[:, 1:])
    with pytest.raises(ValueError, match=r"same batch \(axis 0\), got \(2, 3, 8\) and \(1, 3, 8\)"):
        mha(x, x[:1])
    with pytest.raises(ValueError, match=r"one entry per sequence \(2\), got 3"):
        mha(x, key_lengths=[1, 2, 3])
    with pytest.raises(ValueError, match=r"key_lengths must be from 0 to 3, got 4"):
        mha(x, key_lengths=[1, 4])
    with pytest.raises(
        ValueError, match=r"cu_seqlens must end at the number of rows|end at the number"
    ):
        mha(x[0], cu_seqlens=[0, 2])
