"""layer_norm, rms_norm and softmax against the oracle."""

import fastmha as fm
import numpy as np
import pytest
import reference
from conftest import assert_same_bits
from tolerance import assert_close, norm_bound, softmax_bound

FEATURES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 384, 512, 513, 1000, 4096]
SHAPES = [(), (1,), (5,), (2, 3), (2, 3, 4), (1, 1, 2, 1, 3)]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(random, features, residual, bias):
    x, weight = random.normal(6, features), random.normal(features)
    other = random.normal(6, features) if residual else None
    shift = random.normal(features) if bias else None
    for eps in (1e-5, 1e-12, 0.1):
        expected = reference.layer_norm(x, weight, shift, eps, other)
        out = fm.layer_norm(x, weight, shift, eps, residual=other)
        assert_close(out, expected, norm_bound(x, weight, shift, eps, other))
    default = fm.layer_norm(x, weight, shift, residual=other)
    assert_same_bits(default, fm.layer_norm(x, weight, shift, 1e-5, residual=other))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(random, features, residual):
    x, weight = random.normal(6, features), random.normal(features)
    other = random.normal(6, features) if residual else None
    for eps in (1e-6, 1e-12, 0.1):
        expected = reference.rms_norm(x, weight, eps, other)
        out = fm.rms_norm(x, weight, eps, residual=other)
        assert_close(out, expected, norm_bound(x, weight, None, eps, other, centred=False))
    default = fm.rms_norm(x, weight, residual=other)
    assert_same_bits(default, fm.rms_norm(x, weight, 1e-6, residual=other))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 50.0, 1e4])
def test_softmax(random, features, scale):
    x = random.normal(6, features, scale=scale)
    assert_close(fm.softmax(x), reference.softmax(x), softmax_bound(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_leading_axes(random, shape):
    x, weight, bias = random.normal(*shape, 20), random.normal(20), random.normal(20)
    residual = random.normal(*shape, 20)
    out = fm.layer_norm(x, weight, bias, residual=residual)
    expected = reference.layer_norm(x, weight, bias, residual=residual)
    assert_close(out, expected, norm_bound(x, weight, bias, residual=residual))
    out = fm.rms_norm(x, weight, residual=residual)
    expected = reference.rms_norm(x, weight, residual=residual)
    assert_close(out, expected, norm_bound(x, weight, None, 1e-6, residual, centred=False))
    assert_close(fm.softmax(x), reference.softmax(x), softmax_bound(x))


def test_layouts(random):
    x, weight, bias, residual = (random.normal(*s) for s in ((6, 33), (33,), (33,), (6, 33)))
    expected = fm.layer_norm(x, weight, bias, residual=residual)
    expected_rms, expected_softmax = fm.rms_norm(x, weight, residual=residual), fm.softmax(x)
    views = [
        np.asfortranarray,
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
    ]
    for view in views:
        out = fm.layer_norm(view(x), view(weight), view(bias), residual=view(residual))
        assert_same_bits(out, expected)
        assert_same_bits(fm.rms_norm(view(x), view(weight), residual=view(residual)), expected_rms)
        assert_same_bits(fm.softmax(view(x)), expected_softmax)
    row = np.broadcast_to(x[:1], x.shape)
    assert_same_bits(fm.softmax(row), fm.softmax(row.copy()))


def test_variance_takes_two_passes(random):
    """Far from zero, E[x^2] - E[x]^2 has no correct digit left. Whole numbers keep the sums here
    exact.
    """
    x = (100_000 + random.rng.integers(-3, 4, (5, 64))).astype(np.float32)
    weight = np.ones(64, np.float32)
    np.testing.assert_allclose(
        fm.layer_norm(x, weight), reference.layer_norm(x, weight), rtol=1e-4, atol=1e-4
    )


def test_constant_rows(random):
    """Variance 0: only eps keeps the division finite."""
    weight, bias = random.normal(50), random.normal(50)
    x = np.full((3, 50), 7.0, np.float32)
    np.testing.assert_allclose(fm.layer_norm(x, weight, bias), np.tile(bias, (3, 1)), atol=1e-6)
    zeros = np.zeros_like(x)
    np.testing.assert_array_equal(fm.rms_norm(zeros, weight), zeros)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0,), (3, 0)])
def test_empty(shape):
    x = np.zeros(shape, np.float32)
    assert fm.softmax(x).shape == shape
    if shape[-1]:
        weight = np.ones(shape[-1], np.float32)
        assert fm.layer_norm(x, weight).shape == shape
        assert fm.rms_norm(x, weight).shape == shape


def test_nan_stays_in_its_row(random):
    x, weight = random.normal(5, 33), random.normal(33)
    for run in (lambda a: fm.layer_norm(a, weight), lambda a: fm.rms_norm(a, weight), fm.softmax):
        clean = run(x)
        dirty = x.copy()
        dirty[2, 7] = np.nan
        out = run(dirty)
        assert np.isnan(out[2]).all()
        assert_same_bits(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_softmax_limits():
    """Scores far apart, -inf as a masked score, the largest float."""
    x = np.array(
        [[0, -np.inf, 0], [1e30, 0, -1e30], [3e38, 3e38, -3e38], [-1e4, -1e4, -1e4]], np.float32
    )
    expected = [[0.5, 0, 0.5], [1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]
    np.testing.assert_allclose(fm.softmax(x), expected, rtol=1e-6)


def test_softmax_of_infinite_rows():
    """No score at all gives zeros (as attention does); an infinite one has no limit."""
    x = np.array([[-np.inf, -np.inf], [np.inf, 0], [np.nan, -np.inf], [-np.inf, 3]], np.float32)
    np.testing.assert_array_equal(
        fm.softmax(x), [[0, 0], [np.nan, np.nan], [np.nan, np.nan], [0, 1]]
    )


def test_out(random):
    """A new array, or in place."""
    x, weight, residual = random.normal(6, 33), random.normal(33), random.normal(6, 33)
    for run in (
        lambda x, out: fm.layer_norm(x, weight, out=out),
        lambda x, out: fm.layer_norm(x, weight, weight, residual=residual, out=out),
        lambda x, out: fm.rms_norm(x, weight, residual=residual, out=out),
        lambda x, out: fm.softmax(x, out=out),
        lambda x, out: fm.gelu(x, out=out),
        lambda x, out: fm.gelu(x, "tanh", out=out),
        lambda x, out: fm.relu(x, out=out),
        lambda x, out: fm.silu(x, out=out),
    ):
        expected = run(x, None)
        out = np.full_like(x, np.nan)
        assert run(x, out) is out
        assert_same_bits(out, expected)
        wide = np.full((6, 40), np.nan, np.float32)
        run(x, wide[:, 3:36])
        assert_same_bits(wide[:, 3:36], expected)
        assert np.isnan(wide[:, [0, 1, 2, 36, 37, 38, 39]]).all()
        same = x.copy()
        assert run(same, same) is same
        assert_same_bits(same, expected, "in place")
