"""Drawing a token from each row of logits: temperature, top-k, top-p, min-p."""

import numpy as np

from fastmha import _core
from fastmha._types import Float32, Float64, Int64
from fastmha.decoding.settings import GenerationSettings

__all__ = ["draw"]

# How many tokens are looked at when top-p or min-p decides how many are kept, one after the other
# until these are enough: nearly always the first, and far fewer than a vocabulary.
LOOKS = (256, 4096)
# Ids whose weights are summed together when all of them may be drawn.
BLOCK = 256


def draw(logits: Float32, uniform: Float64, settings: GenerationSettings) -> Int64:
    """(rows,): the token where each row's distribution function passes `uniform` in [0, 1).

    Changes `logits`.
    """
    if settings.temperature != 1.0:
        logits /= np.float32(settings.temperature)
    if settings.top_k:
        return _from_best(logits, uniform, settings, min(settings.top_k, logits.shape[1]))
    if settings.top_p < 1.0 or settings.min_p > 0.0:
        return _from_enough(logits, uniform, settings)
    return _from_all(logits, uniform)


def _from_best(
    logits: Float32, uniform: Float64, settings: GenerationSettings, count: int
) -> Int64:
    """From the `count` most probable tokens, as if there were no others."""
    values, tokens, _ = _core.top_k(logits, count)
    weights = np.exp(values.astype(np.float64) - values[:, :1])
    weights /= weights.sum(axis=1, keepdims=True)
    return _pick(tokens, weights, uniform, settings)


def _from_enough(logits: Float32, uniform: Float64, settings: GenerationSettings) -> Int64:
    """From as many of the most probable tokens as top-p and min-p keep.

    The weights and their sums are the same numbers, however many tokens are looked at.
    """
    vocabulary = logits.shape[1]
    picked = np.empty(len(logits), np.int64)
    rows = np.arange(len(logits))
    for count in (*(look for look in LOOKS if look < vocabulary), vocabulary):
        values, tokens, total = _core.top_k(logits[rows], count)
        weights = np.exp(values.astype(np.float64) - total[:, None])
        enough = weights.sum(axis=1) >= settings.top_p
        enough |= weights[:, -1] < settings.min_p * weights[:, 0]
        if count == vocabulary:
            enough[:] = True
        picked[rows[enough]] = _pick(
            tokens[enough], weights[enough], uniform[rows[enough]], settings
        )
        rows = rows[~enough]
        if rows.size == 0:
            break
    return picked


def _pick(tokens: Int64, weights: Float64, uniform: Float64, settings: GenerationSettings) -> Int64:
    """From candidates in falling order: those that top-p and min-p keep, at least the first."""
    before = np.cumsum(weights, axis=1) - weights
    kept = before < settings.top_p
    kept &= weights >= settings.min_p * weights[:, :1]
    kept[:, 0] = True
    reached = np.cumsum(np.where(kept, weights, 0.0), axis=1)
    place = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
    place = np.minimum(place, kept.sum(axis=1) - 1)  # rounding may pass over the last one
    chosen: Int64 = tokens[np.arange(len(tokens)), place]
    return chosen


def _from_all(logits: Float32, uniform: Float64) -> Int64:
    """From the whole vocabulary, in the order of the ids."""
    rows, vocabulary = logits.shape
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    # First the block of ids in which the sum passes, then the id within it: summing all ids one by
    # one takes three times as long.
    starts = np.arange(0, vocabulary, BLOCK)
    reached = np.cumsum(np.add.reduceat(weights, starts, axis=1, dtype=np.float64), axis=1)
    goal = uniform * reached[:, -1]
    block = np.minimum((reached <= goal[:, None]).sum(axis=1), len(starts) - 1)
    row = np.arange(rows)
    before = np.where(block > 0, reached[row, block - 1], 0.0)
    ids = starts[block][:, None] + np.arange(BLOCK)
    inside = np.where(
        ids < vocabulary, weights[row[:, None], np.minimum(ids, vocabulary - 1)], np.float32(0)
    )
    passed = before[:, None] + np.cumsum(inside, axis=1, dtype=np.float64) > goal[:, None]
    passed &= inside > 0
    # Rounding may leave the goal behind the block's sum: then it is the last id that has a weight.
    last = BLOCK - 1 - (inside[:, ::-1] > 0).argmax(axis=1)
    place = np.where(passed.any(axis=1), passed.argmax(axis=1), last)
    chosen: Int64 = np.minimum(ids[row, place], vocabulary - 1)
    return chosen
