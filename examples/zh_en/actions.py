"""Sentences about what people do: statements, questions of every kind, invitations."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from . import lexicon as lex
from . import phrases as ph
from .clauses import Clause, asked, told_denied_or_asked
from .english import Predicate, words
from .frames import Frame, body, frame, setting
from .phrases import Action, Person, chance, pick


def suits(act: Action, who: Person) -> bool:
    """Nobody waits for himself: neither 我等我 nor 我等我们, but 我等我妈妈."""
    whom = act.whom
    return whom is None or not (
        who.zh.startswith(whom.zh) or (whom in ph.PRONOUNS and whom.zh[0] == who.zh[0])
    )


def actor(rng: Random) -> tuple[Person, Action]:
    while True:
        who, act = ph.subject(rng), ph.action(rng)
        if suits(act, who):
            return who, act


def doing(rng: Random) -> Clause:
    """A statement about an action; the time stands before or after the subject."""
    who, act = actor(rng)
    mood = frame(rng, act)
    where = setting(rng, act, mood, who)
    predicate = mood.predicate.then(where.en_company, where.en_place, where.en_time)
    rest = body(mood, act, where)
    first = where.zh_time + who.zh if chance(rng, 0.4) else who.zh + where.zh_time
    told = predicate.negative if mood.negated else predicate.affirmative
    return Clause(first + rest, words(who.en, told(who.agreement)))


def do_you(rng: Random) -> Clause:
    """你想吃汉堡吗, do you want to eat a hamburger?"""
    who, act = actor(rng)
    mood = frame(rng, act)
    if mood.negated or mood.predicate.adverb:
        return do_you(rng)
    where = setting(rng, act, mood, who)
    predicate = mood.predicate.then(where.en_company, where.en_place, where.en_time)
    zh = who.zh + where.zh_time + body(mood, act, where) + "吗"
    return asked(zh, predicate.question(who.en, who.agreement))


def who_does(rng: Random) -> Clause:
    """谁想吃汉堡, who wants to eat a hamburger?"""
    act = ph.action(rng)
    mood = frame(rng, act)
    where = setting(rng, act, mood)
    predicate = mood.predicate.then(where.en_company, where.en_place, where.en_time)
    told = predicate.negative if mood.negated else predicate.affirmative
    return asked("谁" + where.zh_time + body(mood, act, where), "who", told("3s"))


def what_do_you(rng: Random) -> Clause:
    """你想吃什么, what do you want to eat?"""
    who = ph.subject(rng)
    activity = pick(rng, [activity for activity in lex.ACTIVITIES if activity.asks_what])
    act = Action(activity.zh, "什么", activity.verb, activity.preposition)
    mood = frame(rng, act)
    if mood.predicate.adverb:
        return what_do_you(rng)
    where = setting(rng, act, mood, who)
    predicate = mood.predicate.then(where.en_company, where.en_place, where.en_time)
    zh = who.zh + where.zh_time + body(mood, act, where)
    return asked(zh, "what", predicate.question(who.en, who.agreement, negated=mood.negated))


def when_or_why(rng: Random) -> Clause:
    """你什么时候去学校, when do you go to school? 你为什么不吃, why don't you eat?"""
    who, act = actor(rng)
    mood = frame(rng, act)
    if mood.predicate.adverb or mood.needs_time:
        return when_or_why(rng)
    where = setting(rng, act, mood, who)
    if not mood.negated and mood.times and chance(rng, 0.5):
        zh_ask, en_ask = "什么时候", "when"
        where = replace(where, zh_time="", en_time="")
    else:
        zh_ask, en_ask = "为什么", "why"
    predicate = mood.predicate.then(where.en_company, where.en_place, where.en_time)
    zh = who.zh + where.zh_time + zh_ask + body(mood, act, where)
    return asked(zh, en_ask, predicate.question(who.en, who.agreement, negated=mood.negated))


def where_do_you(rng: Random) -> Clause:
    """你想在哪儿吃汉堡, where do you want to eat a hamburger?
    你明天去哪儿, where do you go tomorrow?
    """
    who = ph.subject(rng)
    if chance(rng, 0.3):
        act = Action("去", pick(rng, ("哪儿", "哪里")), lex.GO, "", takes_place=False)
    else:
        act = ph.everyday(rng)
    mood = frame(rng, act)
    if mood.zai != "在" or mood.negated or mood.predicate.adverb or not suits(act, who):
        return where_do_you(rng)
    zh_place = "在" + pick(rng, ("哪儿", "哪里")) if act.takes_place else ""
    where = replace(setting(rng, act, mood, who), zh_place=zh_place, en_place="")
    predicate = mood.predicate.then(where.en_company, where.en_time)
    zh = who.zh + where.zh_time + body(mood, act, where)
    return asked(zh, "where", predicate.question(who.en, who.agreement))


def how_do_you_go(rng: Random) -> Clause:
    """你怎么去学校, how do you go to school? 我们怎么回家, how do we go home?"""
    who, place = ph.subject(rng), pick(rng, lex.DESTINATIONS)
    act = (
        Action("去", place.zh, lex.GO, place.to)
        if chance(rng, 0.9)
        else Action("回家", "", lex.GO, "home")
    )
    predicate = Predicate(act.verb, act.en_object, auxiliary=False)
    time = pick(rng, lex.HABIT_TIMES) if chance(rng, 0.3) else ("", "")
    zh = who.zh + time[0] + "怎么" + act.zh + act.zh_object
    return asked(zh, "how", predicate.then(time[1]).question(who.en, who.agreement))


def skill(rng: Random) -> Clause:
    """他会说汉语, he can speak Chinese; 你会游泳吗, can you swim?"""
    who, act = ph.subject(rng), ph.set_phrase(rng) if chance(rng, 0.75) else ph.intransitive(rng)
    if act.zh + act.zh_object not in lex.SKILLS:
        return skill(rng)
    can = Predicate(lex.CAN, words(act.verb.base, act.en_object), auxiliary=True)
    return told_denied_or_asked(rng, who, "会" + act.zh + act.zh_object, can)


def invitation(rng: Random) -> Clause:
    """我们去公园吧, let's go to the park; 请给我一杯水, please give me one cup of water;
    请不要..., please don't ...
    """
    act = ph.action(rng)
    where = setting(
        rng, act, Frame("", "", Predicate(act.verb, "", auxiliary=False), lex.FUTURE_TIMES)
    )
    deed = words(act.verb.base, act.en_object, where.en_company, where.en_place, where.en_time)
    zh = where.zh_time + where.zh_around + act.zh + act.zh_object
    form = rng.randrange(3)
    if act.whom is not None and (
        act.whom.zh.startswith("我们") or (act.whom.zh == "我" and form == 0)
    ):
        return invitation(rng)
    if form == 0:
        return Clause(f"我们{zh}吧", words("let's", deed))
    return (
        Clause(f"请{zh}", words("please", deed))
        if form == 1
        else Clause(f"请不要{zh}", words("please don't", deed))
    )
