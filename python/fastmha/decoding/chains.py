"""Greedy search and sampling: targets that choose their next token each for itself."""

from collections.abc import Sequence

import numpy as np

from fastmha import _core
from fastmha._types import Bool, Float32, Float64, Int64
from fastmha.decoding.draw import draw
from fastmha.decoding.rules import Rules
from fastmha.decoding.settings import GenerationSettings
from fastmha.decoding.targets import Growing, Hypothesis, Prompt, among, force

__all__ = ["Chains"]


class Chains:
    """One target for each source by the most probable tokens, or `num_return_sequences` samples.

    A sample that has ended before the others of its source is fed tokens that nothing reads.
    """

    parents = None  # every row goes on with itself

    def __init__(
        self,
        settings: GenerationSettings,
        rules: Rules,
        sources: int,
        longest: int,
        *,
        with_scores: bool,
        entropy: int = 0,
    ) -> None:
        self._settings, self._rules = settings, rules
        self.width = settings.num_return_sequences
        self.targets = Growing(sources, self.width, longest)
        self._ended = np.empty((sources, self.width), bool)
        self._lengths = np.empty((sources, self.width), np.int64)  # of those that have ended
        self._scores = np.empty((sources, self.width)) if with_scores else None
        self._entropy = entropy
        self._uniform: Float64 | None = None
        if settings.do_sample:
            self._uniform = np.empty((sources, longest, self.width))

    @property
    def tokens(self) -> Int64:
        return self.targets.tokens

    def join(self, prompts: Sequence[Prompt]) -> None:
        first = self.targets.count
        new = slice(first, first + len(prompts))
        self.targets.join(prompts)
        self._ended[new] = False
        if self._scores is not None:
            self._scores[new] = 0.0
        if self._uniform is not None:
            for n, prompt in enumerate(prompts, first):
                # A stream of its own, one row for each generated token: what is drawn does not
                # depend on the batch, nor the first tokens on how many there may be.
                stream = np.random.default_rng([self._entropy, prompt.index])
                count = prompt.longest - len(prompt.ids)
                self._uniform[n, :count] = stream.random((count, self.width))

    def select(self, keep: Int64) -> None:
        """Forget the other sources."""
        for array in (self._ended, self._lengths, self._scores, self._uniform):
            if array is not None:
                array[: len(keep)] = array[keep]
        self.targets.select(keep)

    def results(self, place: int) -> list[Hypothesis]:
        """The targets of a source that is done."""
        targets, eos = self.targets, self._settings.eos_token_id
        found = []
        for chain in range(self.width):
            length = int(self._lengths[place, chain])
            ids = targets.ids[place, chain, :length]
            stop = length - 1 if ids[-1] in eos else length
            score = np.nan
            if self._scores is not None:
                count = length - int(targets.prompts[place])
                score = self._scores[place, chain] / count**self._settings.length_penalty
            found.append(Hypothesis(ids[1:stop].copy(), float(score)))
        return found

    def advance(self, logits: Float32) -> Int64:
        """Choose the next tokens; the places of the sources that are done."""
        targets, count = self.targets, self.targets.count
        targets.given += 1
        feeding = targets.still_feeding()
        with np.errstate(invalid="ignore"):  # infinite logits give NaN
            tokens, gained = self._choose(logits)
        tokens = tokens.reshape(count, self.width)
        ended = self._ended[:count]
        if feeding is not None:
            sources = np.flatnonzero(feeding)
            tokens[sources] = targets.ids[sources, :, targets.given[sources]]
        if self._scores is not None:
            idle = ended if feeding is None else ended | feeding[:, None]
            self._scores[:count] += np.where(idle, 0.0, gained.reshape(count, self.width))
        targets.ids[targets.sources, :, targets.given] = tokens
        targets.tokens = tokens.ravel()
        return self._end(tokens, feeding)

    def _choose(self, logits: Float32) -> tuple[Int64, Float64]:
        """A token for each row, and its log-probability by the network, if asked for.

        What is forced is not the network's choice: it counts 0, as in beam search.
        """
        rules, targets = self._rules, self.targets
        if self._scores is None:
            if rules:
                rules(logits, targets.for_rules())
            return self._pick(logits), _NOTHING
        total = _core.top_k(logits, 1)[2].astype(np.float64)
        changes = bool(rules) or self._uniform is not None  # rules and temperature do
        network = logits.copy() if changes else logits
        held = targets.for_rules()
        rules(logits, held)
        tokens = self._pick(logits)
        gained: Float64 = network[np.arange(len(tokens)), tokens] - total
        for rows, forced in force(rules, held):
            gained[rows[np.isin(tokens[rows], forced)]] = 0.0
        return tokens, gained

    def _pick(self, logits: Float32) -> Int64:
        if self._uniform is None:
            best: Int64 = logits.argmax(axis=1)
            return best
        targets = self.targets
        # a source that reads its prefix draws, too, and throws away what it drew
        step = np.maximum(targets.given - targets.prompts, 0)
        return draw(logits, self._uniform[targets.sources, step].ravel(), self._settings)

    def _end(self, tokens: Int64, feeding: Bool | None) -> Int64:
        """Note which targets end with these tokens; the places of the sources that are done."""
        targets = self.targets
        ended = self._ended[: targets.count]
        ends = among(tokens, self._settings.eos_token_id)
        ends |= (targets.given + 1 == targets.limits)[:, None]
        if feeding is not None:
            ends[feeding] = False
        if not ends.any():
            return _NO_PLACE
        ends &= ~ended
        sources, chains = np.nonzero(ends)
        self._lengths[sources, chains] = targets.given[sources] + 1
        ended |= ends
        return np.flatnonzero(ended.all(axis=1))


_NOTHING = np.empty(0)
_NO_PLACE = np.empty(0, np.int64)
