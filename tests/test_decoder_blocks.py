"""Few rows through all blocks of a decoder in one call, without a cache: bit for bit what they give
one by one.

The call is for short texts; more rows take the sub-layers in turn. Which way is taken must not
show.
"""

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits
from fastmha import _core
from fastmha.nn import blocks
from test_encoder_blocks import one_by_one
from test_sublayers import shaken

# Rows of each sequence, and of its memory.
LENGTHS = [
    ([2], [1]), ([5], [5]), ([4], [33]), ([1, 4], [3, 0]), ([33], [64]), ([7, 0, 9], [20, 30, 14]),
    ([64], [2]), ([16, 17, 31], [1, 62, 1]), ([3, 1, 1, 1, 2], [5, 5, 5, 5, 5]),
]  # fmt: skip
D = 60  # no whole number of vectors or panels


def decoder(**options):
    built = [fm.DecoderBlock(D, 3, 100, activation="gelu", **options) for _ in range(3)]
    norm = fm.LayerNorm(D) if options.get("norm_first") else None
    return shaken(fm.Decoder(built, norm))


def bounds_of(lengths):
    return np.cumsum([0, *lengths])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"norm": "rms_norm", "gated": True}, {"head_dim": 24, "scale": 0.3}]
)
def test_bits_of_the_blocks_one_by_one(
    random, monkeypatch, num_threads, options, norm_first, threads
):
    stack = decoder(norm_first=norm_first, **options)
    num_threads(threads)
    for lengths, memory_lengths in LENGTHS:
        x, memory = random.normal(sum(lengths), D), random.normal(sum(memory_lengths), D)
        bounds = {
            "cu_seqlens": bounds_of(lengths),
            "memory_cu_seqlens": bounds_of(memory_lengths),
        }
        for bias in (None, random.normal(3, 2 * 20 + 1)):

            def call(run=stack, x=x, memory=memory, bounds=bounds, bias=bias):
                return run(x, memory, **bounds, relative_bias=bias)

            assert_same_bits(call(), one_by_one(monkeypatch, call))

            def alone(call=call):
                return call(stack.layers[0])

            assert_same_bits(alone(), one_by_one(monkeypatch, alone))


@pytest.mark.parametrize("rows", [2, 4, 5])
def test_a_block_that_normalises_first_behind_one_that_does_not(random, monkeypatch, rows):
    mixed = shaken(fm.Decoder([fm.DecoderBlock(D, 3, 100, norm_first=first) for first in (0, 1)]))
    x, memory = random.normal(1, rows, D), random.normal(1, 7, D)
    assert_same_bits(mixed(x, memory), one_by_one(monkeypatch, lambda: mixed(x, memory)))


def test_every_form_of_a_batch(random, monkeypatch):
    """Padded, dense, ragged and alone are the same; padding is not read."""
    stack = decoder()
    x, memory = random.normal(3, 9, D), random.normal(3, 11, D)
    x[1, 4:], memory[0, 6:], memory[1] = np.nan, np.nan, np.nan
    padded = stack(x, memory, key_lengths=[9, 4, 9], memory_lengths=[6, 0, 11])
    assert (padded[1, 4:] == 0).all()
    assert np.isfinite(padded).all()
    rows, memory_rows = (
        np.concatenate([x[0], x[1, :4], x[2]]),
        np.concatenate([memory[0, :6], memory[2]]),
    )
    ragged = stack(rows, memory_rows, cu_seqlens=[0, 9, 13, 22], memory_cu_seqlens=[0, 6, 6, 17])
    assert_same_bits(ragged, np.concatenate([padded[0], padded[1, :4], padded[2]]))
    mixed = stack(x, memory_rows, key_lengths=[9, 4, 9], memory_cu_seqlens=[0, 6, 6, 17])
    assert_same_bits(mixed, padded)
    assert_same_bits(stack(x[2], memory[2]), padded[2])
    assert_same_bits(stack(x[2:], memory[2:]), padded[2:])
    assert_same_bits(stack(x[2:], memory[2]), padded[2:])
    backwards = memory[2:, ::-1][:, ::-1]
    assert_same_bits(stack(x[2:, ::-1][:, ::-1], backwards), padded[2:])
    both = x[[2, 2]], memory[[2, 2]]
    assert_same_bits(stack(*both), padded[[2, 2]])
    assert_same_bits(one_by_one(monkeypatch, lambda: stack(*both)), padded[[2, 2]])
    # More rows than go through in one call.
    many = stack(np.repeat(x[2:], 20, axis=0), np.repeat(memory[2:], 20, axis=0))
    assert_same_bits(many[7], padded[2])


@pytest.mark.parametrize(
    ("lengths", "memory_lengths", "taken"),
    [([2], [1], True), ([1], [5], False), ([1, 1], [2, 2], False), ([1, 2], [0, 1], True),
     ([2], [0], False), ([blocks.FEW_ROWS], [blocks.FEW_MEMORY_ROWS], True),
     ([blocks.FEW_ROWS + 1], [2], False),
     ([2], [blocks.FEW_MEMORY_ROWS + 1], False), ([], [], False)],
)  # fmt: skip
def test_who_takes_the_call(random, monkeypatch, lengths, memory_lengths, taken):
    """Single queries alone are decoding, whose sums are others; many rows have a better way."""
    calls = []
    real = _core.decoder_blocks
    monkeypatch.setattr(_core, "decoder_blocks", lambda *a: calls.append(a) or real(*a))
    rows = random.normal(sum(lengths), D), random.normal(sum(memory_lengths), D)
    bounds = {"cu_seqlens": bounds_of(lengths), "memory_cu_seqlens": bounds_of(memory_lengths)}
    decoder()(*rows, **bounds)
    assert bool(calls) == taken
    if len(lengths) == 1 and taken:
        decoder().layers[0](*(array[None] for array in rows))
        assert len(calls) == 2
    calls.clear()
    decoder()(*rows, **bounds, return_weights=True)
    assert not calls


