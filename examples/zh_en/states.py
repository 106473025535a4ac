"""Sentences about what people and things are, have, like, and where they are."""

from __future__ import annotations

from random import Random

from . import lexicon as lex
from . import phrases as ph
from .clauses import Clause, asked, told_denied_or_asked
from .english import BE, HAVE, Agreement, Predicate, verb, with_article, words
from .phrases import Person, chance, pick


def job(rng: Random) -> Clause:
    """他是医生, he is a doctor; 他们不是学生, they aren't students;
    他是我的朋友, he is my friend.
    """
    who = ph.person(rng)
    if chance(rng, 0.25) and who.agreement == "3s":
        other = ph.relative(rng)
        if who.zh in other.zh or other.zh in who.zh:
            return job(rng)
        return told_denied_or_asked(
            rng, who, "是" + other.zh, Predicate(BE, other.en, auxiliary=True)
        )
    noun = pick(rng, lex.JOBS)
    if chance(rng, 0.25):
        noun = ph.described(rng, noun)
    many = who.agreement == "pl" and who.zh != "你"
    what = noun.many if many else with_article(noun.en)
    return told_denied_or_asked(rng, who, "是" + noun.zh, Predicate(BE, what, auxiliary=True))


def name(rng: Random) -> Clause:
    """我叫小明, my name is Xiaoming; 他叫什么名字, what is his name?"""
    who, called = ph.person(rng), pick(rng, ph.NAMED)
    if who.zh.endswith("们") or who in ph.NAMED:
        return name(rng)
    if chance(rng, 0.3):
        return asked(f"{who.zh}叫什么名字", "what is", who.possessive, "name")
    return Clause(f"{who.zh}叫{called.zh}", words(who.possessive, "name is", called.en))


def having(rng: Random) -> Clause:
    """我有两只猫, I have two cats; 他没有车, he doesn't have a car;
    你有几本书, how many books do you have?
    """
    who = ph.subject(rng)
    noun = pick(rng, lex.GOODS + lex.ANIMALS + lex.FOODS)
    have = Predicate(HAVE, "", auxiliary=False)
    if chance(rng, 0.15):
        many = ph.portion(noun, 2)
        return asked(
            f"{who.zh}有几{noun.measure}{noun.zh}",
            "how many",
            many,
            have.question(who.en, who.agreement),
        )
    if chance(rng, 0.3):
        noun = ph.described(rng, noun)
    thing = ph.counted(noun, rng.randrange(1, 100)) if chance(rng, 0.5) else ph.bare(noun)
    return told_denied_or_asked(rng, who, "有" + thing.zh, have.then(thing.en), no="没")


def wanting(rng: Random) -> Clause:
    """我要一杯咖啡, I want one cup of coffee; 你需要雨伞吗, do you need an umbrella?"""
    who = ph.subject(rng)
    zh, wish = pick(rng, lex.WISHES)
    thing = ph.something(rng, lex.FOODS + lex.DRINKS + lex.GOODS)
    return told_denied_or_asked(rng, who, zh + thing.zh, Predicate(wish, thing.en, auxiliary=False))


def pointing(rng: Random) -> Clause:
    """这是我的书, this is my book; 那些是猫吗, are those cats?
    这是谁的汉堡, whose hamburger is this?
    """
    zh, en, agreement = pick(rng, lex.POINTERS)
    be = Predicate(BE, "", auxiliary=True)
    form = rng.random()
    if form < 0.05:
        return asked(zh + "是什么", "what", be.question(en, agreement))
    noun = pick(rng, lex.FOODS + lex.DRINKS + lex.GOODS + lex.ANIMALS)
    one = noun.en if agreement == "3s" or noun.bare == "mass" else noun.many
    if form < 0.2:
        return asked(zh + "是谁的" + noun.zh, "whose", one, be.question(en, agreement))
    if chance(rng, 0.6):
        owner = ph.person(rng)
        what = (owner.zh + "的" + noun.zh, words(owner.possessive, one))
    else:
        noun = ph.described(rng, noun) if chance(rng, 0.4) else noun
        what = (noun.zh, ph.bare(noun).en if agreement == "3s" else noun.many)
    return told_denied_or_asked(
        rng, Person(zh, en, en, "", agreement), "是" + what[0], be.then(what[1]), no="不"
    )


def liking(rng: Random) -> Clause:
    """我喜欢猫, I like cats; 他爱他的妻子, he loves his wife;
    你认识小明吗, do you know Xiaoming?
    """
    who = ph.subject(rng)
    if chance(rng, 0.5):
        noun = pick(rng, lex.FOODS + lex.DRINKS + lex.ANIMALS + lex.GOODS)
        thing = ph.kind(ph.described(rng, noun) if chance(rng, 0.4) else noun)
        if chance(rng, 0.25):
            thing = ph.definite(rng, noun)
        return told_denied_or_asked(
            rng, who, "喜欢" + thing.zh, Predicate(verb("like"), thing.en, auxiliary=False)
        )
    whom = ph.person(rng)
    if whom.zh == who.zh or who.zh.startswith(whom.zh):
        return liking(rng)
    zh, feeling = pick(rng, lex.FEELINGS)
    return told_denied_or_asked(
        rng, who, zh + whom.zh, Predicate(feeling, whom.object, auxiliary=False)
    )


