"""Biases on scores by how far a key is from its query, learnt for buckets of distances."""

import math

import numpy as np

from fastmha._types import Float32, Int64
from fastmha.nn.module import Module, Shape

__all__ = ["DistanceBias", "buckets"]


class DistanceBias(Module):
    """A bias by distance and head, from one for each bucket of distances and head.

    Attributes
    ----------
    weight : ndarray of float32, (buckets, heads)
    by_distance : ndarray of float32, (heads, 2 R + 1)
        What attention takes as `relative_bias`: column R + d for the key d places after the query.
    """

    def __init__(self, buckets: int, heads: int, furthest: int, *, both_sides: bool) -> None:
        self._shape = (buckets, heads)
        self.furthest, self.both_sides = furthest, both_sides

    weight: Float32
    by_distance: Float32

    def _own_shapes(self) -> dict[str, Shape]:
        return {"weight": self._shape}

    def _own_state(self) -> dict[str, Float32]:
        return {"weight": self.weight.copy()}

    def _set_own(self, state: dict[str, Float32]) -> None:
        self.weight = np.array(state["weight"])
        distances = np.arange(-self.furthest, self.furthest + 1)
        rows = buckets(distances, self._shape[0], self.furthest, both_sides=self.both_sides)
        self.by_distance = np.ascontiguousarray(self.weight[rows].T)


def buckets(distances: Int64, count: int, furthest: int, *, both_sides: bool) -> Int64:
    """The bucket of a key that is `distances` places after its query.

    The near half of the buckets are for single distances, the others for ranges that grow, up to
    `furthest`. With `both_sides` half of them are for keys before the query and half for those
    after it; otherwise there are only keys before it.
    """
    after = np.zeros_like(distances)
    if both_sides:
        count //= 2
        after = np.where(distances > 0, count, 0)
        away = np.abs(distances)
    else:
        away = np.maximum(-distances, 0)
    single = count // 2
    # float32 and in this order: where a range ends depends on the rounding
    spread = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(single))
    spread = spread / np.float32(math.log(furthest / single)) * np.float32(count - single)
    ranges = np.minimum(single + spread.astype(np.int64), count - 1)
    found: Int64 = np.where(away < single, away, ranges) + after
    return found
