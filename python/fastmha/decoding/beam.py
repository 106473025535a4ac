"""Beam search, by the rules of transformers."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from fastmha import _core
from fastmha._types import Bool, Float32, Float64, Int64
from fastmha.decoding.rules import Rules
from fastmha.decoding.settings import GenerationSettings
from fastmha.decoding.targets import Growing, Hypothesis, Prompt, among, force

__all__ = ["BeamSearch"]

# The score of the beams that only repeat the first one, before the first token is chosen (in
# transformers, too: what they continue to is taken only when the first one has no more to give),
# and what no score of a true hypothesis comes near.
REPEATED = -1e9
NEVER = -1e8


class BeamSearch:
    """The `num_beams` best hypotheses of each source present, and those that are finished.

    At each step the best (1 + end tokens) * num_beams continuations of a source are looked at, at
    least twice num_beams: those among the first num_beams that end are finished, the best that do
    not end run on. At its greatest length a hypothesis is finished as it is.
    """

    def __init__(
        self, settings: GenerationSettings, rules: Rules, sources: int, longest: int
    ) -> None:
        self._settings, self._rules = settings, rules
        self.width = settings.num_beams
        self.targets = Growing(sources, self.width, longest)
        self._kept = max(2, 1 + len(settings.eos_token_id)) * self.width
        self._scores = np.empty((sources, self.width))  # of the running ones, the best first
        self._finished: list[_Finished] = []
        self._worst = np.empty(sources)  # score of the last finished one, -inf until there are all
        self._full = np.empty(sources, bool)
        self._beams = np.arange(self.width)
        # what a sum of log-probabilities is divided by, by the number of tokens
        lengths = np.arange(longest + 1, dtype=np.float64)
        lengths[0] = 1.0
        self._norms = lengths**settings.length_penalty
        self.parents: Int64 | None = None

    @property
    def tokens(self) -> Int64:
        return self.targets.tokens

    def join(self, prompts: Sequence[Prompt]) -> None:
        new = slice(self.targets.count, self.targets.count + len(prompts))
        self.targets.join(prompts)
        self._scores[new, 0], self._scores[new, 1:] = 0.0, REPEATED
        self._worst[new], self._full[new] = -np.inf, False
        self._finished += [_Finished(self.width) for _ in prompts]

    def select(self, keep: Int64) -> None:
        """Forget the other sources."""
        if self.parents is not None:
            beams = self.parents.reshape(-1, self.width) % self.width
            self.parents = _rows(beams[keep])
        for array in (self._scores, self._worst, self._full):
            array[: len(keep)] = array[keep]
        self._finished = [self._finished[n] for n in keep]
        self.targets.select(keep)

    def results(self, place: int) -> list[Hypothesis]:
        """The best finished hypotheses of a source that is done, the best first."""
        return self._finished[place].best(self._settings.num_return_sequences)

    def advance(self, logits: Float32) -> Int64:
        """Choose the next tokens; the places of the sources that are done.

        Row r of the network continues what was row ``parents[r]``, where `parents` is not None.
        """
        targets, width = self.targets, self.width
        targets.given += 1
        feeding = targets.still_feeding()
        scores, beams, tokens = self._continuations(logits)  # (sources, kept) each
        ends = among(tokens, self._settings.eos_token_id)
        ends[targets.given + 1 == targets.limits] = True
        if feeding is not None:
            self._feed(feeding, scores, beams, tokens, ends)
        if ends.any():
            self._finish(scores, beams, tokens, ends)
            scores = np.where(ends, -np.inf, scores)
            running = np.argsort(ends, axis=1, kind="stable")[:, :width]
            scores = np.take_along_axis(scores, running, 1)
            beams = np.take_along_axis(beams, running, 1)
            tokens = np.take_along_axis(tokens, running, 1)
        else:
            scores, beams, tokens = scores[:, :width], beams[:, :width], tokens[:, :width]
        self._continue(scores, beams, tokens)
        return np.flatnonzero(self._done())

    def _continuations(self, logits: Float32) -> tuple[Float64, Int64, Int64]:
        """Score, beam and token of the best continuations of each source, the best first."""
        count, width = self.targets.count, self.width
        # No more than these of one beam can be among the best of all.
        each = min(self._kept, logits.shape[1])
        with np.errstate(invalid="ignore"):  # infinite logits give NaN, which comes last
            values, tokens = _best_tokens(logits, self._rules, self.targets, each)
        total = values.reshape(count, width, each) + self._scores[:count, :, None]
        total = total.reshape(count, width * each)
        order = np.argsort(-total, axis=1, kind="stable")[:, : self._kept]
        flat = order + self.targets.sources[:, None] * (width * each)
        return total.ravel()[flat], order // each, tokens.ravel()[flat]

    def _feed(
        self, feeding: Bool, scores: Float64, beams: Int64, tokens: Int64, ends: Bool
    ) -> None:
        """Sources that read their prefix go on with it, at no cost."""
        width, sources = self.width, np.flatnonzero(feeding)
        prefix = self.targets.ids[sources, :, self.targets.given[sources]]
        scores[sources, :width] = self._scores[sources]
        beams[sources, :width] = self._beams
        tokens[sources, :width] = prefix
        ends[sources] = False

    def _finish(self, scores: Float64, beams: Int64, tokens: Int64, ends: Bool) -> None:
        """Put away the hypotheses among the first that end."""
        targets, eos = self.targets, self._settings.eos_token_id
        counts = targets.given + 1 - targets.prompts
        finished = scores[:, : self.width] / self._norms[counts][:, None]
        better = ends[:, : self.width] & (finished > self._worst[: targets.count, None])
        better &= scores[:, : self.width] > NEVER
        for n, place in np.argwhere(better).tolist():
            ids = targets.ids[n, beams[n, place], 1 : targets.given[n]]
            token = tokens[n, place]
            ids = ids.copy() if token in eos else np.append(ids, token)
            held = self._finished[n]
            held.add(Hypothesis(ids, float(finished[n, place])))
            self._full[n] = held.full
            self._worst[n] = held.worst

    def _continue(self, scores: Float64, beams: Int64, tokens: Int64) -> None:
        """Every row goes on with its beam and token."""
        targets = self.targets
        self._scores[: targets.count] = scores
        if (beams == self._beams).all():
            self.parents = None
        else:
            self.parents = _rows(beams)
            longest = int(targets.given.max())
            held = targets.ids[:, :, :longest]
            held[:] = held[targets.sources[:, None], beams]
        targets.ids[targets.sources, :, targets.given] = tokens
        targets.tokens = tokens.ravel()

    def _done(self) -> Bool:
        """(sources,): which ones cannot get better, as `early_stopping` means it."""
        settings, targets = self._settings, self.targets
        best = self._scores[: targets.count, 0]
        full = self._full[: targets.count]
        hopeless = best <= NEVER
        if not full.any():
            return hopeless
        if settings.early_stopping is True:
            return full | hopeless
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            counts = targets.limits - targets.prompts
        else:
            counts = targets.given + 1 - targets.prompts
        possible = best / self._norms[np.maximum(counts, 1)]
        done: Bool = full & ~(possible > self._worst[: targets.count])
        return done | hopeless


class _Finished:
    """The finished hypotheses of one source, the best first, at most `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._hypotheses: list[Hypothesis] = []

    @property
    def full(self) -> bool:
        return len(self._hypotheses) == self._size

    @property
    def worst(self) -> float:
        """What a hypothesis must beat."""
        return self._hypotheses[-1].score if self.full else -np.inf

    def add(self, hypothesis: Hypothesis) -> None:
        if self.full and hypothesis.score <= self.worst:
            return
        place = bisect_right(self._hypotheses, -hypothesis.score, key=lambda held: -held.score)
        self._hypotheses.insert(place, hypothesis)  # behind those that score the same
        del self._hypotheses[self._size :]

    def best(self, count: int) -> list[Hypothesis]:
        return self._hypotheses[:count] or [Hypothesis(np.empty(0, np.int64), -np.inf)]


def _rows(beams: Int64) -> Int64:
    """The rows of these beams of each source."""
    count, width = beams.shape
    rows: Int64 = (beams + np.arange(count)[:, None] * width).ravel()
    return rows


def _best_tokens(
    logits: Float32, rules: Rules, targets: Growing, count: int
) -> tuple[Float64, Int64]:
    """The `count` best next tokens of each row, and their log-probabilities as the rules leave
    them."""
    if not rules:
        values, tokens, sums = _core.top_k(logits, count)
        return _normalised(values, sums.astype(np.float64)), tokens
    held = targets.for_rules()
    if not rules.only_bans:
        logits -= _core.top_k(logits, 1)[2][:, None]
        rules(logits, held)
        values, tokens, sums = _core.top_k(logits, count)
        if rules.renormalize:
            return _normalised(values, sums.astype(np.float64)), tokens
        return values.astype(np.float64), tokens
    gone = rules.take_out(logits, held)
    values, tokens, sums = _core.top_k(logits, count)
    total = sums.astype(np.float64)
    if gone is not None and not rules.renormalize:
        # What is banned still counts in the sum that probabilities are divided by. Adding it again
        # costs less than a pass over the vocabulary for the sum before it is banned.
        total = np.logaddexp(total, gone)
    scores = _normalised(values, total)
    for rows, forced in force(rules, held):
        some = forced[:count]
        scores[rows] = -np.inf
        scores[rows, : len(some)] = -np.log(len(forced)) if rules.renormalize else 0.0
        tokens[rows, : len(some)] = some
    return scores, tokens


def _normalised(values: Float32, total: Float64) -> Float64:
    """Log-probabilities from logits; -inf where a row holds nothing else."""
    total[total == -np.inf] = 0.0
    scores: Float64 = values - total[:, None]
    return scores