def living(rng: Random) -> Clause:
    """他住在北京, he lives in Beijing; 他从中国来, he comes from China;
    你住在哪儿, where do you live?
    """
    who, city = ph.subject(rng), pick(rng, lex.CITIES)
    live = Predicate(verb("live"), "", auxiliary=False)
    if chance(rng, 0.2):
        return asked(
            f"{who.zh}住在{pick(rng, ('哪儿', '哪里'))}",
            "where",
            live.question(who.en, who.agreement),
        )
    if chance(rng, 0.4):
        come = Predicate(
            verb("come", "came", "come"), "from " + city.to.removeprefix("to "), auxiliary=False
        )
        return Clause(f"{who.zh}从{city.zh}来", words(who.en, come.affirmative(who.agreement)))
    return told_denied_or_asked(rng, who, "住在" + city.zh, live.then(city.at))


def _described_thing(rng: Random) -> tuple[str, str, Agreement, tuple[lex.Quality, ...]]:
    """Something or somebody with the qualities that fit."""
    form = rng.random()
    if form < 0.45:
        who = ph.subject(rng)
        animal = any(noun.zh in who.zh for noun in lex.ANIMALS)
        return (
            who.zh,
            who.en,
            who.agreement,
            lex.ANIMAL_QUALITIES if animal else lex.PERSON_QUALITIES,
        )
    noun = pick(rng, lex.FOODS + lex.DRINKS + lex.GOODS + lex.SHOWS)
    general = form > 0.9 and noun not in lex.SHOWS
    thing = ph.kind(noun) if general else ph.definite(rng, noun)
    agreement: Agreement = "pl" if general and noun.bare == "article" else thing.agreement
    return thing.zh, thing.en, agreement, ph.qualities_of(noun)


def quality(rng: Random) -> Clause:
    """这个汉堡很好吃, this hamburger is very tasty; 他不高, he isn't tall; 他高吗, is he tall?"""
    zh, en, agreement, qualities = _described_thing(rng)
    trait = pick(rng, qualities)
    form = rng.random()
    if form < 0.5:
        degree, english = pick(rng, lex.DEGREES)
        return Clause(
            zh + degree + trait.zh, words(en, BE.finite(agreement, "present"), english, trait.en)
        )
    if form < 0.6:
        return Clause(
            f"{zh}太{trait.zh}了", words(en, BE.finite(agreement, "present"), "too", trait.en)
        )
    who = Person(zh, en, en, "", agreement)
    if form < 0.8:
        isnt = Predicate(BE, trait.en, auxiliary=True).negative(agreement)
        return Clause(f"{zh}不{trait.zh}", words(en, isnt))
    return asked(
        f"{zh}{trait.zh}吗", Predicate(BE, trait.en, auxiliary=True).question(who.en, agreement)
    )


def comparison(rng: Random) -> Clause:
    """他比我高, he is taller than me;
    这本书比那本书贵, this book is more expensive than that book.
    """
    if chance(rng, 0.6):
        first, second = ph.person(rng), ph.person(rng)
        if first.zh in second.zh or second.zh in first.zh:
            return comparison(rng)
        left, right = (first.zh, first.en, first.agreement), (second.zh, second.object)
        trait = pick(rng, lex.PERSON_QUALITIES)
    else:
        noun = pick(rng, lex.FOODS + lex.GOODS)
        one, other = ph.definite(rng, noun), ph.definite(rng, noun)
        if one.zh in other.zh or other.zh in one.zh:
            return comparison(rng)
        left, right = (one.zh, one.en, one.agreement), (other.zh, other.en)
        trait = pick(rng, ph.qualities_of(noun))
    be = Predicate(BE, words(trait.more, "than", right[1]), auxiliary=True)
    who = Person(left[0], left[1], left[1], "", left[2])
    zh = f"比{right[0]}{trait.zh}"
    if chance(rng, 0.25):
        return asked(who.zh + zh + "吗", be.question(who.en, who.agreement))
    return Clause(who.zh + zh, words(who.en, be.affirmative(who.agreement)))


def location(rng: Random) -> Clause:
    """我的书在桌子上, my book is on the table; 你的钥匙在哪儿, where is your key?"""
    if chance(rng, 0.5):
        thing = ph.definite(rng, pick(rng, lex.GOODS + lex.ANIMALS))
        spot = pick(rng, lex.SPOTS)
        who = Person(thing.zh, thing.en, thing.en, "", thing.agreement)
    else:
        who = ph.subject(rng)
        scene = pick(rng, lex.SCENES)
        spot = (scene.zh, scene.at)
    be = Predicate(BE, "", auxiliary=True)
    if chance(rng, 0.25):
        return asked(
            f"{who.zh}在{pick(rng, ('哪儿', '哪里'))}", "where", be.question(who.en, who.agreement)
        )
    return told_denied_or_asked(rng, who, "在" + spot[0], be.then(spot[1]))


def existence(rng: Random) -> Clause:
    """桌子上有三本书, there are three books on the table;
    冰箱里没有牛奶, there isn't milk in the refrigerator.
    """
    zh, en = pick(rng, lex.SPOTS)
    noun = pick(rng, lex.GOODS + lex.FOODS + lex.DRINKS + lex.ANIMALS)
    if chance(rng, 0.25):
        return asked(
            f"{zh}有几{noun.measure}{noun.zh}", "how many", ph.portion(noun, 2), "are there", en
        )
    if chance(rng, 0.3):
        noun = ph.described(rng, noun)
    thing = ph.counted(noun, rng.randrange(1, 30)) if chance(rng, 0.65) else ph.bare(noun)
    be = Predicate(BE, words(thing.en, en), auxiliary=True)
    form = rng.random()
    if form < 0.6:
        return Clause(f"{zh}有{thing.zh}", words("there", be.affirmative(thing.agreement)))
    if form < 0.8:
        return Clause(f"{zh}没有{thing.zh}", words("there", be.negative(thing.agreement)))
    return asked(f"{zh}有{thing.zh}吗", be.question("there", thing.agreement))
