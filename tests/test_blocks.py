"""Blocks against torch.nn: every setting, padded and ragged, weights and settings read from a torch
module.

Two float32 computations of the same formula, each with its own order of summation: after a norm the
entries are of order 1, and a chain of reductions over a few hundred terms leaves them within 2e-5
of each other.
"""

import functools

import fastmha as fm
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from fastmha import _core
from torch import nn
from torch.nn import functional as F

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
LENGTHS = [7, 1, 9, 4]
LONGEST = max(LENGTHS)
MEMORY_LENGTHS = [5, 11, 1, 8]
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def close(actual, expected, what=""):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, **CLOSE, err_msg=what)


def raising(error):
    """A callable that raises `error`, whatever it is called with."""

    def fail(*_, **__):
        raise error

    return fail


def shaken(module, seed=0):
    """The module in eval mode, with all its parameters away from 0 and 1, where mistakes hide."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def padding_mask(lengths):
    """torch's: True = ignore."""
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


def ragged(padded, lengths):
    rows = np.concatenate([x[:length] for x, length in zip(padded, lengths, strict=True)])
    return rows, np.cumsum([0, *lengths])


def all_settings():
    base = {"norm_first": False, "activation": "relu", "bias": True, "layer_norm_eps": 1e-5}
    yield base
    yield base | {"norm_first": True}
    yield base | {"bias": False}
    yield base | {"bias": False, "norm_first": True, "activation": "gelu"}
    yield base | {"layer_norm_eps": 1e-2}
    for activation in ("gelu", "gelu_tanh", "silu"):
        yield base | {"activation": activation}


def torch_layer(kind, d_model, heads, d_ff, setting, seed=0):
    torch.manual_seed(seed)
    activation = ACTIVATIONS[setting["activation"]]
    layer = kind(d_model, heads, d_ff, batch_first=True, **(setting | {"activation": activation}))
    return shaken(layer, seed + 1)


def names(setting):
    return "-".join(f"{value}" for value in setting.values())


# ---- multi-head attention -----------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dims", "heads"),
    [
        ({}, 1),
        ({}, 4),
        ({}, 12),
        ({"kdim": 20}, 4),
        ({"vdim": 36}, 4),
        ({"kdim": 20, "vdim": 20}, 3),
    ],
)
def test_attention_matches_torch(random, dims, heads, bias):
    theirs = shaken(nn.MultiheadAttention(48, heads, bias=bias, batch_first=True, **dims))
    ours = fm.MultiHeadAttention.from_torch(theirs)
    query = random.normal(3, 6, 48)
    key, value = random.normal(3, 9, theirs.kdim), random.normal(3, 9, theirs.vdim)
    lengths = [9, 2, 5]
    with torch.no_grad():
        expected, expected_weights = theirs(
            *map(torch.from_numpy, (query, key, value)),
            key_padding_mask=padding_mask(lengths),
            average_attn_weights=False,
        )
    out, weights = ours(query, key, value, key_lengths=lengths, return_weights=True)
    close(out, expected, "out")
    close(weights, expected_weights, "weights")
    close(ours(query, key, value, key_lengths=lengths), expected, "without weights")


def test_self_attention_equals_cross_attention_to_itself(random):
    theirs = shaken(nn.MultiheadAttention(64, 4, batch_first=True))
    ours = fm.MultiHeadAttention.from_torch(theirs)
    x = random.normal(2, 7, 64)
    same = torch.from_numpy(x)
    expected = theirs(same, same, same, need_weights=False)[0]
    close(ours(x), expected, "one product for q, k and v")
    close(ours(x, x), expected, "key")
    close(ours(x, x, x), expected, "key and value")
    close(ours(x, x.copy(), x.copy()), expected, "three arrays")
    close(ours(x[0]), expected[0], "one sequence, without its batch axis")


@pytest.mark.parametrize("kind", ["bool", "float", "causal"])
def test_attention_masks(random, kind):
    theirs = shaken(nn.MultiheadAttention(32, 4, batch_first=True))
    ours = fm.MultiHeadAttention.from_torch(theirs)
    x = random.normal(2, 6, 32)
    same = torch.from_numpy(x)
    visible = random.rng.random((6, 6)) < 0.6
    np.fill_diagonal(visible, True)
    if kind == "bool":
        mask, their_mask = visible, ~visible  # torch's True means: hidden
    elif kind == "float":
        mask = their_mask = random.normal(6, 6)
    else:
        mask, their_mask = None, np.triu(np.ones((6, 6), bool), 1)
    expected = theirs(same, same, same, attn_mask=torch.from_numpy(their_mask), need_weights=False)
    close(ours(x, attn_mask=mask, is_causal=kind == "causal"), expected[0])


