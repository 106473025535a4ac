"""English morphology for the demo grammar: articles, plurals, verb forms, clauses.

The Chinese side needs none of this (Chinese words do not inflect), so all agreement lives here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Agreement = Literal["1s", "3s", "pl"]  # I | he, she, it | you, we, they
Tense = Literal["present", "past"]

VOWELS = "aeiou"
# The article follows the sound, not the letter; these are the exceptions in our lexicon.
CONSONANT_SOUND = ("university", "used")


def words(*parts: str) -> str:
    """Join the parts that are not empty with single spaces."""
    return " ".join(part for part in parts if part)


def with_article(noun_phrase: str) -> str:
    """`hamburger` -> `a hamburger`, `old book` -> `an old book`."""
    first = noun_phrase.split()[0]
    vowel = first[0].lower() in VOWELS and first not in CONSONANT_SOUND
    return f"{'an' if vowel else 'a'} {noun_phrase}"


def plural(noun: str) -> str:
    """Regular plural of a noun (its last word, when it has several)."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def capitalise(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


@dataclass(frozen=True)
class Verb:
    base: str
    third: str
    past: str
    participle: str
    gerund: str
    experience: str  # the participle after 过: "have been to Paris", not "have gone to Paris"

    def finite(self, agreement: Agreement, tense: Tense) -> str:
        if tense == "past":
            return self.past
        return self.third if agreement == "3s" else self.base


def verb(
    base: str,
    past: str = "",
    participle: str = "",
    *,
    gerund: str = "",
    third: str = "",
    experience: str = "",
) -> Verb:
    """A verb, its missing forms filled in by the regular rules."""
    if not past:
        past = base + "d" if base.endswith("e") else base + "ed"
        if base.endswith("y") and base[-2] not in VOWELS:
            past = base[:-1] + "ied"
    participle = participle or past
    if not gerund:
        gerund = base[:-1] + "ing" if base.endswith("e") and base[-2] != "e" else base + "ing"
    third = third or (base + "es" if base.endswith("o") else plural(base))
    return Verb(base, third, past, participle, gerund, experience or participle)


def modal(word: str) -> Verb:
    """`can`, `will`, ...: one form for every person."""
    return Verb(word, word, word, word, word, word)


class _Be(Verb):
    def finite(self, agreement: Agreement, tense: Tense) -> str:
        if tense == "past":
            return "were" if agreement == "pl" else "was"
        return {"1s": "am", "3s": "is", "pl": "are"}[agreement]


BE = _Be("be", "is", "was", "been", "being", "been")
HAVE = verb("have", "had", third="has")
DO = verb("do", "did", "done")

_TAKES_NT = "is are was were do does did has have should must"
NEGATIVE = {
    "am": "am not",
    "may": "may not",
    "can": "can't",
    "will": "won't",
    **{word: f"{word}n't" for word in _TAKES_NT.split()},
}


@dataclass(frozen=True)
class Predicate:
    """A finite verb and what follows it: (`want`, "to eat a hamburger")."""

    head: Verb
    rest: str
    auxiliary: bool  # True: can, will, be, have; False: needs do-support
    tense: Tense = "present"
    adverb: str = ""  # before a main verb, after an auxiliary: often eats, is also eating

    def then(self, *adverbials: str) -> Predicate:
        """The same predicate with adverbials at its end."""
        return replace(self, rest=words(self.rest, *adverbials))

    def affirmative(self, agreement: Agreement) -> str:
        finite = self.head.finite(agreement, self.tense)
        if self.auxiliary:
            return words(finite, self.adverb, self.rest)
        return words(self.adverb, finite, self.rest)

    def negative(self, agreement: Agreement) -> str:
        if self.auxiliary:
            return words(NEGATIVE[self.head.finite(agreement, self.tense)], self.rest)
        do = DO.finite(agreement, self.tense)
        return words(NEGATIVE[do], self.head.base, self.rest)

    def question(self, subject: str, agreement: Agreement, *, negated: bool = False) -> str:
        """Inverted word order without the question mark: `does he want to eat`."""
        if self.auxiliary:
            finite, rest = self.head.finite(agreement, self.tense), self.rest
        else:
            finite, rest = DO.finite(agreement, self.tense), words(self.head.base, self.rest)
        if not negated:
            return words(finite, subject, self.adverb, rest)
        contracted = NEGATIVE[finite]
        if " " in contracted:  # "am I not eating", "may he not eat"
            return words(finite, subject, "not", rest)
        return words(contracted, subject, rest)
