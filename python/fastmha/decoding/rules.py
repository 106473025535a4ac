"""What may come next: rules that change the scores of all targets at once, in place.

One small class for each rule, applied in the order of transformers (`_get_logits_processor`). Most
rules only ban: they name places (row, token), and beam search can take those out without a pass
over the whole vocabulary. A rule that a target does not meet at its present length costs a
comparison of lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastmha._types import Bool, Float32, Float64, Int64
from fastmha.decoding.settings import GenerationSettings

__all__ = ["Ban", "Force", "Rule", "Rules", "Targets", "rules_for"]

# Rows and tokens, one for one.
Places: TypeAlias = tuple[Int64, Int64]
NOTHING = np.empty(0, np.int64)
NOWHERE: Places = NOTHING, NOTHING


@dataclass(frozen=True)
class Targets:
    """What the targets hold when their next tokens are chosen.

    Attributes
    ----------
    ids : ndarray of int64, (rows, longest)
        Start token, prefix, generated tokens; what lies past a length is anything.
    lengths : ndarray of int64, (rows,)
        How many ids each row holds.
    prompts, limits : ndarray of int64, (rows,)
        How many of them were given, and how many there may be.
    """

    ids: Int64
    lengths: Int64
    prompts: Int64
    limits: Int64


class Rule(Protocol):
    def __call__(self, scores: Float32, targets: Targets) -> None:
        """Change `scores` (rows, vocabulary), logits or log-probabilities, in place."""


class Ban:
    """A rule that does nothing but ban tokens.

    Attributes
    ----------
    always : ndarray of int64
        What it bans in every row at every length.
    sometimes : bool
        Whether it bans anything else.
    """

    always: Int64 = NOTHING
    sometimes = True

    def banned(self, targets: Targets, rows: int) -> Places:
        """Where a score becomes -inf besides `always`; a place may come twice."""
        return NOWHERE

    def __call__(self, scores: Float32, targets: Targets) -> None:
        if self.always.size:
            scores[:, self.always] = -np.inf
        if self.sometimes:
            scores[self.banned(targets, len(scores))] = -np.inf


class Force:
    """A rule that leaves a row nothing but some tokens, which then cost nothing."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = np.array(sorted(set(tokens)), np.int64)

    def forced(self, targets: Targets) -> Bool:
        """(rows,): where the rule holds."""
        raise NotImplementedError

    def __call__(self, scores: Float32, targets: Targets) -> None:
        rows = np.flatnonzero(self.forced(targets))
        if rows.size:
            scores[rows] = -np.inf
            scores[rows[:, None], self.tokens] = 0.0


@dataclass(frozen=True)
class RepetitionPenalty:
    """A token that the target holds: a negative score times `penalty`, a positive one divided."""

    penalty: float

    def __call__(self, scores: Float32, targets: Targets) -> None:
        held = np.arange(targets.ids.shape[1]) < targets.lengths[:, None]
        held &= targets.ids < scores.shape[1]  # a start token may lie outside the vocabulary
        rows, places = np.nonzero(held)
        tokens = targets.ids[rows, places]
        found = scores[rows, tokens]  # a token that comes twice is read twice, written twice
        penalty = np.float32(self.penalty)
        scores[rows, tokens] = np.where(found < 0, found * penalty, found / penalty)


class NoRepeatNGram(Ban):
    """No `size` tokens come twice in the same order."""

    def __init__(self, size: int) -> None:
        self.size = size

    def banned(self, targets: Targets, rows: int) -> Places:
        size, lengths = self.size, targets.lengths
        if targets.ids.shape[1] < size:
            return NOWHERE
        windows = sliding_window_view(targets.ids, size, axis=1)  # (rows, windows, size)
        ends = np.arange(windows.shape[1]) + size  # (windows,)
        # The tokens that an n-gram with the next one would begin with: the last size - 1.
        last = _last(targets, size - 1)  # (rows, size - 1)
        same = (windows[:, :, :-1] == last[:, None]).all(axis=2)
        same &= ends <= lengths[:, None]
        found, places = np.nonzero(same)
        return found, windows[found, places, -1]