def test_grouped_query_attention_reads_each_kv_head_for_its_group(random):
    """Grouped heads are whole heads whose key and value weights repeat."""
    grouped = fm.MultiHeadAttention(48, 6, num_kv_heads=2, seed=1)
    state = grouped.state_dict()
    q, k, v = np.split(state["in_proj_weight"], [48, 64])
    widened = [np.repeat(part.reshape(2, 8, 48), 3, axis=0).reshape(48, 48) for part in (k, v)]
    whole = fm.MultiHeadAttention(48, 6)
    whole.load_state_dict(
        state
        | {
            "in_proj_weight": np.concatenate([q, *widened]),
            "in_proj_bias": np.zeros(144, np.float32),
        }
    )
    x, memory = random.normal(2, 7, 48), random.normal(2, 5, 48)
    close(grouped(x, is_causal=True), whole(x, is_causal=True))
    close(grouped(x, memory), whole(x, memory))


def test_attention_ragged_is_padded_bit_for_bit(random):
    mha = fm.MultiHeadAttention(64, 4, seed=0)
    x = random.normal(len(LENGTHS), LONGEST, 64)
    rows, bounds = ragged(x, LENGTHS)
    padded, weights = mha(x, is_causal=True, key_lengths=LENGTHS, return_weights=True)
    out, ragged_weights = mha(rows, is_causal=True, cu_seqlens=bounds, return_weights=True)
    assert_same_bits(out, ragged(padded, LENGTHS)[0])
    for n, length in enumerate(LENGTHS):
        assert not padded[n, length:].any()
        assert_same_bits(ragged_weights[n], weights[n, :, :length, :length], f"weights {n}")

    memory = random.normal(len(LENGTHS), max(MEMORY_LENGTHS), 64)
    memory_rows, memory_bounds = ragged(memory, MEMORY_LENGTHS)
    padded = mha(x, memory, key_lengths=MEMORY_LENGTHS)
    out = mha(rows, memory_rows, cu_seqlens=bounds, cu_seqlens_k=memory_bounds)
    assert_same_bits(out, ragged(padded, LENGTHS)[0], "cross")


def test_attention_with_cache(random):
    mha = fm.MultiHeadAttention(48, 6, num_kv_heads=3, seed=2)
    x = random.normal(2, 8, 48)
    whole, whole_weights = mha(x, is_causal=True, return_weights=True)
    cache = fm.KVCache(2, 3, 8, 8)
    close(mha(x[:, :3], is_causal=True, cache=cache), whole[:, :3], "first three")
    close(mha(x[:, 3:4], cache=cache), whole[:, 3:4], "a single one")
    out, weights = mha(x[:, 4:], is_causal=True, cache=cache, return_weights=True)
    close(out, whole[:, 4:], "the rest")
    close(weights, whole_weights[:, :, 4:], "weights")
    np.testing.assert_array_equal(cache.lengths, [8, 8])
    with pytest.raises(ValueError, match=r"capacity|full|room"):
        mha(x[:, :1], cache=cache)
    np.testing.assert_array_equal(cache.lengths, [8, 8])


def test_attention_with_cache_of_different_lengths(random):
    """Two sequences that are fed 3 + 2 and 1 + 4 positions give what each gives alone."""
    mha = fm.MultiHeadAttention(32, 4, seed=3)
    x = random.normal(2, 5, 32)
    whole = mha(x, is_causal=True)
    cache = fm.KVCache(2, 4, 5, 8)
    start = np.full((2, 3, 32), np.nan, np.float32)
    start[0], start[1, :1] = x[0, :3], x[1, :1]
    first = mha(start, is_causal=True, key_lengths=[3, 1], cache=cache)
    np.testing.assert_array_equal(cache.lengths, [3, 1])
    rest = np.full((2, 4, 32), np.nan, np.float32)
    rest[0, :2], rest[1] = x[0, 3:], x[1, 1:]
    second = mha(rest, is_causal=True, key_lengths=[2, 4], cache=cache)
    close(first[0], whole[0, :3])
    close(first[1, :1], whole[1, :1])
    close(second[0, :2], whole[0, 3:])
    close(second[1], whole[1, 1:])
    with pytest.raises(ValueError, match=r"broadcast|shape|mask"):
        mha(x[:, :1], attn_mask=np.ones((7, 9), bool), cache=fm.KVCache(2, 4, 5, 8))


def test_attention_residual_is_added(random):
    mha = fm.MultiHeadAttention(32, 4, seed=4)
    x, residual = random.normal(2, 5, 32), random.normal(2, 5, 32)
    close(mha(x, residual=residual), mha(x) + residual)


@pytest.mark.parametrize("options", [{}, {"key_lengths": [1, 2]}], ids=["all", "lengths"])
def test_failed_attention_leaves_the_cache(random, monkeypatch, options):
    mha = fm.MultiHeadAttention(32, 4, seed=0)
    cache = fm.KVCache(2, 4, 5, 8)
    mha(random.normal(2, 2, 32), cache=cache)
    held = cache.key[:, :, :2].copy()
    x = random.normal(2, 2, 32)

    def fails(error, message=None, **wrong):
        with pytest.raises(error, match=message):
            mha(x, cache=cache, **options, **wrong)
        np.testing.assert_array_equal(cache.lengths, [2, 2])
        assert_same_bits(cache.key[:, :, :2], held)

    fails(ValueError, r"mask|broadcast", attn_mask=np.ones((3, 3), bool))
    fails(ValueError, "residual", residual=random.normal(2, 3, 32))
    fails(TypeError, "residual", residual=np.zeros((2, 2, 32)))
    for error in (MemoryError, KeyboardInterrupt):
        with monkeypatch.context() as patch:
            patch.setattr(mha, "out_proj", raising(error))
            fails(error)


