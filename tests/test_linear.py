"""Linear: packed weights, fused bias, activation and residual, against the oracle."""

import fastmha as fm
import numpy as np
import pytest
import reference
from conftest import Random, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close, linear_bound

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
# Register tiles are 6 (AVX2) to 14 (AVX-512) rows by 16 or 32 columns.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17, 27, 28, 29, 31, 32, 33, 63, 64, 65, 129]
COLUMNS = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100, 257]
DEPTHS = [1, 2, 3, 7, 8, 16, 17, 64, 255, 256, 257, 511, 512, 513, 1025]


def check(x, weight, bias=None, activation=None, residual=None, **call):
    linear = fm.Linear(weight, bias, activation=activation)
    out = linear(x, residual=residual, **call)
    expected = reference.linear(x, weight, bias, activation, residual)
    assert_close(out, expected, linear_bound(x, weight, bias, activation, residual))
    return out


@pytest.mark.parametrize("out_features", COLUMNS)
@pytest.mark.parametrize("rows", ROWS)
def test_tile_edges(random, rows, out_features):
    x, weight = random.normal(rows, 20), random.normal(out_features, 20)
    check(x, weight)
    residual = random.normal(rows, out_features)
    check(x, weight, random.normal(out_features), "relu", residual)


@pytest.mark.parametrize("in_features", DEPTHS)
@pytest.mark.parametrize("rows", [1, 3, 14, 40])
def test_reduction_lengths(random, rows, in_features):
    check(random.normal(rows, in_features), random.normal(50, in_features), random.normal(50))


@pytest.mark.parametrize(
    ("rows", "in_features", "out_features"), [(1, 4096, 512), (300, 512, 512), (40, 3072, 96)]
)
def test_larger(random, rows, in_features, out_features):
    weight = random.normal(out_features, in_features, scale=in_features**-0.5)
    check(random.normal(rows, in_features), weight, random.normal(out_features))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 9, 50])
def test_epilogues(random, rows, activation, bias, residual):
    x, weight = random.normal(rows, 33), random.normal(70, 33)
    check(
        x, weight, random.normal(70) if bias else None, activation,
        random.normal(rows, 70) if residual else None,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(20,), (1, 20), (3, 4, 20), (2, 3, 4, 20), (1, 2, 1, 3, 2, 20)])
def test_leading_axes(random, shape):
    weight, bias = random.normal(30, 20), random.normal(30)
    residual = random.normal(*shape[:-1], 30)
    out = check(random.normal(*shape), weight, bias, "silu", residual)
    assert out.shape == (*shape[:-1], 30)


@pytest.mark.parametrize(
    ("rows", "in_features", "out_features"), [(0, 5, 7), (3, 5, 0), (0, 0, 0), (3, 0, 4), (1, 0, 4)]
)
def test_empty(random, rows, in_features, out_features):
    """No rows, no columns, or nothing to add up: the last gives the bias."""
    bias = random.normal(out_features)
    out = fm.Linear(random.normal(out_features, in_features), bias)(
        random.normal(rows, in_features)
    )
    np.testing.assert_array_equal(out, np.zeros((rows, out_features), np.float32) + bias)


def test_layouts_of_inputs(random):
    x, weight, bias, residual = (random.normal(*s) for s in ((9, 33), (20, 33), (20,), (9, 20)))
    expected = check(x, weight, bias, "gelu", residual)

    def run(x=x, weight=weight, bias=bias, residual=residual):
        return fm.Linear(weight, bias, activation="gelu")(x, residual=residual)

    for view in (
        np.asfortranarray,
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.repeat(a, 2, -1)[..., ::2],
    ):
        assert_same_bits(run(x=view(x)), expected)
        assert_same_bits(run(weight=view(weight)), expected)
        assert_same_bits(run(bias=view(bias)), expected)
        assert_same_bits(run(residual=view(residual)), expected)
    same_row = np.broadcast_to(x[:1], x.shape)
    assert_same_bits(run(x=same_row), run(x=same_row.copy()))
    assert_same_bits(
        run(residual=np.broadcast_to(bias, (9, 20))), run(residual=np.tile(bias, (9, 1)))
    )
    for array in (x, weight, bias, residual):
        array.flags.writeable = False
    assert_same_bits(run(), expected)


