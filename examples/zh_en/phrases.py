"""Noun phrases, people and actions: the parts of sentences, in both languages at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from . import lexicon as lex
from .english import Agreement, Verb, with_article, words

T = TypeVar("T")


def pick(rng: Random, options: Sequence[T]) -> T:
    return options[rng.randrange(len(options))]


def chance(rng: Random, probability: float) -> bool:
    return rng.random() < probability


# --- numbers ----------


def chinese_number(n: int) -> str:
    """二十五 for 25 (1 to 99)."""
    tens, ones = divmod(n, 10)
    if not tens:
        return lex.DIGITS[ones]
    return ("" if tens == 1 else lex.DIGITS[tens]) + "十" + (lex.DIGITS[ones] if ones else "")


def english_number(n: int) -> str:
    """`twenty-five` for 25 (1 to 99)."""
    if n < 20:
        return lex.SMALL_NUMBERS[n]
    tens, ones = divmod(n, 10)
    return lex.TENS[tens - 2] + (f"-{lex.SMALL_NUMBERS[ones]}" if ones else "")


def count_word(n: int) -> str:
    """The Chinese numeral before a measure word, where two is 两."""
    return "两" if n == 2 else chinese_number(n)


# --- noun phrases ----------


@dataclass(frozen=True)
class Thing:
    """A noun phrase and its agreement."""

    zh: str
    en: str
    agreement: Agreement


def attributive(quality: lex.Quality) -> str:
    """大 stays bare before a noun, 有意思 takes 的."""
    return quality.zh if quality.zh in lex.BARE_BEFORE_NOUN else quality.zh + "的"


def qualities_of(noun: lex.Noun) -> tuple[lex.Quality, ...]:
    if noun in lex.FOODS:
        return lex.FOOD_QUALITIES
    if noun in lex.DRINKS:
        return lex.DRINK_QUALITIES
    if noun in lex.READINGS:
        return lex.READING_QUALITIES
    if noun in lex.SHOWS:
        return lex.READING_QUALITIES[:3]
    if noun in lex.ANIMALS:
        return lex.ANIMAL_QUALITIES
    if noun in lex.JOBS:
        return lex.PERSON_QUALITIES
    return lex.THING_QUALITIES


def described(rng: Random, noun: lex.Noun) -> lex.Noun:
    """The noun with a quality or colour before it, as a noun of its own: 新书, a new book."""
    options = qualities_of(noun)
    if noun in lex.GOODS and noun not in lex.READINGS:
        options += lex.COLOURS
    quality = pick(rng, options)
    many = words(quality.en, noun.many)
    return lex.Noun(
        attributive(quality) + noun.zh, words(quality.en, noun.en), noun.measure, noun.bare, many
    )


def bare(noun: lex.Noun) -> Thing:
    """The noun without number or determiner: 汉堡, a hamburger; 茶, tea; 面条, noodles."""
    if noun.bare == "article":
        return Thing(noun.zh, with_article(noun.en), "3s")
    return Thing(noun.zh, noun.en, "3s" if noun.bare == "mass" else "pl")


def kind(noun: lex.Noun) -> Thing:
    """The whole kind: 猫, cats; 茶, tea."""
    return Thing(noun.zh, noun.many, "3s" if noun.bare == "mass" else "pl")


def portion(noun: lex.Noun, n: int) -> str:
    """What a number counts: `cups of tea`, `hamburgers`; `pair of shoes`, `hamburger` for one."""
    if noun.measure in lex.PORTIONS:
        one, many = lex.PORTIONS[noun.measure]
        return words(one if n == 1 else many, noun.many)
    return noun.en if n == 1 else noun.many


def counted(noun: lex.Noun, n: int) -> Thing:
    """一个汉堡, one hamburger; 两杯茶, two cups of tea."""
    zh = count_word(n) + noun.measure + noun.zh
    return Thing(zh, words(english_number(n), portion(noun, n)), "3s" if n == 1 else "pl")


def pointed_at(rng: Random, noun: lex.Noun) -> Thing:
    """这个汉堡, this hamburger; 那三本书, those three books; 这些苹果, these apples."""
    near = chance(rng, 0.5)
    pointer, this, these = ("这", "this", "these") if near else ("那", "that", "those")
    form = rng.randrange(4)
    if form == 0 and noun.bare != "mass":
        return Thing(pointer + "些" + noun.zh, words(these, noun.many), "pl")
    if form == 1:
        n = rng.randrange(2, 10)
        zh = pointer + count_word(n) + noun.measure + noun.zh
        return Thing(zh, words(these, english_number(n), portion(noun, n)), "pl")
    return Thing(pointer + noun.measure + noun.zh, words(this, portion(noun, 1)), "3s")


def owned(rng: Random, noun: lex.Noun) -> Thing:
    """我的书, my book; 小明的两只猫, Xiaoming's two cats."""
    owner = person(rng, relatives=chance(rng, 0.4))
    if noun.bare == "article" and chance(rng, 0.25):
        n = rng.randrange(2, 10)
        zh = f"{owner.zh}的{count_word(n)}{noun.measure}{noun.zh}"
        return Thing(zh, words(owner.possessive, english_number(n), noun.many), "pl")
    return Thing(
        f"{owner.zh}的{noun.zh}",
        words(owner.possessive, noun.en),
        "pl" if noun.bare == "plural" else "3s",
    )