# ---- encoder blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", list(all_settings()), ids=names)
def test_encoder_block_matches_torch(random, setting):
    theirs = torch_layer(nn.TransformerEncoderLayer, 64, 4, 96, setting)
    ours = fm.EncoderBlock.from_torch(theirs)
    x = random.normal(len(LENGTHS), LONGEST, 64)
    expected = theirs(torch.from_numpy(x))
    close(ours(x), expected, "padded, all rows count")
    masked = theirs(torch.from_numpy(x), src_key_padding_mask=padding_mask(LENGTHS))
    out = ours(x, key_lengths=LENGTHS)
    for n, length in enumerate(LENGTHS):
        close(out[n, :length], masked[n, :length], f"sequence {n}")
        assert not out[n, length:].any()
    close(ours(x[0]), expected[0], "one sequence, without its batch axis")


@pytest.mark.parametrize(("d_model", "heads", "d_ff"), [(8, 1, 8), (30, 5, 7), (384, 12, 1536)])
def test_encoder_block_sizes(random, d_model, heads, d_ff):
    setting = next(all_settings()) | {"activation": "gelu"}
    theirs = torch_layer(nn.TransformerEncoderLayer, d_model, heads, d_ff, setting)
    x = random.normal(2, 37, d_model)
    close(fm.EncoderBlock.from_torch(theirs)(x), theirs(torch.from_numpy(x)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_block_each_norm_has_its_own_eps(random, norm_first):
    setting = next(all_settings()) | {"norm_first": norm_first}
    theirs = torch_layer(nn.TransformerEncoderLayer, 32, 2, 64, setting)
    theirs.norm2.eps = 0.5
    x = random.normal(2, 5, 32)
    close(fm.EncoderBlock.from_torch(theirs)(x), theirs(torch.from_numpy(x)))


@pytest.mark.parametrize("final_norm", [False, True])
def test_encoder_matches_torch(random, final_norm):
    setting = next(all_settings()) | {"norm_first": True}
    layer = torch_layer(nn.TransformerEncoderLayer, 64, 4, 128, setting)
    norm = nn.LayerNorm(64, eps=1e-3) if final_norm else None
    theirs = shaken(nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=False))
    ours = fm.Encoder.from_torch(theirs)
    x = random.normal(len(LENGTHS), LONGEST, 64)
    masked = theirs(torch.from_numpy(x), src_key_padding_mask=padding_mask(LENGTHS))
    out = ours(x, key_lengths=LENGTHS)
    for n, length in enumerate(LENGTHS):
        close(out[n, :length], masked[n, :length], f"sequence {n}")
        assert not out[n, length:].any()
    close(ours(x), theirs(torch.from_numpy(x)), "all rows count")


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (1, 1)])
def test_axes_of_one_element_may_have_any_stride(random, shape):
    """NumPy gives x[:, None] a stride of 0 there, which says nothing about where the rows lie."""
    block = fm.EncoderBlock(32, 4, 64, seed=0)
    x = random.normal(*shape, 32)
    view = np.lib.stride_tricks.as_strided(
        x,
        x.shape,
        [s if n > 1 else 0 for s, n in zip(x.strides, x.shape, strict=True)],
        writeable=False,
    )
    assert_same_bits(block(view), block(x))


def test_encoder_returns_the_weights_of_every_block(random):
    setting = next(all_settings())
    theirs = nn.TransformerEncoder(
        torch_layer(nn.TransformerEncoderLayer, 32, 4, 64, setting), 2, enable_nested_tensor=False
    )
    theirs = shaken(theirs)
    ours = fm.Encoder.from_torch(theirs)
    x = random.normal(2, 5, 32)
    out, weights = ours(x, return_weights=True)
    close(out, theirs(torch.from_numpy(x)))
    state = torch.from_numpy(x)
    for layer, block_weights in zip(theirs.layers, weights, strict=True):
        attention = layer.self_attn(state, state, state, average_attn_weights=False)
        close(block_weights, attention[1])
        state = layer(state)


