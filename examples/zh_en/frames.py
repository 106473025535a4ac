"""What stands around an action: tense and mood (frames); company, place and time (settings)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from . import lexicon as lex
from . import phrases as ph
from .english import BE, HAVE, Predicate, words
from .phrases import Action, Person, chance, pick


@dataclass(frozen=True)
class Frame:
    """How an action is presented: the Chinese around it, the predicate, the times that fit."""

    before: str  # between subject and action: 想, 正在, 没
    after: str  # after the verb: 了, 过
    predicate: Predicate
    times: tuple[tuple[str, str], ...]
    negated: bool = False
    needs_time: bool = False
    zai: str | None = (
        "在"  # before a place; 正在 swallows it (正在家看书), and 在 alone takes no place (None)
    )


def habitual(rng: Random, act: Action) -> Frame:
    """我每天吃汉堡, I eat a hamburger every day."""
    predicate = Predicate(act.verb, act.en_object, auxiliary=False)
    if chance(rng, 0.25):
        return Frame("不", "", predicate, lex.HABIT_TIMES, negated=True)
    if chance(rng, 0.3):
        zh, en = pick(rng, lex.HABIT_ADVERBS)
        return Frame(zh, "", replace(predicate, adverb=en), lex.HABIT_TIMES)
    return Frame("", "", predicate, lex.HABIT_TIMES)


def modal(rng: Random, act: Action) -> Frame:
    """我想吃汉堡, I want to eat a hamburger; 他不能来, he can't come."""
    zh, mood = pick(rng, lex.MODALS[:1] if chance(rng, 0.15) else lex.MODALS)
    predicate = replace(mood, rest=words(mood.rest, act.verb.base, act.en_object))
    times = () if zh in lex.TIMELESS_MODALS else lex.FUTURE_TIMES
    negated = zh not in lex.WITHOUT_NEGATION and chance(rng, 0.3)
    adverb = "也" if not negated and chance(rng, 0.08) else ""
    if adverb:
        predicate = replace(predicate, adverb="also")
    return Frame(adverb + "不" * negated + zh, "", predicate, times, negated, needs_time=zh == "会")


def progressive(rng: Random, act: Action) -> Frame:
    """我正在吃汉堡, I am eating a hamburger."""
    predicate = Predicate(BE, words(act.verb.gerund, act.en_object), auxiliary=True)
    before, zai = pick(rng, (("正在", ""), ("在", None)))
    return Frame(before, "", predicate, (), zai=zai)


def past(rng: Random, act: Action) -> Frame:
    """我昨天吃了汉堡, I ate a hamburger yesterday; 我没吃汉堡, I didn't eat a hamburger."""
    predicate = Predicate(act.verb, act.en_object, auxiliary=False, tense="past")
    if chance(rng, 0.3):
        return Frame("没", "", predicate, lex.PAST_TIMES, negated=True)
    return Frame("", "了", predicate, lex.PAST_TIMES)


def perfect(rng: Random, act: Action) -> Frame:
    """我吃过汉堡, 我已经吃了汉堡: I have (already) eaten a hamburger."""
    if chance(rng, 0.4):
        rest = words(act.verb.participle, act.en_object)
        return Frame("已经", "了", Predicate(HAVE, rest, auxiliary=True, adverb="already"), ())
    predicate = Predicate(HAVE, words(act.verb.experience, act.en_object), auxiliary=True)
    negated = chance(rng, 0.3)
    return Frame("没" * negated, "过", predicate, (), negated)


def frame(rng: Random, act: Action) -> Frame:
    form = rng.random()
    if form < 0.45:
        return modal(rng, act)
    if form < 0.65 or (form >= 0.75 and not act.takes_aspect):
        return habitual(rng, act)
    if form < 0.75:
        return progressive(rng, act)
    return past(rng, act) if form < 0.9 else perfect(rng, act)


@dataclass(frozen=True)
class Setting:
    """With whom, where and when; empty strings where nothing is said."""

    zh_company: str = ""
    en_company: str = ""
    zh_place: str = ""
    en_place: str = ""
    zh_time: str = ""
    en_time: str = ""
    place_first: bool = False  # 在家跟他一起 or 跟他一起在家, the same in English

    @property
    def zh_around(self) -> str:
        """Company and place as they stand before a Chinese verb."""
        pair = (self.zh_company, self.zh_place)
        return "".join(reversed(pair) if self.place_first else pair)


def setting(rng: Random, act: Action, mood: Frame, who: Person | None = None) -> Setting:
    """Each part with its own small probability."""
    company, place, time = ("", ""), ("", ""), ("", "")
    place_first = chance(rng, 0.5)
    if chance(rng, 0.12):
        partner = ph.somebody_else(rng)
        if who is None or (partner.zh not in who.zh and who.zh not in partner.zh):
            company = (f"跟{partner.zh}一起", f"with {partner.object}")
    if act.takes_place and mood.zai is not None and chance(rng, 0.25):
        scene = pick(rng, lex.SCENES)
        zai = "在" if company[0] and not place_first else mood.zai
        place = (zai + scene.zh, scene.at)
    if mood.times and (mood.needs_time or chance(rng, 0.35)):
        time = pick(rng, mood.times)
    return Setting(*company, *place, *time, place_first)


def body(mood: Frame, act: Action, where: Setting) -> str:
    """Everything after the Chinese subject and time: 不想在家吃汉堡."""
    return mood.before + where.zh_around + act.zh + mood.after + act.zh_object
