"""The core's top_k against NumPy's sort and float64."""

import numpy as np
import pytest
from conftest import assert_same_bits
from fastmha import _core

COLUMNS = [1, 2, 15, 16, 17, 255, 256, 257, 1000, 8191, 8192, 8193, 32000]


def expected(x, k):
    # Stable, so the smaller column first; NaN last; -0 is 0.
    ids = np.argsort(-(x + np.float32(0)), axis=1, kind="stable")[:, :k]
    largest = x.max(1).astype(np.float64)
    lse = largest + np.log(np.exp(x.astype(np.float64) - largest[:, None]).sum(1))
    return np.take_along_axis(x, ids, 1), ids, lse


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_top_k(random, columns, scale):
    x = random.normal(5, columns, scale=scale)
    for k in {1, min(8, columns), columns}:
        values, ids, lse = _core.top_k(x, k)
        want_values, want_ids, want_lse = expected(x, k)
        assert values.dtype == lse.dtype == np.float32
        assert ids.dtype == np.int64
        assert np.array_equal(ids, want_ids)
        assert_same_bits(values, want_values)
        # Rounding lse, log2(e) and each exponential's argument to float32.
        assert np.all(abs(lse - want_lse) <= 2e-7 * (1 + abs(want_lse)))


def test_ties_and_special_numbers():
    inf, nan = np.inf, np.nan
    x = np.array([[0, 3, -0.0, 3, nan, -inf], [nan, nan, -inf, 1, inf, 1]], np.float32)
    values, ids, lse = _core.top_k(x, 6)
    assert ids.tolist() == [[1, 3, 0, 2, 5, 4], [4, 3, 5, 2, 0, 1]]
    assert_same_bits(values, np.take_along_axis(x, ids, 1))
    assert np.isnan(lse).all()
    assert _core.top_k(np.full((2, 3), -inf, np.float32), 1)[2].tolist() == [-inf, -inf]
    assert _core.top_k(np.array([[0, inf, 1]], np.float32), 1)[2].tolist() == [inf]


def test_rows_do_not_depend_on_each_other(random):
    wide = random.normal(33, 20011)
    x = wide[:, 3:20003]
    together = _core.top_k(x, 9)
    for row in (0, 17, 32):
        for alone in (_core.top_k(x[row : row + 1], 9), _core.top_k(x[row : row + 1].copy(), 9)):
            assert_same_bits(together[0][row : row + 1], alone[0])
            assert np.array_equal(together[1][row : row + 1], alone[1])
            assert_same_bits(together[2][row : row + 1], alone[2])


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_out_of_range(k):
    message = f"top_k: k must be from 1 to the columns of logits, 10, got {k}"
    with pytest.raises(ValueError, match=message):
        _core.top_k(np.zeros((2, 10), np.float32), k)


def test_wrong_arrays():
    with pytest.raises(TypeError, match="top_k: logits must be float32, got float64"):
        _core.top_k(np.zeros((2, 10)), 1)
    with pytest.raises(ValueError, match="top_k: logits must have 2 axes"):
        _core.top_k(np.zeros(10, np.float32), 1)
    with pytest.raises(TypeError, match="top_k: k must be an int"):
        _core.top_k(np.zeros((2, 10), np.float32), 1.5)
    values, ids, lse = _core.top_k(np.zeros((0, 10), np.float32), 2)
    assert values.shape == ids.shape == (0, 2)
    assert lse.shape == (0,)