# ---- decoder blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", list(all_settings()), ids=names)
def test_decoder_block_matches_torch(random, setting):
    theirs = torch_layer(nn.TransformerDecoderLayer, 64, 4, 96, setting)
    ours = fm.DecoderBlock.from_torch(theirs)
    x = random.normal(len(LENGTHS), LONGEST, 64)
    memory = random.normal(len(LENGTHS), max(MEMORY_LENGTHS), 64)
    causal = torch.triu(torch.ones(LONGEST, LONGEST, dtype=torch.bool), 1)
    both = torch.from_numpy(x), torch.from_numpy(memory)
    close(ours(x, memory), theirs(*both, tgt_mask=causal), "all rows count")
    masked = theirs(*both, tgt_mask=causal, memory_key_padding_mask=padding_mask(MEMORY_LENGTHS))
    close(ours(x, memory, memory_lengths=MEMORY_LENGTHS), masked, "memory padded")
    out = ours(x, memory, key_lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
    for n, length in enumerate(LENGTHS):
        close(out[n, :length], masked[n, :length], f"sequence {n}")
        assert not out[n, length:].any()


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_matches_torch(random, norm_first):
    setting = next(all_settings()) | {"norm_first": norm_first, "activation": "gelu"}
    layer = torch_layer(nn.TransformerDecoderLayer, 48, 6, 128, setting)
    theirs = shaken(nn.TransformerDecoder(layer, 3, nn.LayerNorm(48)))
    ours = fm.Decoder.from_torch(theirs)
    x, memory = random.normal(2, 9, 48), random.normal(2, 6, 48)
    causal = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
    expected = theirs(torch.from_numpy(x), torch.from_numpy(memory), tgt_mask=causal)
    close(ours(x, memory), expected)
    out, weights = ours(x, memory, return_weights=True)
    close(out, expected)
    assert [(own.shape, cross.shape) for own, cross in weights] == [
        ((2, 6, 9, 9), (2, 6, 9, 6))
    ] * 3
    for own, cross in weights:
        np.testing.assert_allclose(own.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(cross.sum(-1), 1, rtol=1e-6)
        assert not np.triu(own, 1).any()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("steps", [[1] * 9, [4, 1, 1, 3], [9]])
def test_decoder_with_cache_is_the_full_decoder(random, norm_first, steps):
    blocks = [fm.DecoderBlock(48, 4, 64, norm_first=norm_first, seed=n) for n in range(2)]
    decoder = fm.Decoder(blocks, fm.LayerNorm(48))
    x, memory = random.normal(4, 9, 48), random.normal(4, max(MEMORY_LENGTHS), 48)
    whole = decoder(x, memory, memory_lengths=MEMORY_LENGTHS)
    cache = decoder.new_cache(4, 9)
    done = 0
    for count in steps:
        new = slice(done, done + count)
        source = memory if done == 0 else None  # read once: the cache holds its keys and values
        lengths = MEMORY_LENGTHS if done == 0 else None
        out = decoder(x[:, new], source, memory_lengths=lengths, cache=cache)
        close(out, whole[:, new], f"positions {new}")
        done += count
    np.testing.assert_array_equal(cache.lengths, [9] * 4)


def test_decoder_cache_with_lengths(random):
    """Prompts of different lengths in one call, then one position each."""
    decoder = fm.Decoder([fm.DecoderBlock(32, 4, 64, seed=n) for n in range(2)], fm.LayerNorm(32))
    x, memory = random.normal(3, 6, 32), random.normal(3, 4, 32)
    whole = decoder(x, memory)
    prompt = x[:, :5].copy()
    lengths = [5, 2, 3]
    for n, length in enumerate(lengths):
        prompt[n, length:] = np.nan
    cache = decoder.new_cache(3, 6)
    out = decoder(prompt, memory, key_lengths=lengths, cache=cache)
    np.testing.assert_array_equal(cache.lengths, lengths)
    for n, length in enumerate(lengths):
        close(out[n, :length], whole[n, :length])
        assert not out[n, length:].any()
    following = np.stack([x[n, length] for n, length in enumerate(lengths)])[:, None]
    out = decoder(following, cache=cache)
    for n, length in enumerate(lengths):
        close(out[n, 0], whole[n, length])


def test_decoder_cache_beams_share_the_memory(random):
    """Two beams per source: each continues its own past, both look at the same memory."""
    decoder = fm.Decoder([fm.DecoderBlock(32, 4, 64, seed=n) for n in range(2)])
    memory = random.normal(3, 7, 32)
    lengths = [7, 2, 4]
    x = random.normal(6, 3, 32)
    whole = decoder(x, np.repeat(memory, 2, axis=0), memory_lengths=np.repeat(lengths, 2))
    cache = decoder.new_cache(3, 5, beam_size=2)
    for i in range(3):
        out = decoder(x[:, i : i + 1], memory, memory_lengths=lengths, cache=cache)
        close(out, whole[:, i : i + 1])

    order = [1, 0, 2, 2, 5, 4]  # swapped, copied, swapped
    cache.reorder(order)
    new = random.normal(6, 1, 32)
    longer = np.concatenate([x[order], new], axis=1)
    expected = decoder(longer, np.repeat(memory, 2, axis=0), memory_lengths=np.repeat(lengths, 2))
    close(decoder(new, cache=cache), expected[:, 3:], "reordered")

    cache.select([0, 2])  # the middle source leaves
    left = [0, 1, 4, 5]
    newest = random.normal(4, 1, 32)
    longest = np.concatenate([longer[left], newest], axis=1)
    expected = decoder(
        longest, np.repeat(memory[[0, 2]], 2, axis=0), memory_lengths=np.repeat([7, 4], 2)
    )
    close(decoder(newest, cache=cache), expected[:, 4:], "selected")
    with pytest.raises(ValueError, match="rise"):
        cache.select([1, 0])


def test_arguments_that_nothing_would_read_are_refused(random):
    decoder = fm.Decoder([fm.DecoderBlock(32, 4, 64, seed=n) for n in range(2)])
    x, memory, rows = random.normal(2, 1, 32), random.normal(2, 4, 32), random.normal(7, 32)
    for kind in (decoder, decoder.layers[0]):
        cache = kind.new_cache(2, 4)
        with pytest.raises(ValueError, match="cu_seqlens does not go with a cache"):
            kind(x, memory, cu_seqlens=[0, 1, 2], cache=cache)
        kind(x, memory, memory_lengths=[4, 1], cache=cache)
        with pytest.raises(ValueError, match=r"memory_lengths must be \[4, 1\].*got \[4, 2\]"):
            kind(x, memory, memory_lengths=[4, 2], cache=cache)
        with pytest.raises(ValueError, match=r"memory_cu_seqlens must be \[0, 4, 5\]"):
            kind(x, rows, memory_cu_seqlens=[0, 4, 7], cache=cache)
        kind(x, memory, memory_lengths=[4, 1], cache=cache)
        kind(x, memory_cu_seqlens=[0, 4, 5], cache=cache)
        with pytest.raises(TypeError, match=r"must be a Decoder(Block)?Cache, got int; new_cache"):
            kind(x, memory, cache=3)
    mha = fm.MultiHeadAttention(32, 4, seed=0)
    with pytest.raises(ValueError, match="cu_seqlens_k is for ragged keys"):
        mha(rows, rows, cu_seqlens_k=[0, 4, 7])
    with pytest.raises(ValueError, match="cu_seqlens_k is for ragged keys"):
        mha(rows, cu_seqlens=[0, 4, 7], cu_seqlens_k=[0, 4, 7])
    with pytest.raises(TypeError, match=r"cache must be a KVCache, got int; make one: fm\.KVCache"):
        mha(x, cache=3)


def test_failed_decoder_block_leaves_the_cache(random):
    """A call that finds no room keeps nothing of its memory: the next one brings its own."""
    block = fm.DecoderBlock(32, 4, 64, seed=0)
    x, first, second = random.normal(1, 3, 32), random.normal(1, 4, 32), random.normal(1, 4, 32)
    cache = block.new_cache(1, 2)
    with pytest.raises(ValueError, match=r"capacity|room|full"):
        block(x, first, cache=cache)
    np.testing.assert_array_equal(cache.lengths, [0])
    assert not cache.has_memory
    close(block(x[:, :2], second, cache=cache), block(x[:, :2], second))


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("broken", ["memory of block 2", "step"])
def test_failed_decoder_leaves_the_caches_of_all_blocks(random, monkeypatch, error, broken):
    blocks = [fm.DecoderBlock(32, 4, 64, seed=n) for n in range(2)]
    decoder = fm.Decoder(blocks, fm.LayerNorm(32))
    x, memory, other = random.normal(2, 3, 32), random.normal(2, 5, 32), random.normal(2, 4, 32)
    whole = decoder(x, memory)
    cache = decoder.new_cache(2, 3)

    def fails(*args):
        with monkeypatch.context() as patch:
            if broken == "step":
                patch.setattr(_core, "decoder_step", raising(error))
            else:
                patch.setattr(blocks[1].multihead_attn, "project_kv", raising(error))
            with pytest.raises(error):
                decoder(*args, cache=cache)

    fails(x[:, :2], other)
    assert not cache.has_memory
    close(decoder(x[:, :2], memory, cache=cache), whole[:, :2])
    if broken == "step":
        fails(x[:, 2:])
        np.testing.assert_array_equal(cache.lengths, [2, 2])
    close(decoder(x[:, 2:], cache=cache), whole[:, 2:])


# ---- promises: padding, NaN, what else is in the batch ------------------------------------------


@pytest.fixture(scope="module")
def stacks():
    encoder = fm.Encoder(
        [fm.EncoderBlock(64, 4, 128, seed=0), fm.EncoderBlock(64, 4, 128, norm_first=True, seed=1)],
        fm.LayerNorm(64),
    )
    decoder = fm.Decoder(
        [fm.DecoderBlock(64, 4, 128, seed=2), fm.DecoderBlock(64, 4, 128, norm_first=True, seed=3)],
        fm.LayerNorm(64),
    )
    return encoder, decoder


def test_ragged_is_padded_bit_for_bit(random, stacks):
    encoder, decoder = stacks
    memory = random.normal(4, max(MEMORY_LENGTHS), 64)
    memory_rows, memory_bounds = ragged(memory, MEMORY_LENGTHS)
    padded = encoder(memory, key_lengths=MEMORY_LENGTHS)
    rows = encoder(memory_rows, cu_seqlens=memory_bounds)
    assert_same_bits(rows, ragged(padded, MEMORY_LENGTHS)[0], "encoder")
    x = random.normal(4, LONGEST, 64)
    x_rows, bounds = ragged(x, LENGTHS)
    out = decoder(x, padded, key_lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
    out_rows = decoder(x_rows, rows, cu_seqlens=bounds, memory_cu_seqlens=memory_bounds)
    assert_same_bits(out_rows, ragged(out, LENGTHS)[0], "decoder")
    mixed = decoder(x, rows, key_lengths=LENGTHS, memory_cu_seqlens=memory_bounds)
    assert_same_bits(mixed, out, "padded x, ragged memory")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_sequence_does_not_depend_on_its_batch(random, stacks, num_threads, threads):
    encoder, decoder = stacks
    memory, x = random.normal(4, max(MEMORY_LENGTHS), 64), random.normal(4, LONGEST, 64)
    num_threads(2)
    encoded = encoder(memory, key_lengths=MEMORY_LENGTHS)
    decoded = decoder(x, encoded, key_lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
    num_threads(threads)
    for n in (3, 1, 0):
        source, own = memory[n : n + 1, : MEMORY_LENGTHS[n]], x[n : n + 1, : LENGTHS[n]]
        alone = encoder(source)
        assert_same_bits(alone[0], encoded[n, : MEMORY_LENGTHS[n]], f"encoder, sequence {n}")
        out = decoder(own, alone)
        if LENGTHS[n] > 1:  # a single query may round differently
            assert_same_bits(out[0], decoded[n, : LENGTHS[n]], f"decoder, sequence {n}")


def test_whatever_lies_in_padding_is_never_read(random, stacks):
    encoder, decoder = stacks
    memory, x = random.normal(4, max(MEMORY_LENGTHS), 64), random.normal(4, LONGEST, 64)
    for garbage in (0.0, np.nan, np.inf, 1e30):
        for n in range(4):
            memory[n, MEMORY_LENGTHS[n] :] = garbage
            x[n, LENGTHS[n] :] = garbage
        encoded = encoder(memory, key_lengths=MEMORY_LENGTHS)
        soiled = encoded.copy()
        for n in range(4):
            soiled[n, MEMORY_LENGTHS[n] :] = garbage
        decoded = decoder(x, soiled, key_lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS)
        cached = fm.MultiHeadAttention(64, 4, seed=0)(x, memory, key_lengths=MEMORY_LENGTHS)
        if garbage == 0.0:
            clean = encoded, decoded, cached
        assert_same_bits(encoded, clean[0], f"encoder, {garbage}")
        assert_same_bits(decoded, clean[1], f"decoder, {garbage}")
        for n, length in enumerate(LENGTHS):
            assert_same_bits(cached[n, :length], clean[2][n, :length], f"attention, {garbage}")


def test_empty_batches_and_empty_sequences(stacks, random):
    encoder, decoder = stacks
    assert encoder(np.empty((0, 5, 64), np.float32)).shape == (0, 5, 64)
    assert encoder(np.empty((0, 64), np.float32), cu_seqlens=[0]).shape == (0, 64)
    x = random.normal(2, 3, 64)
    out = encoder(x, key_lengths=[0, 3])
    assert not out[0].any()
    assert_same_bits(out[1:], encoder(x[1:]))
    nothing_to_see = decoder(x, x, memory_lengths=[0, 3])
    assert np.isfinite(nothing_to_see).all()


def test_feed_forward_matches_torch(random):
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(24, 56), nn.GELU(approximate="tanh"), nn.Linear(56, 24))
    ours = fm.FeedForward(24, 56, activation="gelu_tanh")
    ours.load_state_dict(
        {
            f"linear{n}.{name}": getattr(theirs[2 * n - 2], name)
            for n in (1, 2)
            for name in ("weight", "bias")
        }
    )
    x = random.normal(5, 24)
    close(ours(x, residual=x), theirs(torch.from_numpy(x)) + torch.from_numpy(x))


# ---- from_torch: settings that have no counterpart ----------------------------------------------


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), "relu"),
        (torch.relu, "relu"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (functools.partial(F.gelu, approximate="none"), "gelu"),
        (nn.SiLU(), "silu"),
    ],
)
def test_activation_is_read_from_modules_too(activation, expected):
    layer = nn.TransformerEncoderLayer(8, 2, 8, activation=activation, batch_first=True).eval()
    assert fm.EncoderBlock.from_torch(layer).activation == expected


