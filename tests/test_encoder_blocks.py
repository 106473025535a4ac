"""Few rows through all blocks of an encoder in one call: bit for bit what they give one by one.

The call is for short texts; more rows take the sub-layers in turn. Which way is taken must not
show.
"""

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits
from fastmha import _core
from fastmha.nn import blocks
from test_sublayers import shaken

LENGTHS = [[2], [5], [1, 4], [33], [7, 0, 9], [64], [16, 17, 31], [3, 1, 1, 1, 2]]
D = 60  # no whole number of vectors or panels


def encoder(**options):
    built = [fm.EncoderBlock(D, 3, 100, activation="gelu", **options) for _ in range(3)]
    norm = fm.LayerNorm(D) if options.get("norm_first") else None
    return shaken(fm.Encoder(built, norm))


def one_by_one(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "FEW_ROWS", 0)
        return call()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"norm": "rms_norm", "gated": True}, {"head_dim": 24, "scale": 0.3}]
)
def test_bits_of_the_blocks_one_by_one(
    random, monkeypatch, num_threads, options, norm_first, threads
):
    stack = encoder(norm_first=norm_first, **options)
    num_threads(threads)
    for lengths in LENGTHS:
        x, bounds = random.normal(sum(lengths), D), np.cumsum([0, *lengths])
        for bias in (None, random.normal(3, 2 * 20 + 1)):

            def call(run=stack, x=x, bounds=bounds, bias=bias):
                return run(x, cu_seqlens=bounds, relative_bias=bias)

            assert_same_bits(call(), one_by_one(monkeypatch, call))

            def alone(call=call):
                return call(stack.layers[0])

            assert_same_bits(alone(), one_by_one(monkeypatch, alone))


@pytest.mark.parametrize("rows", [2, 4, 5])
def test_a_block_that_normalises_first_behind_one_that_does_not(random, monkeypatch, rows):
    """Up to 4 rows the second block's norm overwrote what it was to be added to."""
    mixed = shaken(fm.Encoder([fm.EncoderBlock(D, 3, 100, norm_first=first) for first in (0, 1)]))
    x = random.normal(1, rows, D)
    assert_same_bits(mixed(x), one_by_one(monkeypatch, lambda: mixed(x)))


def test_every_form_of_a_batch(random, monkeypatch):
    """Padded, dense, ragged and alone are the same; padding is not read."""
    stack = encoder()
    x = random.normal(3, 9, D)
    x[1, 4:] = np.nan
    padded = stack(x, key_lengths=[9, 4, 9])
    assert (padded[1, 4:] == 0).all()
    ragged = stack(np.concatenate([x[0], x[1, :4], x[2]]), cu_seqlens=[0, 9, 13, 22])
    assert_same_bits(ragged, np.concatenate([padded[0], padded[1, :4], padded[2]]))
    assert_same_bits(stack(x[[0, 2]]), padded[[0, 2]])
    assert_same_bits(stack(x[2]), padded[2])
    assert_same_bits(stack(x[:1, ::-1][:, ::-1]), padded[:1])
    assert_same_bits(one_by_one(monkeypatch, lambda: stack(x[[0, 2]])), padded[[0, 2]])
    many = stack(np.repeat(x[:1], 20, axis=0))  # more rows than go through in one call
    assert_same_bits(many[7], padded[0])


@pytest.mark.parametrize(
    ("lengths", "taken"), [([2], True), ([1], False), ([1, 1, 1], False), ([1, 2], True),
                           ([64], True), ([65], False), ([], False)],
)  # fmt: skip
def test_who_takes_the_call(random, monkeypatch, lengths, taken):
    """Single queries alone are decoding, whose sums are others; many rows have a better way."""
    calls = []
    real = _core.encoder_blocks
    monkeypatch.setattr(_core, "encoder_blocks", lambda *a: calls.append(a) or real(*a))
    encoder()(random.normal(sum(lengths), D), cu_seqlens=np.cumsum([0, *lengths]))
    assert bool(calls) == taken


def test_errors_are_those_of_the_layers_above(random):
    stack = encoder()
    for x, message in (
        (random.normal(5, D - 1), "must have 60 features"),
        (random.normal(5, D).astype(np.float64), "must be float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            stack(x, cu_seqlens=[0, 2, 5])
    with pytest.raises(ValueError, match="relative_bias must"):
        stack(random.normal(5, D), cu_seqlens=[0, 5], relative_bias=random.normal(2, 3))
    bias = random.normal(3, 3)
    bias[1, 0] = np.nan
    with pytest.raises(ValueError, match="relative_bias must be finite"):
        stack(random.normal(5, D), cu_seqlens=[0, 5], relative_bias=bias)


def test_wrong_arguments_of_the_core(random):
    """The layers above never pass these; none may crash or be taken for something else."""
    block = encoder().layers[0]._core_arguments()
    x, bounds = random.normal(5, D), np.array([0, 2, 5])
    assert _core.encoder_blocks([block], None, x, bounds, None).shape == (5, D)

    def changed(place, thing):
        return [(*block[:place], thing, *block[place + 1 :])]

    narrow = (np.ones(D - 1, np.float32), None, 1e-5)
    for blocks_, norm, rows, bounds_, error, message in (
        ((block,), None, x, bounds, TypeError, "blocks must be a list"),
        ([], None, x, bounds, ValueError, "at least one block"),
        ([block[:5]], None, x, bounds, TypeError, "a tuple of 11 parts"),
        (changed(0, "text"), None, x, bounds, TypeError, "packed linear layers, got str"),
        (changed(0, None), None, x, bounds, ValueError, "needs all its maps"),
        (changed(1, block[2]), None, x, bounds, ValueError, "in_features of|must be"),
        (changed(8, 0), None, x, bounds, ValueError, "multiple of kv_heads"),
        (changed(8, 7), None, x, bounds, ValueError, "multiple of kv_heads"),
        (changed(10, float("nan")), None, x, bounds, ValueError, "scale must be finite"),
        (changed(6, narrow), None, x, bounds, ValueError, r"norms\[1\]\.weight must have shape"),
        ([block], narrow, x, bounds, ValueError, r"norm\.weight must have shape"),
        ([block], None, x, bounds * 2, ValueError, "cu_seqlens"),
        ([block], None, x, bounds[::-1].copy(), ValueError, "cu_seqlens"),
        ([block], None, x, bounds[:0], ValueError, "sequences must be at least 1"),
        ([block], None, x, np.arange(6), ValueError, "two rows or more"),
        ([block], None, x, None, ValueError, "without cu_seqlens"),
        ([block], None, x[:, :-1], bounds, ValueError, "in_proj must be 59 -> "),
        ([block], None, x[None, :0], None, ValueError, "two rows or more"),
    ):
        with pytest.raises(error, match=message):
            _core.encoder_blocks(blocks_, norm, rows, bounds_, None)