class BannedWords(Ban):
    """Sequences of tokens that never come: the last one is banned behind all before it."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        single = sorted({word[0] for word in words if len(word) == 1})
        self.always = np.array(single, np.int64)
        by_length: dict[int, list[Sequence[int]]] = {}
        for word in words:
            if len(word) > 1:
                by_length.setdefault(len(word), []).append(word)
        self.longer = [np.array(same_length, np.int64) for same_length in by_length.values()]
        self.sometimes = bool(self.longer)

    def banned(self, targets: Targets, rows: int) -> Places:
        places = [NOWHERE]
        for words in self.longer:  # (words, length)
            before = words.shape[1] - 1
            same = (_last(targets, before)[:, None] == words[:, :-1]).all(axis=2)  # (rows, words)
            same &= (targets.lengths >= before)[:, None]
            found, which = np.nonzero(same)
            places.append((found, words[which, -1]))
        return _joined(places)


class MinLength(Ban):
    """No end before `length` tokens, start token and prefix included."""

    def __init__(self, length: int, eos: Sequence[int]) -> None:
        self.length, self.eos = length, np.array(eos, np.int64)

    def banned(self, targets: Targets, rows: int) -> Places:
        return _everywhere_in(np.flatnonzero(targets.lengths < self.length), self.eos)


class MinNewTokens(Ban):
    """No end before `count` generated tokens."""

    def __init__(self, count: int, eos: Sequence[int]) -> None:
        self.count, self.eos = count, np.array(eos, np.int64)

    def banned(self, targets: Targets, rows: int) -> Places:
        early = targets.lengths - targets.prompts < self.count
        return _everywhere_in(np.flatnonzero(early), self.eos)


class ForceFirst(Force):
    """The token behind the start token, when there is no prefix."""

    def forced(self, targets: Targets) -> Bool:
        held: Bool = targets.lengths == 1
        return held


class ForceLast(Force):
    """The last token of a target that reaches its greatest length."""

    def forced(self, targets: Targets) -> Bool:
        held: Bool = targets.lengths == targets.limits - 1
        return held


class RemoveInvalid:
    """NaN becomes 0, infinities the greatest and least finite numbers."""

    def __call__(self, scores: Float32, targets: Targets) -> None:
        np.nan_to_num(scores, copy=False, nan=0.0)


class Suppress(Ban):
    """Tokens that never come."""

    sometimes = False

    def __init__(self, tokens: Sequence[int]) -> None:
        self.always = np.array(sorted(set(tokens)), np.int64)


class SuppressFirst(Ban):
    """Tokens that are not the first to be chosen; a forced first token is not chosen."""

    def __init__(self, tokens: Sequence[int], after_forced: bool) -> None:
        self.tokens = np.array(sorted(set(tokens)), np.int64)
        self.after_forced = after_forced

    def banned(self, targets: Targets, rows: int) -> Places:
        first = targets.prompts + (self.after_forced & (targets.prompts == 1))
        return _everywhere_in(np.flatnonzero(targets.lengths == first), self.tokens)


class Rules:
    """All rules of a call, in their order.

    Attributes
    ----------
    only_bans : bool
        Whether they do nothing but ban and force. Then their order does not matter, as long as what
        is forced comes last: settings whose `suppress_tokens` hold what they force are refused.
    renormalize : bool
        Whether log-probabilities sum to 1 again behind the rules. No matter to greedy search and
        sampling: they go by which score is greater, or by weights that are normalised anyway.
    """

    def __init__(self, rules: Sequence[Rule], *, renormalize: bool = False) -> None:
        self._rules = list(rules)
        self._bans = [rule for rule in rules if isinstance(rule, Ban)]
        self.forces = [rule for rule in rules if isinstance(rule, Force)]
        self.only_bans = len(self._bans) + len(self.forces) == len(self._rules)
        self.renormalize = renormalize
        self._always = np.unique(np.concatenate([NOTHING, *(ban.always for ban in self._bans)]))
        self._sometimes = [ban for ban in self._bans if ban.sometimes]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def __call__(self, scores: Float32, targets: Targets) -> None:
        for rule in self._rules:
            rule(scores, targets)

    def take_out(self, scores: Float32, targets: Targets) -> Float64 | None:
        """Ban what is banned; (rows,): log(sum(exp)) of the scores that went, None for no ban."""
        if not self._bans:
            return None
        taken = scores[:, self._always].astype(np.float64)
        scores[:, self._always] = -np.inf
        gone = taken[:, 0] if taken.shape[1] == 1 else np.logaddexp.reduce(taken, axis=1)
        if self._sometimes:
            places = _joined([ban.banned(targets, len(scores)) for ban in self._sometimes])
            rows, tokens = _once(places, scores.shape[1])
            found = scores[rows, tokens].astype(np.float64)  # -inf where it is gone already
            scores[rows, tokens] = -np.inf
            np.logaddexp.at(gone, rows, found)
        return gone


def rules_for(settings: GenerationSettings, vocab_size: int) -> Rules:
    """The rules that `settings` ask for.

    Raises
    ------
    ValueError
        A token outside the vocabulary.
    """
    s = settings
    named = {
        "decoder_start_token_id": [s.decoder_start_token_id],
        "eos_token_id": s.eos_token_id,
        "bad_words_ids": [token for word in s.bad_words_ids for token in word],
        "suppress_tokens": s.suppress_tokens,
        "begin_suppress_tokens": s.begin_suppress_tokens,
        "forced_bos_token_id": () if s.forced_bos_token_id is None else [s.forced_bos_token_id],
        "forced_eos_token_id": s.forced_eos_token_id,
    }
    for name, tokens in named.items():
        outside = [token for token in tokens if token >= vocab_size]
        if outside:
            raise ValueError(
                f"generate: {name} holds {outside[0]}, outside the target vocabulary "
                f"0 .. {vocab_size - 1}"
            )
    rules: list[Rule] = []
    if s.repetition_penalty != 1.0:
        rules.append(RepetitionPenalty(s.repetition_penalty))
    if s.no_repeat_ngram_size:
        rules.append(NoRepeatNGram(s.no_repeat_ngram_size))
    # An end token alone is no bad word: targets would never end.
    words = [word for word in s.bad_words_ids if len(word) > 1 or word[0] not in s.eos_token_id]
    if words:
        rules.append(BannedWords(words))
    if s.eos_token_id and s.min_new_tokens:
        rules.append(MinNewTokens(s.min_new_tokens, s.eos_token_id))
    elif s.eos_token_id and s.min_new_tokens is None and s.min_length:
        rules.append(MinLength(s.min_length, s.eos_token_id))
    if s.forced_bos_token_id is not None:
        rules.append(ForceFirst([s.forced_bos_token_id]))
    if s.forced_eos_token_id:
        rules.append(ForceLast(s.forced_eos_token_id))
    if s.remove_invalid_values:
        rules.append(RemoveInvalid())
    if s.suppress_tokens:
        rules.append(Suppress(s.suppress_tokens))
    if s.begin_suppress_tokens:
        rules.append(SuppressFirst(s.begin_suppress_tokens, s.forced_bos_token_id is not None))
    return Rules(rules, renormalize=s.renormalize_logits)


def _last(targets: Targets, count: int) -> Int64:
    """(rows, count): the last tokens of each row; anything where it holds fewer."""
    places = targets.lengths[:, None] - count + np.arange(count)
    last: Int64 = np.take_along_axis(targets.ids, np.maximum(places, 0), axis=1)
    return last


def _everywhere_in(rows: Int64, tokens: Int64) -> Places:
    return np.repeat(rows, tokens.size), np.tile(tokens, rows.size)


def _joined(places: Sequence[Places]) -> Places:
    if len(places) == 1:
        return places[0]
    rows, tokens = zip(*places, strict=True)
    return np.concatenate(rows), np.concatenate(tokens)


def _once(places: Places, width: int) -> Places:
    """Each place once, by row and then by token: a row's sum has the same order in any batch."""
    rows, tokens = places
    if rows.size < 2:
        return places
    flat = np.unique(rows * width + tokens)
    return flat // width, flat % width
