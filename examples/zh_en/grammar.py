"""A grammar of everyday Chinese sentences, each with its one English translation.

`sample(rng)` draws one sentence pair. A sentence is made by one of the templates in `TEMPLATES`:
about what people do (actions.py), what is (states.py), weather, money and time (occasions.py), or
two of these joined (below). Templates put phrases (phrases.py) into frames (frames.py); the words
are in lexicon.py, English agreement in english.py.

Conventions, so that exactly one translation is right:

- No punctuation at the end in Chinese (the tokeniser drops it); English ends with `?` after a
  question and with nothing after a statement. A comma between clauses stays, in both languages.
- A thing without a number takes a/an (汉堡: a hamburger), with 一 it takes `one` (一个汉堡: one
  hamburger). With 喜欢 and in general statements the whole kind is meant (我喜欢猫: I like cats).
- A person or animal without a number that acts is known: 医生, the doctor.
- 想 want to, 要 be going to (an action) or want (a thing), 会 will (with a day) or can (a skill),
  能 can, 可以 may, 应该 should, 必须 must.
- 了 is the simple past, 过 and 已经...了 the perfect, 正在 and 在 the progressive.
- English order: verb, object, company, place, time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from . import lexicon as lex
from . import phrases as ph
from .actions import (
    actor,
    do_you,
    doing,
    how_do_you_go,
    invitation,
    skill,
    what_do_you,
    when_or_why,
    where_do_you,
    who_does,
)
from .clauses import Clause
from .english import Predicate, capitalise, words
from .occasions import age, calendar, clock, price, weather
from .phrases import chance, pick
from .states import (
    comparison,
    existence,
    having,
    job,
    liking,
    living,
    location,
    name,
    pointing,
    quality,
    wanting,
)


def simple_statement(rng: Random) -> Clause:
    while True:
        clause = pick(rng, (doing, doing, doing, quality, weather, having, liking, job, location))(
            rng
        )
        if not clause.question and len(clause.zh) <= 14:
            return clause


def greeting(rng: Random) -> Clause:
    """你好，小明: hello, Xiaoming; 对不起，他不在家: I am sorry, he isn't at home."""
    zh, en = pick(rng, lex.GREETINGS)
    if chance(rng, 0.4):
        whom = pick(rng, ph.NAMED)
        return Clause(f"{zh}，{whom.zh}", f"{en}, {whom.en}")
    if chance(rng, 0.1):
        return Clause(zh, en)
    rest = simple_statement(rng)
    return Clause(f"{zh}，{rest.zh}", f"{en}, {rest.en}")


def thought(rng: Random) -> Clause:
    """我知道他喜欢猫, I know that he likes cats."""
    who, inner = ph.subject(rng), simple_statement(rng)
    zh, thinks = pick(rng, lex.THOUGHTS)
    return Clause(
        who.zh + zh + inner.zh,
        words(who.en, thinks.finite(who.agreement, "present"), "that", inner.en),
    )


def two_clauses(rng: Random) -> Clause:
    """因为A，所以B: because A, B; A，但是B: A, but B."""
    one, other = simple_statement(rng), simple_statement(rng)
    if chance(rng, 0.5):
        return Clause(f"因为{one.zh}，所以{other.zh}", f"because {one.en}, {other.en}")
    return Clause(f"{one.zh}，但是{other.zh}", f"{one.en}, but {other.en}")


def condition(rng: Random) -> Clause:
    """如果明天下雨，我们就在家看电视: if it rains tomorrow, we will watch TV at home."""
    fall, drops = pick(rng, lex.PRECIPITATION)
    zh_time, en_time = pick(rng, lex.FUTURE_TIMES)
    who, act = actor(rng)
    place = pick(rng, lex.SCENES) if act.takes_place and chance(rng, 0.5) else None
    negated = chance(rng, 0.25)
    will = Predicate(
        lex.WILL, words(act.verb.base, act.en_object, place.at if place else ""), auxiliary=True
    )
    told = will.negative(who.agreement) if negated else will.affirmative(who.agreement)
    zh_deed = ("在" + place.zh if place else "") + act.zh + act.zh_object
    zh = f"如果{zh_time}{fall}，{who.zh}就{'不' * negated}{zh_deed}"
    return Clause(zh, f"if it {drops.third} {en_time}, {who.en} {told}")


# Template and how often it is drawn.
TEMPLATES: tuple[tuple[Callable[[Random], Clause], int], ...] = (
    (doing, 300),
    (do_you, 70),
    (who_does, 35),
    (what_do_you, 35),
    (when_or_why, 50),
    (where_do_you, 35),
    (how_do_you_go, 15),
    (skill, 20),
    (invitation, 35),
    (job, 30),
    (name, 10),
    (having, 40),
    (wanting, 25),
    (pointing, 25),
    (greeting, 12),
    (liking, 45),
    (living, 20),
    (quality, 50),
    (comparison, 30),
    (location, 35),
    (existence, 35),
    (weather, 25),
    (price, 20),
    (age, 15),
    (clock, 30),
    (calendar, 8),
    (thought, 35),
    (two_clauses, 25),
    (condition, 15),
)
_DRAWS = tuple(template for template, weight in TEMPLATES for _ in range(weight))


def sample(rng: Random) -> tuple[str, str]:
    """One sentence pair: (Chinese without final punctuation, English)."""
    clause = pick(rng, _DRAWS)(rng)
    return clause.zh, capitalise(clause.en) + ("?" if clause.question else "")


# Sentences that nobody says every day, but that the grammar knows.
DEMO_SENTENCES = (
    "我想吃汉堡",
    "外星人想在月球上跟我奶奶一起喝茶吗",
    "恐龙不喜欢弹钢琴",
    "那三只企鹅正在图书馆看报纸",
    "如果明天下雪，机器人就在厨房跳舞",
    "国王的大象比我的汽车大",
    "冰箱里有二十五只兔子",
    "因为龙很累，所以老虎没去巴黎",
)
