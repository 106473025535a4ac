"""The targets of the sources that are present, as arrays that sources join and leave."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastmha._types import Bool, Int64
from fastmha.decoding.rules import Rules, Targets

__all__ = ["Growing", "Hypothesis", "Prompt", "among"]


@dataclass(frozen=True)
class Hypothesis:
    """A finished target.

    Attributes
    ----------
    ids : ndarray of int64
        Prefix and generated tokens, without start token and end token.
    score : float
        The sum of the log-probabilities of the generated tokens, the end token included, divided
        by their number to the power of the length penalty; NaN when it was not asked for.
    """

    ids: Int64
    score: float


@dataclass(frozen=True)
class Prompt:
    """What a target begins with.

    Attributes
    ----------
    ids : ndarray of int64
        The start token and the prefix.
    longest : int
        How many tokens the target may have with them.
    index : int
        The source's number in the call: its own stream of random numbers is derived from it.
    """

    ids: Int64
    longest: int
    index: int = 0


class Growing:
    """Ids, lengths and limits of all targets, `width` for each source, sources in order of joining.

    The arrays that end without an underscore are views on the rows in use.
    """

    def __init__(self, sources: int, width: int, longest: int) -> None:
        self.width = width
        self.count = 0  # sources present
        # Nothing may read what lies past a length; zeros so that whoever looks at it finds ids.
        self._ids = np.zeros((sources, width, longest), np.int64)
        self._given = np.zeros(sources, np.int64)  # tokens that the network has read
        self._prompts = np.zeros(sources, np.int64)
        self._limits = np.zeros(sources, np.int64)
        self._sources = np.arange(sources)
        self.tokens = np.empty(0, np.int64)  # (rows,): what the network reads next
        self.feeding = False  # whether some source may still be reading its prefix
        self._look()

    def join(self, prompts: Sequence[Prompt]) -> None:
        """Targets of new sources, behind those present."""
        for n, prompt in enumerate(prompts, self.count):
            self._ids[n, :, : len(prompt.ids)] = prompt.ids
            self._given[n] = 0
            self._prompts[n] = len(prompt.ids)
            self._limits[n] = prompt.longest
        first = np.array([prompt.ids[0] for prompt in prompts], np.int64)
        self.tokens = np.concatenate([self.tokens, np.repeat(first, self.width)])
        self.feeding = self.feeding or any(len(prompt.ids) > 1 for prompt in prompts)
        self.count += len(prompts)
        self._look()

    def select(self, keep: Int64) -> None:
        """Forget the targets of all other sources."""
        count = len(keep)
        for array in self._arrays():
            array[:count] = array[keep]
        self.tokens = self.tokens.reshape(self.count, self.width)[keep].ravel()
        self.count = count
        self._look()

    def _arrays(self) -> list[NDArray[np.generic]]:
        """All that belongs to a source, by its place."""
        return [self._ids, self._given, self._prompts, self._limits]

    def _look(self) -> None:
        count = self.count
        self.ids, self.given = self._ids[:count], self._given[:count]
        self.prompts, self.limits = self._prompts[:count], self._limits[:count]
        self.sources = self._sources[:count]

    def still_feeding(self) -> Bool | None:
        """(sources,): which ones read their prefix, None when none does; behind a step."""
        if not self.feeding:
            return None
        feeding: Bool = self.given < self.prompts
        self.feeding = bool(feeding.any())
        return feeding if self.feeding else None

    def for_rules(self) -> Targets:
        """What the rules look at, by row."""
        longest = int(self.given.max())
        ids = self._ids[: self.count, :, :longest].reshape(self.count * self.width, longest)
        if self.width == 1:
            return Targets(ids, self.given, self.prompts, self.limits)
        of_source = (self.given, self.prompts, self.limits)
        return Targets(ids, *(np.repeat(numbers, self.width) for numbers in of_source))


def among(tokens: Int64, ends: Sequence[int]) -> Bool:
    """Where a token is one of `ends`."""
    if not ends:
        return np.zeros(tokens.shape, bool)
    found: Bool = tokens == ends[0]
    for end in ends[1:]:
        found |= tokens == end
    return found


def force(rules: Rules, targets: Targets) -> list[tuple[Int64, Int64]]:
    """The rows in which only some tokens may come, with these tokens; the last rule wins."""
    forced = ((np.flatnonzero(rule.forced(targets)), rule.tokens) for rule in rules.forces)
    return [(rows, tokens) for rows, tokens in forced if rows.size]