def test_what_torch_can_and_we_cannot_is_refused():
    with pytest.raises(ValueError, match="add_bias_kv"):
        fm.MultiHeadAttention.from_torch(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    with pytest.raises(ValueError, match="add_zero_attn"):
        fm.MultiHeadAttention.from_torch(nn.MultiheadAttention(8, 2, add_zero_attn=True))
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.1, batch_first=True)
    with pytest.raises(ValueError, match=r"training mode .*eval\(\)"):
        fm.EncoderBlock.from_torch(layer)
    layer = nn.TransformerEncoderLayer(8, 2, 8, activation=F.leaky_relu, batch_first=True).eval()
    with pytest.raises(ValueError, match="leaky_relu"):
        fm.EncoderBlock.from_torch(layer)
    with pytest.raises(TypeError, match=r"TransformerDecoderLayer, got TransformerEncoderLayer"):
        fm.DecoderBlock.from_torch(layer)
    with pytest.raises(TypeError, match=r"float64.*\.float\(\)"):
        fm.MultiHeadAttention.from_torch(nn.MultiheadAttention(8, 2).double())


def test_from_torch_reads_half_precision_exactly(random):
    theirs = shaken(nn.MultiheadAttention(32, 4, batch_first=True)).bfloat16()
    x = random.normal(1, 5, 32)
    same = torch.from_numpy(x)
    widened = fm.MultiHeadAttention.from_torch(theirs)(x)
    close(widened, theirs.float()(same, same, same, need_weights=False)[0])