def definite(rng: Random, noun: lex.Noun) -> Thing:
    return pointed_at(rng, noun) if chance(rng, 0.6) else owned(rng, noun)


def something(rng: Random, nouns: Sequence[lex.Noun]) -> Thing:
    """Any noun phrase that can stand as an object."""
    noun = pick(rng, nouns)
    full = described(rng, noun) if chance(rng, 0.25) else noun
    form = rng.random()
    if form < 0.45:
        return bare(full)
    if form < 0.7:
        return counted(full, rng.randrange(1, 11))
    if form < 0.82:
        return pointed_at(rng, full)
    if form < 0.92:
        return owned(rng, full)
    first, second = bare(full), bare(pick(rng, nouns))
    if first.zh.endswith(second.zh):
        return first
    return Thing(f"{first.zh}和{second.zh}", f"{first.en} and {second.en}", "pl")


# --- people ----------


@dataclass(frozen=True)
class Person:
    zh: str
    en: str
    object: str
    possessive: str
    agreement: Agreement


PRONOUNS = tuple(Person(*row) for row in lex.PRONOUNS)  # type: ignore[arg-type]
NAMED = tuple(Person(zh, en, en, f"{en}'s", "3s") for zh, en in lex.NAMES)


def _third_person(zh: str, en: str) -> Person:
    return Person(zh, en, en, f"{en}'s", "3s")


def relative(rng: Random) -> Person:
    """我妈妈, my mother; 小明的朋友, Xiaoming's friend."""
    owner = pick(rng, PRONOUNS) if chance(rng, 0.8) else pick(rng, NAMED)
    if chance(rng, 0.7):
        zh, en = pick(rng, lex.KIN)
        joint = "" if len(owner.zh) == 1 and chance(rng, 0.6) else "的"
    else:
        zh, en = pick(rng, lex.RELATIONS)
        joint = "的"
    return _third_person(owner.zh + joint + zh, words(owner.possessive, en))


def person(rng: Random, *, relatives: bool = True) -> Person:
    """A pronoun, a name or (with `relatives`) somebody's relative or friend."""
    form = rng.random()
    if relatives and form < 0.35:
        return relative(rng)
    return pick(rng, PRONOUNS) if form < 0.8 else pick(rng, NAMED)


def somebody_else(rng: Random) -> Person:
    """A person who can stand beside `I` and `you`: a name or a relative."""
    return relative(rng) if chance(rng, 0.6) else pick(rng, NAMED)


def creature(rng: Random, animals: float = 0.3) -> Person:
    """医生, the doctor; 那些学生, those students; at times an animal: 这只猫, this cat."""
    noun = pick(rng, lex.ANIMALS if chance(rng, animals) else lex.JOBS)
    if chance(rng, 0.5):
        return _third_person(noun.zh, f"the {noun.en}")
    thing = pointed_at(rng, noun)
    return Person(thing.zh, thing.en, thing.en, f"{thing.en}'s", thing.agreement)


