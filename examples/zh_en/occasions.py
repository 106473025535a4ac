"""Sentences about weather, money and time."""

from __future__ import annotations

from random import Random

from . import lexicon as lex
from . import phrases as ph
from .actions import actor
from .clauses import Clause, asked, told_denied_or_asked
from .english import BE, Predicate, verb, words
from .phrases import Person, chance, pick


def weather(rng: Random) -> Clause:
    """北京今天很冷, it is very cold in Beijing today; 明天会下雨, it will rain tomorrow;
    昨天下雪了, it snowed yesterday.
    """
    city = pick(rng, lex.CITIES)
    zh_place, en_place = (city.zh, city.at) if chance(rng, 0.7) else ("", "")
    form = rng.random()
    if form < 0.45:
        day = pick(
            rng,
            (
                ("今天", "today", "is"),
                ("昨天", "yesterday", "was"),
                ("昨天晚上", "last night", "was"),
            ),
        )
        degree, trait = pick(rng, lex.DEGREES), pick(rng, lex.WEATHER_QUALITIES)
        if chance(rng, 0.25):
            zh = zh_place + day[0] + trait.zh + "吗"
            return asked(zh, day[2], "it", trait.en, en_place, day[1])
        zh = zh_place + day[0] + degree[0] + trait.zh
        return Clause(zh, words("it", day[2], degree[1], trait.en, en_place, day[1]))
    fall, drops = pick(rng, lex.PRECIPITATION)
    if form < 0.6:
        zh_time, en_time = pick(rng, lex.PAST_TIMES)
        negated = chance(rng, 0.3)
        it = Predicate(drops, words(en_place, en_time), auxiliary=False, tense="past")
        told = it.negative("3s") if negated else it.affirmative("3s")
        return Clause(
            zh_place + zh_time + ("没" + fall if negated else fall + "了"), words("it", told)
        )
    if form < 0.75:
        zh_time, en_time = pick(rng, lex.HABIT_TIMES)
        it = Predicate(drops, words(en_place, en_time), auxiliary=False, adverb="often")
        return Clause(f"{zh_place}{zh_time}常常{fall}", words("it", it.affirmative("3s")))
    zh_time, en_time = pick(rng, lex.FUTURE_TIMES)
    will = Predicate(lex.WILL, words(drops.base, en_place, en_time), auxiliary=True)
    return told_denied_or_asked(
        rng, Person(zh_place + zh_time, "it", "", "", "3s"), "会" + fall, will
    )


def price(rng: Random) -> Clause:
    """这本书多少钱, how much is this book? 这本书二十块钱, this book costs twenty yuan."""
    thing = ph.definite(rng, pick(rng, lex.GOODS + lex.FOODS + lex.DRINKS))
    if chance(rng, 0.3):
        return asked(
            thing.zh + "多少钱", "how much", BE.finite(thing.agreement, "present"), thing.en
        )
    n = rng.randrange(1, 100)
    cost = verb("cost", "cost").finite(thing.agreement, "present")
    return Clause(
        f"{thing.zh}{ph.count_word(n)}块钱", words(thing.en, cost, ph.english_number(n), "yuan")
    )


def age(rng: Random) -> Clause:
    """他二十五岁, he is twenty-five years old; 你多大, how old are you?"""
    who = ph.person(rng)
    if chance(rng, 0.15):
        return asked(
            who.zh + "多大",
            "how old",
            Predicate(BE, "", auxiliary=True).question(who.en, who.agreement),
        )
    n = rng.randrange(2, 100)
    zh_year, en_year = ("今年", "this year") if chance(rng, 0.3) else ("", "")
    zh = f"{who.zh}{zh_year}{'两' if n == 2 else ph.chinese_number(n)}岁"
    is_old = words(BE.finite(who.agreement, "present"), ph.english_number(n), "years old", en_year)
    return Clause(zh, words(who.en, is_old))


def clock(rng: Random) -> Clause:
    """现在三点, it is three o'clock now;
    我早上七点半吃早饭, I eat breakfast at half past seven in the morning.
    """
    zh_day, en_day, first, last = pick(rng, lex.DAY_PARTS)
    hour, half = rng.randrange(first, last + 1), chance(rng, 0.4)
    zh = ph.count_word(hour) + ("点半" if half else "点")
    en = "half past " + ph.english_number(hour) if half else ph.english_number(hour) + " o'clock"
    if chance(rng, 0.2):
        return Clause("现在" + zh, f"it is {en} now")
    who, act = actor(rng)
    predicate = Predicate(act.verb, act.en_object, auxiliary=False)
    if chance(rng, 0.15):
        return asked(
            f"{who.zh}几点{act.zh}{act.zh_object}",
            "what time",
            predicate.question(who.en, who.agreement),
        )
    told = predicate.then("at", en, en_day).affirmative(who.agreement)
    return Clause(who.zh + zh_day + zh + act.zh + act.zh_object, words(who.en, told))


def calendar(rng: Random) -> Clause:
    """今天星期一, today is Monday; 明天星期几, what day is tomorrow?
    现在几点, what time is it now?
    """
    zh, en, is_was = pick(
        rng, (("今天", "today", "is"), ("明天", "tomorrow", "is"), ("昨天", "yesterday", "was"))
    )
    form = rng.randrange(9)
    if form == 0:
        return asked("现在几点", "what time is it now")
    if form == 1:
        return asked(zh + "星期几", "what day", is_was, en)
    zh_day, en_day = pick(rng, lex.DAYS)
    if form == 2:
        return asked(f"{zh}是星期{zh_day}吗", is_was, en, en_day)
    if form == 3:
        return Clause(f"{zh}不是星期{zh_day}", words(en, is_was + "n't", en_day))
    return Clause(f"{zh}{pick(rng, ('', '是'))}星期{zh_day}", words(en, is_was, en_day))
