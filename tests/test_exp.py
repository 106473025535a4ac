"""The vectorised exponential: its stated error bound (cpp/kernels/math.h), swept over the whole of
float32.
"""

import fastmha as fm
import numpy as np
import pytest
from fastmha import _core
from tolerance import EXP_ERROR, U

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


@pytest.mark.parametrize("q_len", [1, 2])
def test_the_exponential_inside_attention(q_len):
    """Softmax weights are exp of score differences: with one feature and a largest score of 0 they
    can be had one by one, in the panels of queries and in the decode path."""
    x = np.concatenate([[0.0], -np.geomspace(1e-4, 80, 4000), np.linspace(-1.5, 0, 4000)])
    key = x.astype(np.float32).reshape(1, 1, -1, 1)
    query = np.ones((1, 1, q_len, 1), np.float32)
    _, weights = fm.scaled_dot_product_attention(query, key, key, scale=1.0, return_weights=True)
    exact = np.exp(key[0, 0, :, 0].astype(np.float64))
    ratio = weights[0, 0].astype(np.float64) / weights[0, 0, :, :1]
    # Scores are multiplied by log2(e), rounded once as a constant and once as a product (2 |x| u);
    # each of the two weights was rounded when it was normalised.
    bound = EXP_ERROR + (2 * np.abs(key[0, 0, :, 0]) + 3) * U
    error = np.abs(ratio / exact - 1)
    worst = np.unravel_index((error - bound).argmax(), error.shape)
    assert (error <= bound).all(), f"{error[worst]:.3e} at score {x[worst[1]]!r}"


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