# ---- wrong calls --------------------------------------------------------------------------------


def wrong_calls():
    x, memory = np.zeros((2, 5, 32), np.float32), np.zeros((2, 7, 32), np.float32)
    rows = np.zeros((10, 32), np.float32)
    yield "EncoderBlock", TypeError, "float32", (x.astype(np.float64),), {}
    yield "EncoderBlock", TypeError, "array", (x.tolist(),), {}
    yield "EncoderBlock", ValueError, "32", (x[:, :, :31],), {}
    yield "EncoderBlock", ValueError, r"\(32,\)", (x[0, 0],), {}
    yield "EncoderBlock", ValueError, r"shape \(2,\)", (x,), {"key_lengths": [5]}
    yield "EncoderBlock", ValueError, r"0 \.\. 5, got 6", (x,), {"key_lengths": [6, 1]}
    yield "EncoderBlock", ValueError, r"0 \.\. 5, got -1", (x,), {"key_lengths": [-1, 1]}
    yield "EncoderBlock", TypeError, "integers", (x,), {"key_lengths": [1.0, 2.0]}
    yield "EncoderBlock", ValueError, "end at .* 10", (rows,), {"cu_seqlens": [0, 4, 9]}
    yield "EncoderBlock", ValueError, "start at 0", (rows,), {"cu_seqlens": [1, 4, 10]}
    yield "EncoderBlock", ValueError, "never fall", (rows,), {"cu_seqlens": [0, 6, 4, 10]}
    yield "EncoderBlock", TypeError, "integers", (rows,), {"cu_seqlens": [0.0, 10.0]}
    yield "EncoderBlock", ValueError, "ragged", (x,), {"cu_seqlens": [0, 5, 10]}
    yield "EncoderBlock", ValueError, "padded", (rows,), {"key_lengths": [5, 5]}
    yield "DecoderBlock", ValueError, "memory", (x,), {}
    yield (
        "DecoderBlock",
        ValueError,
        "2 sequences, memory 1",
        (x, memory[:1]),
        {"key_lengths": [1, 2]},
    )
    yield "DecoderBlock", ValueError, "batch|memory|key", (x, memory[:1]), {}
    yield "DecoderBlock", ValueError, "memory_lengths", (x, memory), {"memory_lengths": [8, 1]}
    yield "MultiHeadAttention", ValueError, "value without key", (x, None, x), {}
    yield (
        "MultiHeadAttention",
        ValueError,
        "cu_seqlens",
        (rows,),
        {"cu_seqlens": [0, 10], "key_lengths": [1]},
    )
    yield "MultiHeadAttention", ValueError, "key_lengths|lengths", (x,), {"key_lengths": [6, 1]}


