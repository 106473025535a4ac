"""A clause in both languages, and the forms that every clause can take: told, denied, asked."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .english import Predicate, words
from .phrases import Person


@dataclass(frozen=True)
class Clause:
    """A Chinese clause and its translation, not yet capitalised or punctuated."""

    zh: str
    en: str
    question: bool = False


def asked(zh: str, *en: str) -> Clause:
    return Clause(zh, words(*en), question=True)


def told_denied_or_asked(
    rng: Random, who: Person, zh: str, predicate: Predicate, no: str = "不"
) -> Clause:
    """One of the three forms that every predicate has: 他会..., 他不会..., 他会...吗."""
    form = rng.random()
    if form < 0.5:
        return Clause(who.zh + zh, words(who.en, predicate.affirmative(who.agreement)))
    if form < 0.75:
        return Clause(who.zh + no + zh, words(who.en, predicate.negative(who.agreement)))
    return asked(who.zh + zh + "吗", predicate.question(who.en, who.agreement))