def couple(rng: Random) -> Person:
    """小明和小红, Xiaoming and Xiaohong; 我和小明, Xiaoming and I."""
    first = PRONOUNS[0] if chance(rng, 0.5) else pick(rng, NAMED)
    second = somebody_else(rng)
    if second.zh.startswith(first.zh):
        second = pick(rng, [name for name in NAMED if name != first])
    if first is PRONOUNS[0]:
        return Person(f"我和{second.zh}", f"{second.en} and I", "", "", "pl")
    return Person(f"{first.zh}和{second.zh}", f"{first.en} and {second.en}", "", "", "pl")


def subject(rng: Random) -> Person:
    form = rng.random()
    if form < 0.45:
        return pick(rng, PRONOUNS)
    if form < 0.75:
        return somebody_else(rng)
    return creature(rng) if form < 0.92 else couple(rng)


# --- actions ----------


@dataclass(frozen=True)
class Action:
    """A verb with its object. Chinese aspect marks (了, 过) go between the two parts."""

    zh: str
    zh_object: str
    verb: Verb
    en_object: str
    takes_aspect: bool = True
    takes_place: bool = True
    whom: Person | None = None


def doing(rng: Random) -> Action:
    """An action on a thing: 吃汉堡, eat a hamburger."""
    activity = pick(rng, lex.ACTIVITIES) if chance(rng, 0.6) else pick(rng, lex.ACTIVITIES[:6])
    thing = something(rng, activity.nouns)
    return Action(activity.zh, thing.zh, activity.verb, words(activity.preposition, thing.en))


def set_phrase(rng: Random) -> Action:
    zh, zh_object, verb, rest = pick(rng, lex.SET_PHRASES)
    return Action(zh, zh_object, verb, rest)


def intransitive(rng: Random) -> Action:
    zh, verb, rest = pick(rng, lex.INTRANSITIVES)
    return Action(zh, "", verb, rest, takes_aspect=False)


def to_person(rng: Random) -> Action:
    """等我妈妈, wait for my mother."""
    zh, verb, preposition = pick(rng, lex.PERSON_VERBS)
    whom = creature(rng, animals=0) if chance(rng, 0.2) else person(rng)
    return Action(zh, whom.zh, verb, words(preposition, whom.object), whom=whom)


def giving(rng: Random) -> Action:
    """给我妈妈一本书, give my mother one book."""
    zh, verb = pick(rng, lex.GIVING)
    whom = person(rng)
    thing = counted(pick(rng, lex.GOODS), rng.randrange(1, 6))
    return Action(zh, whom.zh + thing.zh, verb, words(whom.object, thing.en), whom=whom)


def everyday(rng: Random) -> Action:
    """Any action that stays in one place."""
    form = rng.random()
    if form < 0.5:
        return doing(rng)
    if form < 0.75:
        return set_phrase(rng)
    return intransitive(rng) if form < 0.87 else to_person(rng)


def going(rng: Random) -> Action:
    """去北京, go to Beijing; 坐火车去北京看电影, go to Beijing by train to watch a movie;
    回家, go home.
    """
    if chance(rng, 0.12):
        return Action("回家", "", lex.GO, "home", takes_aspect=False, takes_place=False)
    place = lex.MOON if chance(rng, 0.04) else pick(rng, lex.DESTINATIONS)
    zh_way, en_way = pick(rng, lex.WAYS) if chance(rng, 0.4) else ("", "")
    zh_place, en_place = place.zh.removesuffix("上") if place is lex.MOON else place.zh, place.to
    if chance(rng, 0.4):
        purpose = everyday(rng)
        zh = zh_way + "去" + zh_place + purpose.zh
        rest = words(en_place, en_way, "to", purpose.verb.base, purpose.en_object)
        return Action(zh, purpose.zh_object, lex.GO, rest, takes_aspect=False, takes_place=False)
    return Action(zh_way + "去", zh_place, lex.GO, words(en_place, en_way), takes_place=False)


def action(rng: Random) -> Action:
    form = rng.random()
    if form < 0.7:
        return everyday(rng)
    return going(rng) if form < 0.93 else giving(rng)
