"""The vectorised exponential: its stated error bound (cpp/kernels/math.h), swept over the whole of
float32.
"""

import numpy as np
import pytest
from fastmha import _core
from tolerance import EXP_ERROR

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)


def check(x):
    with np.errstate(all="ignore"):  # overflow, underflow, signalling NaN
        expected = np.exp(x.astype(np.float64))
    out = _core.exp(x).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
    assert (out[~np.isnan(out)] >= 0).all()
    normal = (expected >= SMALLEST_NORMAL) & (expected <= LARGEST)
    error = np.abs(out[normal] / expected[normal] - 1)
    if error.size:
        worst = error.argmax()
        assert error[worst] <= EXP_ERROR, f"{error[worst]:.3e} at x = {x[normal][worst]!r}"
    over, under = expected > LARGEST * (1 + EXP_ERROR), expected < SMALLEST_NORMAL
    assert (out[over] == np.inf).all()
    assert (out[under] <= SMALLEST_NORMAL).all()  # zero or subnormal


def test_every_magnitude():
    """Every 997th bit pattern of float32: 4.3 million numbers, NaN and infinities among them."""
    bits = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32)
    for part in np.array_split(bits, 16):
        check(part.view(np.float32))


def test_where_results_are_normal():
    """A million numbers where exp is neither 0 nor infinite."""
    check(np.linspace(-87.4, 88.8, 1_000_001).astype(np.float32))
    check(np.linspace(-1, 1, 500_001).astype(np.float32))


def test_around_every_power_of_two():
    """Where the range reduction changes its n: multiples of ln2 / 2 and the floats around them."""
    edges = (np.arange(-254, 258) * np.log(2) / 2).astype(np.float32)
    for _ in range(4):
        check(edges)
        edges = np.nextafter(edges, np.float32(np.inf))
    for _ in range(8):
        edges = np.nextafter(edges, np.float32(-np.inf))
        check(edges)


def test_special_numbers():
    x = np.array([0.0, -0.0, np.inf, -np.inf, 1e38, -1e38, 89.0, -104.0], np.float32)
    np.testing.assert_array_equal(_core.exp(x), [1, 1, np.inf, 0, np.inf, 0, np.inf, 0])
    assert np.isnan(_core.exp(np.array([np.nan, -np.nan], np.float32))).all()
    denormals = np.array([1e-45, -1e-45, 1e-40], np.float32)
    np.testing.assert_array_equal(_core.exp(denormals), [1, 1, 1])


def test_rises_with_x_to_within_its_error():
    x = np.linspace(-80, 80, 300_001).astype(np.float32)
    y = _core.exp(x).astype(np.float64)
    assert (y[1:] >= y[:-1] * (1 - 2 * EXP_ERROR)).all()


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 15, 16, 17, 33])
def test_lengths(length):
    """Vectors and what is left over give the same bits."""
    x = np.linspace(-3, 3, 40).astype(np.float32)
    np.testing.assert_array_equal(_core.exp(x[:length]), _core.exp(x)[:length])
    np.testing.assert_array_equal(_core.exp(x[3 : 3 + length]), _core.exp(x)[3 : 3 + length])