def test_errors_are_those_of_the_layers_above(random):
    stack = decoder()
    x, memory = random.normal(2, 5, D), random.normal(2, 3, D)
    for run, name in ((stack, "Decoder"), (stack.layers[0], "DecoderBlock")):
        for arguments, message in (
            ((x[..., :-1], memory), "must have 60 features"),
            ((x, memory[..., :-1]), "must have 60 features"),
            ((x.astype(np.float64), memory), "must be float32"),
            ((x, memory.astype(np.float64)), "must be float32"),
            ((x, memory[:1]), "batch|sequences"),
            ((x, memory[0]), f"{name}: x holds 2 sequences, memory 1"),
            ((x,), f"{name}: memory is needed"),
            ((x, memory.tolist()), f"{name}: memory must be a NumPy array"),
        ):
            with pytest.raises((TypeError, ValueError), match=message):
                run(*arguments)
        with pytest.raises(ValueError, match="relative_bias must"):
            run(x, memory, relative_bias=random.normal(2, 3))
    bias = random.normal(3, 3)
    bias[1, 0] = np.nan
    with pytest.raises(ValueError, match="relative_bias must be finite"):
        stack(x, memory, relative_bias=bias)


def test_wrong_arguments_of_the_core(random):
    """The layers above never pass these; none may crash or be taken for something else."""
    block = decoder().layers[0]._core_arguments("q", "kv")
    x, memory = random.normal(5, D), random.normal(7, D)
    bounds, memory_bounds = np.array([0, 2, 5]), np.array([0, 3, 7])
    out = _core.decoder_blocks([block], None, x, memory, bounds, memory_bounds, None)
    assert out.shape == (5, D)

    def changed(place, thing):
        return [(*block[:place], thing, *block[place + 1 :])]

    narrow = (np.ones(D - 1, np.float32), None, 1e-5)
    good = [block], None, x, memory, bounds, memory_bounds
    for place, thing, error, message in (
        (0, (block,), TypeError, "blocks must be a list"),
        (0, [], ValueError, "at least one block"),
        (0, [block[:5]], TypeError, "a tuple of 15 parts"),
        (0, changed(2, "text"), TypeError, "packed linear layers, got str"),
        *((0, changed(n, None), ValueError, "needs all its maps|memory_kv_proj") for n in range(7)),
        (0, changed(2, block[0]), ValueError, "memory_q_proj must be 60 -> 60"),
        (0, changed(3, block[2]), ValueError, "memory_kv_proj must be 60 -> 120, got 60 -> 60"),
        (0, changed(4, block[5]), ValueError, "memory_out_proj must be|memory_q_proj must be"),
        (0, changed(12, 0), ValueError, "multiple of kv_heads"),
        (0, changed(12, 7), ValueError, "multiple of kv_heads"),
        (0, changed(14, float("nan")), ValueError, "scale must be finite"),
        (0, changed(9, narrow), ValueError, r"norms\[1\]\.weight must have shape"),
        (1, narrow, ValueError, r"norm\.weight must have shape"),
        (2, x[:, :-1], ValueError, "in_proj must be 59 -> "),
        (3, memory[:, :-1], ValueError, "memory_kv_proj must be 59 -> 120"),
        (3, memory.astype(np.float64), TypeError, "memory must be float32"),
        (4, bounds * 2, ValueError, "cu_seqlens"),
        (4, bounds[:2], ValueError, "x holds 1 sequences, memory 2"),
        (4, None, ValueError, "x must be .* without cu_seqlens"),
        (5, memory_bounds[::-1].copy(), ValueError, "cu_seqlens_memory"),
        (5, memory_bounds - 1, ValueError, "cu_seqlens_memory"),
        (5, None, ValueError, "memory must be .* without cu_seqlens_memory"),
    ):  # fmt: skip
        given = [*good[:place], thing, *good[place + 1 :], None]
        with pytest.raises(error, match=message):
            _core.decoder_blocks(*given)
    for sizes in ([0], np.arange(6)):
        nothing = np.asarray(sizes)
        with pytest.raises(ValueError, match=r"at least 1|two rows or more"):
            _core.decoder_blocks(
                [block], None, x[: nothing[-1]], memory[: nothing[-1]], nothing, nothing, None
            )
    with pytest.raises(ValueError, match="set both"):
        _core.decoder_blocks([block], None, x, memory[None], np.array([0, 5]), None, None)


@pytest.mark.parametrize("settings", [{"num_heads": 6}, {"num_heads": 3, "scale": 0.5}])
def test_another_attention_over_the_memory_keeps_its_heads_and_scale(random, monkeypatch, settings):
    """Calls for whole blocks took those of self_attn for both."""
    stack = decoder()
    heads = settings.pop("num_heads")
    stack.layers[1].multihead_attn = fm.MultiHeadAttention(D, heads, seed=3, **settings)
    x, memory = random.normal(1, 5, D), random.normal(1, 7, D)
    assert_same_bits(stack(x, memory), one_by_one(monkeypatch, lambda: stack(x, memory)))
    block = stack.layers[1]
    assert_same_bits(block(x, memory), one_by_one(monkeypatch, lambda: block(x, memory)))
    with pytest.raises(
        ValueError, match=r"multihead_attn must have the same heads and scale, .* 1"
    ):
        stack(x, memory, cache=stack.new_cache(1, 5))
    with pytest.raises(ValueError, match="multihead_attn must have the same heads and scale"):
        block(x, memory, cache=block.new_cache(1, 5))