@pytest.mark.parametrize(("kind", "error", "message", "args", "options"), list(wrong_calls()))
def test_wrong_calls(kind, error, message, args, options):
    sizes = (32, 4) if kind == "MultiHeadAttention" else (32, 4, 64)
    with pytest.raises(error, match=message):
        getattr(fm, kind)(*sizes, seed=0)(*args, **options)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        fm.EncoderBlock(30, 4, 8)
    with pytest.raises(ValueError, match="multiple of num_kv_heads"):
        fm.MultiHeadAttention(32, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match="d_ff must be at least 1"):
        fm.EncoderBlock(32, 4, 0)
    with pytest.raises(TypeError, match="num_heads must be an int"):
        fm.MultiHeadAttention(32, 4.0)
    with pytest.raises(ValueError, match=r"activation must be one of .* got 'tanh'"):
        fm.DecoderBlock(32, 4, 8, activation="tanh")
    with pytest.raises(ValueError, match="at least one block"):
        fm.Encoder([])
    with pytest.raises(ValueError, match="one width"):
        fm.Encoder([fm.EncoderBlock(32, 4, 8)], fm.LayerNorm(16))
    with pytest.raises(ValueError, match="key is needed"):
        fm.MultiHeadAttention(32, 4, kdim=16)(np.zeros((1, 2, 32), np.float32))


