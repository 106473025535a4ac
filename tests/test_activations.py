"""relu, gelu (exact and tanh) and silu: swept against float64, and as arrays of any shape."""

import fastmha as fm
import numpy as np
import pytest
import reference
from conftest import assert_same_bits
from tolerance import activation_bound, assert_close

RUN = {
    "relu": fm.relu,
    "gelu": fm.gelu,
    "gelu_tanh": lambda x: fm.gelu(x, approximate="tanh"),
    "silu": fm.silu,
}
every_activation = pytest.mark.parametrize("name", RUN)


def sweep():
    """Densely over where the functions bend, then every magnitude of float32 in both signs."""
    dense = np.linspace(-12, 12, 200_001, dtype=np.float32)
    magnitudes = np.geomspace(1e-45, 3e38, 20_001).astype(np.float32)
    return np.concatenate([dense, magnitudes, -magnitudes])


@every_activation
def test_sweep(name):
    """Within a few ulp of |x|: x times a number in [0, 1] whose absolute error is that of exp."""
    x = sweep()
    with np.errstate(over="ignore", under="ignore"):
        expected = reference.ACTIVATIONS[name](x)
    assert_close(RUN[name](x), expected, activation_bound(name, x), name)


# Stated in cpp/include/fastmha/norm.h: relative errors, and from which x on.
RELATIVE_ERRORS = {"gelu": (1e-5, -12.9), "gelu_tanh": (1.5e-5, -9.9), "silu": (3e-7, -87.0)}


@pytest.mark.parametrize("name", RELATIVE_ERRORS)
def test_stated_relative_error(name):
    """Also in the negative tail, where the function is tiny."""
    bound, lowest = RELATIVE_ERRORS[name]
    x = sweep()
    x = x[(x > lowest) & (np.abs(x) > 1e-35)]
    with np.errstate(over="ignore", under="ignore"):
        expected = reference.ACTIVATIONS[name](x)
    relative = np.abs(RUN[name](x) / expected - 1)
    worst = relative.argmax()
    assert relative[worst] <= bound, f"{relative[worst]:.3e} at x = {x[worst]!r}"


@every_activation
def test_special_numbers(name):
    out = RUN[name](np.array([0.0, -0.0, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(out[:3], [0.0, 0.0, np.inf])
    assert np.isnan(out[3])
    lowest = np.array([-3e38, -1e30], np.float32)
    np.testing.assert_array_equal(RUN[name](lowest), [0.0, 0.0])


def test_relu_is_exact(random):
    x = random.normal(1000)
    x[:2] = -np.inf, np.inf
    np.testing.assert_array_equal(fm.relu(x), np.maximum(x, 0))


@every_activation
@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (16,), (17,), (3, 33), (2, 3, 5), (0,), (3, 0, 2), (2, 1, 2, 1, 3)]
)
def test_shapes(random, name, shape):
    x = np.asarray(random.normal(*shape), np.float32)
    out = RUN[name](x)
    assert out.shape == shape
    assert_close(out, reference.ACTIVATIONS[name](x), activation_bound(name, x))


@every_activation
def test_layouts(random, name):
    x = random.normal(6, 33)
    expected = RUN[name](x)
    for view in (
        np.asfortranarray(x),
        x[::-1, ::-1].copy()[::-1, ::-1],
        np.repeat(x, 2, axis=-1)[..., ::2],
        np.repeat(x, 2, axis=0)[::2],
    ):
        assert_same_bits(RUN[name](view), expected)
    x.flags.writeable = False
    assert_same_bits(RUN[name](x), expected)
    assert_same_bits(RUN[name](np.broadcast_to(x[:1], x.shape)), RUN[name](np.tile(x[:1], (6, 1))))


@every_activation
def test_place_in_the_array_does_not_matter(random, name):
    """The last elements, which do not fill a vector, get the same bits as the first."""
    x = random.normal(100)
    expected = RUN[name](x)
    for first in range(20):
        for count in range(1, 36):
            part = slice(first, first + count)
            assert_same_bits(RUN[name](x[part]), expected[part])
