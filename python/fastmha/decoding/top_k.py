"""The largest scores of each row, and the logarithm of the sum of their exponentials."""

import numpy as np

from fastmha._types import Float32, Int64

__all__ = ["top_k"]


def top_k(scores: Float32, count: int) -> tuple[Float32, Int64, Float32]:
    """The `count` largest of each row, the largest first, the smaller id first among equals.

    Returns
    -------
    values : ndarray of float32, (rows, count)
    ids : ndarray of int64, (rows, count)
    log_sum_exp : ndarray of float32, (rows,)
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(scores, order, 1)
    largest = np.maximum(values[:, :1], np.finfo(np.float32).min)  # a row of -inf has no sum
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(scores - largest).sum(axis=1))
    return values, order, total + largest[:, 0]
