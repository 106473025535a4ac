"""Greedy and beam search over anything that gives logits for the next token.

Sources that are finished leave the batch. What is decided for one source depends on its own logits
alone, so its result does not depend on what else is in the batch.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmha._types import Float32, Int64

__all__ = ["Hypotheses", "Hypothesis", "beam_search", "greedy_search"]


class Hypotheses(Protocol):
    """Token sequences that grow: `beam_size` next to each other for each source still in the
    batch."""

    def logits(self, tokens: Int64) -> Float32:
        """Append one token to every hypothesis and return (hypotheses, vocabulary) for the one
        after it."""

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let hypothesis b continue hypothesis ``beam_indices[b]``."""

    def select(self, sources: ArrayLike) -> None:
        """Keep the sources at these places, in rising order."""


@dataclass(frozen=True)
class Hypothesis:
    """A finished target: its ids without start and end token, and its score.

    The score is the sum of the log-probabilities of all generated tokens, the end token included,
    divided by their number to the power of the length penalty.
    """

    ids: Int64
    score: float


def greedy_search(
    hypotheses: Hypotheses, batch: int, *, bos: int, eos: int, max_new_tokens: int
) -> list[Hypothesis]:
    """Take the most probable token at every step, until the end token or `max_new_tokens`."""
    ids = np.empty((batch, max_new_tokens), np.int64)
    counts = np.zeros(batch, np.int64)
    scores = np.zeros(batch)
    ended = np.zeros(batch, bool)
    active, tokens = np.arange(batch), np.full(batch, bos)
    for position in range(max_new_tokens):
        logits = hypotheses.logits(tokens)
        tokens = logits.argmax(axis=-1)
        scores[active] += log_probabilities(logits, tokens[:, None])[:, 0]
        ids[active, position] = tokens
        counts[active] = position + 1
        ended[active] = tokens == eos
        keep = np.flatnonzero(tokens != eos)
        if keep.size == 0:
            break
        if keep.size < active.size and position + 1 < max_new_tokens:
            hypotheses.select(keep)
            active, tokens = active[keep], tokens[keep]
    return [
        Hypothesis(ids[n, : counts[n] - ended[n]].copy(), float(scores[n] / counts[n]))
        for n in range(batch)
    ]


def beam_search(
    hypotheses: Hypotheses,
    batch: int,
    *,
    beam_size: int,
    bos: int,
    eos: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """Keep the `beam_size` best hypotheses of each source, and return the best finished one.

    The rules are those of transformers' ``generate(num_beams=beam_size, early_stopping=False)``: of
    the 2 * beam_size best continuations of a source, those among the first `beam_size` that end are
    finished, the best that do not end run on. A source is done when it has `beam_size` finished
    hypotheses and its best running one, at its present length, scores no better than the worst of
    them; at `max_new_tokens` the running ones are finished as they are.
    """
    searches = [_Beams(beam_size) for _ in range(batch)]
    active = list(searches)
    scores = np.full((batch, beam_size), -np.inf)
    scores[:, 0] = 0.0  # all beams hold the start token: only the first may continue
    sequences = np.empty((batch, beam_size, 0), np.int64)
    tokens = np.full(batch * beam_size, bos)
    for length in range(1, max_new_tokens + 1):
        best = _best_continuations(hypotheses.logits(tokens), scores)
        ends = best.tokens == eos if length < max_new_tokens else np.ones_like(best.beams, bool)
        norm = length**length_penalty
        for n, place in np.argwhere(ends[:, :beam_size]):
            prefix = sequences[n, best.beams[n, place]]
            token = best.tokens[n, place]
            ids = prefix if token == eos else np.append(prefix, token)
            active[n].finish(best.scores[n, place] / norm, ids)
        if length == max_new_tokens:
            break
        # those that do not end, best first; at most beam_size of 2 * beam_size can end, one per
        # beam
        running = np.argsort(ends, axis=1, kind="stable")[:, :beam_size]
        scores = np.take_along_axis(best.scores, running, 1)
        beams = np.take_along_axis(best.beams, running, 1)
        chosen = np.take_along_axis(best.tokens, running, 1)
        sequences = np.concatenate(
            [np.take_along_axis(sequences, beams[:, :, None], 1), chosen[:, :, None]], axis=2
        )
        keep = np.flatnonzero(
            [
                beam.can_improve(score / norm)
                for beam, score in zip(active, scores[:, 0], strict=True)
            ]
        )
        if keep.size == 0:
            break
        if keep.size < len(active):
            hypotheses.select(keep)
            active = [active[n] for n in keep]
            scores, beams, chosen, sequences = (
                array[keep] for array in (scores, beams, chosen, sequences)
            )
        hypotheses.reorder((beams + np.arange(len(active))[:, None] * beam_size).ravel())
        tokens = chosen.ravel()
    return [search.best() for search in searches]


@dataclass
class _Beams:
    """The finished hypotheses of one source, the best first, at most `size`."""

    size: int
    finished: list[Hypothesis] = field(default_factory=list)

    def finish(self, score: float, ids: Int64) -> None:
        if score == -np.inf:  # a beam that never was: it repeats another one
            return
        self.finished.append(Hypothesis(ids.copy(), float(score)))
        self.finished.sort(
            key=lambda hypothesis: -hypothesis.score
        )  # stable: the earlier one stays first
        del self.finished[self.size :]

    def can_improve(self, best_running: float) -> bool:
        return len(self.finished) < self.size or bool(best_running > self.finished[-1].score)

    def best(self) -> Hypothesis:
        return self.finished[0] if self.finished else Hypothesis(np.empty(0, np.int64), -np.inf)


@dataclass(frozen=True)
class _Continuations:
    """For each source its best continuations, the best first: (sources, candidates) each."""

    scores: NDArray[np.float64]
    beams: Int64
    tokens: Int64


def _best_continuations(logits: Float32, scores: NDArray[np.float64]) -> _Continuations:
    """The 2 * beam_size best of all continuations of a source's beams."""
    sources, beam_size = scores.shape
    vocabulary = logits.shape[-1]
    count = min(2 * beam_size, vocabulary)
    # No more than `count` of one beam can be among the best of all, so only those get a
    # log-probability.
    tokens = np.argpartition(logits, vocabulary - count, axis=-1)[:, vocabulary - count :]
    tokens = np.sort(tokens, axis=-1)  # a fixed order, so that equal scores fall to the smaller id
    total = (
        log_probabilities(logits, tokens).reshape(sources, beam_size, count) + scores[:, :, None]
    )
    total = total.reshape(sources, beam_size * count)
    order = np.argsort(-total, axis=-1, kind="stable")[:, : 2 * beam_size]
    return _Continuations(
        np.take_along_axis(total, order, 1),
        order // count,
        np.take_along_axis(tokens.reshape(sources, beam_size * count), order, 1),
    )


def log_probabilities(logits: Float32, tokens: Int64) -> NDArray[np.float64]:
    """The log-softmax of each row of `logits` at that row's `tokens`, summed in float64."""
    largest = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - largest).sum(axis=-1, keepdims=True, dtype=np.float64)
    chosen = np.take_along_axis(logits, tokens, -1).astype(np.float64)
    result: NDArray[np.float64] = chosen - largest - np.log(total)
    return result