def test_out(random):
    x, weight, residual = random.normal(4, 9, 33), random.normal(20, 33), random.normal(4, 9, 20)
    linear = fm.Linear(weight)
    expected = linear(x, residual=residual)
    out = np.full_like(expected, np.nan)
    assert linear(x, residual=residual, out=out) is out
    assert_same_bits(out, expected)
    flat = np.full((36, 25), np.nan, np.float32)
    view = flat[:, 2:-3]
    assert linear(x.reshape(36, 33), residual=residual.reshape(36, 20), out=view) is view
    assert_same_bits(view.reshape(expected.shape), expected)
    assert np.isnan(flat[:, [0, 1, 22, 23, 24]]).all()


def test_packed_weight_is_a_copy(random):
    weight, bias, x = random.normal(20, 9), random.normal(20), random.normal(5, 9)
    linear = fm.Linear(weight, bias)
    expected = linear(x)
    weight[...], bias[...] = np.nan, np.nan
    assert_same_bits(linear(x), expected)


def test_non_finite_numbers_stay_in_their_row_and_column(random):
    """Padding of panels must not mix with data: 0 * inf would be NaN."""
    x, weight = random.normal(9, 33), random.normal(50, 33)
    for rows in (1, 9):
        clean = fm.Linear(weight)(x[:rows])
        dirty = x[:rows].copy()
        dirty[rows // 2, 7] = np.nan
        out = fm.Linear(weight)(dirty)
        others = np.arange(rows) != rows // 2
        assert np.isnan(out[rows // 2]).all()
        assert_same_bits(out[others], clean[others])
        spoiled = weight.copy()
        spoiled[17] = np.inf
        spoiled[49, 3] = np.nan
        out = fm.Linear(spoiled)(x[:rows])
        columns = ~np.isin(np.arange(50), [17, 49])
        assert not np.isfinite(out[:, [17, 49]]).any()
        assert_same_bits(out[:, columns], clean[:, columns])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_infinite_sums(activation):
    """Infinity and NaN pass through every activation."""
    linear = fm.Linear(np.ones((1, 1), np.float32), activation=activation)
    x = np.array([[np.inf], [0.0], [np.nan]], np.float32)
    np.testing.assert_array_equal(linear(x), x)


def test_attributes(random):
    linear = fm.Linear(random.normal(20, 9), activation="gelu")
    assert (linear.in_features, linear.out_features, linear.activation) == (9, 20, "gelu")


@settings(max_examples=300)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_linear_equals_the_oracle(data, seed):
    random = Random(seed)
    size = st.one_of(st.integers(1, 20), st.integers(1, 150))
    rows, in_features, out_features = (data.draw(size) for _ in range(3))
    bias = random.normal(out_features) if data.draw(st.booleans()) else None
    residual = random.normal(rows, out_features) if data.draw(st.booleans()) else None
    magnitude = data.draw(st.sampled_from([1.0, 1e-3, 30.0]))
    check(
        random.normal(rows, in_features, scale=magnitude), random.normal(out_features,
        in_features), bias,
        data.draw(st.sampled_from(ACTIVATIONS)), residual,
    )  # fmt: skip


def test_weights_share_memory_and_give_it_back():
    """Those between 256 KiB and 8 MiB lie next to each other; the rest is on its own."""
    rng = np.random.default_rng(0)

    def resident():
        with open("/proc/self/statm") as numbers:
            return int(numbers.read().split()[1]) * 4096

    def layers_of(rows):
        weights = [rng.standard_normal((n, 512), dtype=np.float32) for n in rows]
        return [(fm.Linear(weight), weight) for weight in weights]

    x = rng.standard_normal((3, 512), dtype=np.float32)
    before = resident()
    kept = layers_of([*range(1, 400, 57), 800, 2000, 4095, 4097, 5000])
    for step in range(10):  # in an order of its own: a chunk outlives those that came first
        del kept[len(kept) // 2]
        kept += layers_of([300]) if step == 5 else []
        for layer, weight in kept:
            expected = x.astype(np.float64) @ weight.T
            assert_close(layer(x), expected, linear_bound(x, weight, None, None, None))
    kept += layers_of([1000] * 60)  # 120 MB
    assert resident() - before > 100e6
    del kept, layer, weight
    assert resident() - before < 30e6