def test_decoder_cache_wrong_calls(random):
    decoder = fm.Decoder([fm.DecoderBlock(32, 4, 64, seed=0)])
    x, memory = random.normal(2, 1, 32), random.normal(2, 3, 32)
    cache = decoder.new_cache(2, 1)
    with pytest.raises(ValueError, match="first call with a cache needs memory"):
        decoder(x, cache=cache)
    with pytest.raises(ValueError, match="2 sources, memory holds 1"):
        decoder(x, memory[:1], cache=cache)
    with pytest.raises(ValueError, match=r"x must be \(2, length, 32\)"):
        decoder(x[:1], memory, cache=cache)
    decoder(x, memory, cache=cache)
    with pytest.raises(ValueError, match=r"capacity|room|full"):
        decoder(x, cache=cache)
    np.testing.assert_array_equal(cache.lengths, [1, 1])
    deeper = fm.Decoder([fm.DecoderBlock(32, 4, 64, seed=n) for n in range(2)])
    with pytest.raises(ValueError, match="cache is for 1 blocks"):
        deeper(x, memory, cache=cache)


@pytest.mark.parametrize("dtype", ["float32", "f4", np.float32, np.dtype("float32")], ids=repr)
def test_linear_takes_float32_by_any_name(random, dtype):
    assert fm.Linear(random.normal(3, 4), dtype=dtype).nbytes > 0


@pytest.mark.parametrize("dtype", ["int4", "float16", np.float64, None, 3], ids=repr)
def test_linear_refuses_other_dtypes(random, dtype):
    with pytest.raises(ValueError, match="Linear: dtype must be 'float32', got"):
        fm.Linear(random.normal(3, 4), dtype=dtype)


def test_seed_gives_the_same_weights():
    first, second = (fm.EncoderBlock(32, 4, 64, seed=7).state_dict() for _ in range(2))
    for name, array in first.items():
        assert_same_bits(array, second[name], name)
    other = fm.EncoderBlock(32, 4, 64, seed=8).state_dict()
    assert (other["linear1.weight"] != first["linear1.weight"]).any()
    assert np.abs(first["self_attn.in_proj_weight"]).max() > 0.1


def gated_rms_block(state, x, heads, head_dim, scale, *, memory=None):
    """An encoder or decoder block with RMS norms first and a gated feed-forward, in float64."""

    def rms(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * state[f"{name}.weight"]

    def attend(x, source, name, *, causal):
        q, k, v = np.split(state[f"{name}.in_proj_weight"], 3)
        q, k, v = (
            (rows @ weight.T).reshape(len(rows), heads, head_dim).transpose(1, 0, 2)
            for rows, weight in ((x, q), (source, k), (source, v))
        )
        scores = scale * q @ k.transpose(0, 2, 1)
        if causal:
            scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        weights = scores / scores.sum(-1, keepdims=True)
        joined = (weights @ v).transpose(1, 0, 2).reshape(len(x), heads * head_dim)
        return joined @ state[f"{name}.out_proj.weight"].T

    state = {name: array.astype(np.float64) for name, array in state.items()}
    x = x.astype(np.float64)
    y = rms(x, "norm1")
    x = x + attend(y, y, "self_attn", causal=memory is not None)
    if memory is not None:
        x = x + attend(rms(x, "norm2"), memory.astype(np.float64), "multihead_attn", causal=False)
    y = rms(x, "norm2" if memory is None else "norm3")
    hidden = np.maximum(y @ state["linear1.weight"].T, 0) * (y @ state["gate.weight"].T)
    return x + hidden @ state["linear2.weight"].T


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_blocks_with_rms_norms_gates_and_heads_of_another_width(random, length, scale):
    """What T5 asks for, against the same in float64."""
    settings = {
        "norm_first": True, "norm": "rms_norm", "norm_eps": 1e-6, "bias": False, "gated": True,
        "head_dim": 24, "scale": scale,
    }  # fmt: skip
    x, memory = random.normal(3, length, 32), random.normal(3, length + 2, 32)
    for kind in (fm.EncoderBlock, fm.DecoderBlock):
        block = kind(32, 2, 80, **settings, seed=0)
        assert {"gate.weight": (80, 32), "norm1.weight": (32,)}.items() <= (
            block.state_shapes().items()
        )
        state = block.state_dict()
        for name in ("norm1", "norm2"):
            state[f"{name}.weight"] = random.normal(32)
        block.load_state_dict(state)
        inputs = (memory,) if kind is fm.DecoderBlock else ()
        actual = block(x, *inputs)
        for n in range(3):
            given = {"memory": memory[n]} if inputs else {}
            expected = gated_rms_block(state, x[n], 2, 24, scale or 24**-0.5, **given)
            np.testing.assert_allclose(actual[n], expected, rtol=2e-5, atol=2e-5)
        if not inputs:
            continue
        cache = block.new_cache(3, length)
        steps = [block(x[:, i : i + 1], memory, cache=cache) for i in range(length)]
        np.testing.assert_allclose(np.concatenate(steps, 1), actual, rtol=2e-5, atol=2e-5)


def test_unknown_norms_are_refused():
    with pytest.raises(ValueError, match="DecoderBlock: norm must be one of layer_norm, rms_norm"):
        fm.DecoderBlock(8, 2, 8, norm="batch_norm")
