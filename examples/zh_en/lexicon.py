"""The words of the demo grammar: tables only, no rules.

Each table pairs Chinese with English. The grammar promises that a Chinese sentence has exactly one
translation, so a Chinese word may appear with two English words only where its neighbours decide
(看书 read, 看电影 watch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .english import BE, DO, Predicate, Verb, modal, plural, verb

# --- nouns ----------


@dataclass(frozen=True)
class Noun:
    """A thing: `bare` says how it stands alone as an object: a hamburger | rice | noodles."""

    zh: str
    en: str
    measure: str  # the Chinese measure word: 一个汉堡, 一杯茶
    bare: Literal["article", "mass", "plural"] = "article"
    plural: str = ""

    @property
    def many(self) -> str:
        """The form after `two` (or `two cups of`) and for the whole kind."""
        return self.plural or (self.en if self.bare != "article" else plural(self.en))


def _nouns(table: str, bare: Literal["article", "mass", "plural"] = "article") -> tuple[Noun, ...]:
    """Rows of `zh measure english words[/irregular plural]`, one per line."""
    nouns = []
    for row in table.strip().splitlines():
        zh, measure, english = row.split(maxsplit=2)
        one, _, many = english.partition("/")
        nouns.append(Noun(zh, one, measure, bare, many))
    return tuple(nouns)


def _pick(nouns: tuple[Noun, ...], names: str) -> tuple[Noun, ...]:
    """The nouns with these Chinese names."""
    by_name = {noun.zh: noun for noun in nouns}
    return tuple(by_name[name] for name in names.split())


# Measure words that count portions; every other measure word leaves no trace in English.
PORTIONS = {
    "杯": ("cup of", "cups of"),
    "碗": ("bowl of", "bowls of"),
    "瓶": ("bottle of", "bottles of"),
    "块": ("piece of", "pieces of"),
    "双": ("pair of", "pairs of"),
    "副": ("pair of", "pairs of"),
}

FOODS = (
    *_nouns("""
汉堡 个 hamburger
苹果 个 apple
香蕉 个 banana
橙子 个 orange
西瓜 个 watermelon
鸡蛋 个 egg
三明治 个 sandwich
披萨 个 pizza
蛋糕 个 cake
土豆 个 potato/potatoes
西红柿 个 tomato/tomatoes
饼干 个 cookie
"""),
    *_nouns(
        """
米饭 碗 rice
面包 块 bread
牛肉 块 beef
鸡肉 块 chicken
豆腐 块 tofu
巧克力 块 chocolate
奶酪 块 cheese
鱼 条 fish
""",
        "mass",
    ),
    *_nouns(
        """
面条 碗 noodles
饺子 碗 dumplings
""",
        "plural",
    ),
)
DRINKS = (
    *_nouns(
        """
水 杯 water
茶 杯 tea
咖啡 杯 coffee
牛奶 杯 milk
果汁 瓶 juice
可乐 瓶 cola
啤酒 瓶 beer
汤 碗 soup
""",
        "mass",
    ),
)
READINGS = _nouns("""
书 本 book
小说 本 novel
杂志 本 magazine
报纸 份 newspaper
信 封 letter
文章 篇 article
""")
SHOWS = _nouns("""
电影 部 movie
比赛 场 match
节目 个 program
""")
CLOTHES = (
    *_nouns("""
衬衫 件 shirt
毛衣 件 sweater
大衣 件 coat
裙子 条 skirt
帽子 顶 hat
"""),
    *_nouns(
        """
鞋 双 shoes
手套 双 gloves
眼镜 副 glasses
""",
        "plural",
    ),
)
VEHICLES = _nouns("""
汽车 辆 car
自行车 辆 bicycle
摩托车 辆 motorcycle
""")
GOODS = (
    *_nouns("""
手机 部 phone
电脑 台 computer
照相机 台 camera
雨伞 把 umbrella
钥匙 把 key
椅子 把 chair
吉他 把 guitar
桌子 张 table
票 张 ticket
地图 张 map
礼物 件 gift
花 朵 flower
包 个 bag
杯子 个 cup
玩具 个 toy
手表 只 watch
铅笔 支 pencil
词典 本 dictionary
"""),
    *_pick(READINGS, "书 小说 杂志 报纸"),
    *CLOTHES,
    *VEHICLES,
)
ANIMALS = _nouns("""
猫 只 cat
狗 只 dog
鸟 只 bird
老虎 只 tiger
熊猫 只 panda
兔子 只 rabbit
猴子 只 monkey
企鹅 只 penguin
恐龙 只 dinosaur
大象 头 elephant
狮子 头 lion
牛 头 cow
马 匹 horse
龙 条 dragon
""")
JOBS = _nouns("""
医生 个 doctor
老师 个 teacher
学生 个 student
律师 个 lawyer
司机 个 driver
警察 个 police officer
护士 个 nurse
工程师 个 engineer
厨师 个 chef
歌手 个 singer
作家 个 writer
科学家 个 scientist
演员 个 actor
经理 个 manager
农民 个 farmer
画家 个 painter
国王 个 king
机器人 个 robot
外星人 个 alien
孩子 个 child/children
客人 个 guest
""")

# --- people ----------

# Chinese, subject, object, possessive, agreement
PRONOUNS = (
    ("我", "I", "me", "my", "1s"),
    ("你", "you", "you", "your", "pl"),
    ("他", "he", "him", "his", "3s"),
    ("她", "she", "her", "her", "3s"),
    ("我们", "we", "us", "our", "pl"),
    ("你们", "you", "you", "your", "pl"),
    ("他们", "they", "them", "their", "pl"),
)
# 我妈妈 or 我的妈妈
KIN = (
    ("妈妈", "mother"),
    ("爸爸", "father"),
    ("哥哥", "older brother"),
    ("弟弟", "younger brother"),
    ("姐姐", "older sister"),
    ("妹妹", "younger sister"),
    ("爷爷", "grandfather"),
    ("奶奶", "grandmother"),
    ("儿子", "son"),
    ("女儿", "daughter"),
    ("叔叔", "uncle"),
    ("阿姨", "aunt"),
)
# 我的朋友
RELATIONS = (
    ("朋友", "friend"),
    ("同学", "classmate"),
    ("邻居", "neighbor"),
    ("老板", "boss"),
    ("丈夫", "husband"),
    ("妻子", "wife"),
)
NAMES = (
    ("小明", "Xiaoming"),
    ("小红", "Xiaohong"),
    ("安娜", "Anna"),
    ("汤姆", "Tom"),
    ("玛丽", "Mary"),
    ("大卫", "David"),
    ("王先生", "Mr. Wang"),
    ("李女士", "Ms. Li"),
    ("张医生", "Dr. Zhang"),
)

# --- actions ----------


@dataclass(frozen=True)
class Activity:
    """A verb with the things it is done to."""

    zh: str
    verb: Verb
    nouns: tuple[Noun, ...]
    preposition: str = ""
    asks_what: bool = True  # False where 什么 would leave the English verb open


EAT, DRINK, BUY = (
    verb("eat", "ate", "eaten"),
    verb("drink", "drank", "drunk"),
    verb("buy", "bought"),
)
READ, WRITE = verb("read", "read"), verb("write", "wrote", "written")
MAKE, TAKE = verb("make", "made"), verb("take", "took", "taken")
GO = verb("go", "went", "gone", experience="been")
PLAY, WATCH, LOOK, WAIT = verb("play"), verb("watch"), verb("look"), verb("wait")
SPEAK, SING, DRIVE = (
    verb("speak", "spoke", "spoken"),
    verb("sing", "sang", "sung"),
    verb("drive", "drove", "driven"),
)
RIDE, WEAR = verb("ride", "rode", "ridden"), verb("wear", "wore", "worn")

ACTIVITIES = (
    Activity("吃", EAT, FOODS),
    Activity("喝", DRINK, DRINKS),
    Activity("买", BUY, FOODS + DRINKS + GOODS),
    Activity("卖", verb("sell", "sold"), FOODS + DRINKS + GOODS),
    Activity("看", READ, READINGS, asks_what=False),
    Activity("看", WATCH, SHOWS),
    Activity("写", WRITE, _pick(READINGS, "书 小说 信 文章")),
    Activity("找", LOOK, GOODS + ANIMALS, "for"),
    Activity("用", verb("use"), _pick(GOODS, "手机 电脑 照相机 雨伞 钥匙 词典 地图 杯子 铅笔")),
    Activity(
        "做",
        verb("cook"),
        _pick(FOODS + DRINKS, "米饭 牛肉 鸡肉 豆腐 鱼 面条 饺子 汤"),
        asks_what=False,
    ),
    Activity(
        "洗",
        verb("wash"),
        _pick(
            CLOTHES + VEHICLES + FOODS + GOODS,
            "衬衫 毛衣 大衣 裙子 汽车 自行车 苹果 土豆 西红柿 杯子",
        ),
    ),
    Activity("穿", WEAR, _pick(CLOTHES, "衬衫 毛衣 大衣 裙子 鞋")),
    Activity(
        "画",
        verb("draw", "drew", "drawn"),
        ANIMALS + _pick(GOODS, "吉他 桌子 椅子 花 杯子 汽车 地图"),
    ),
    Activity("修", verb("repair"), VEHICLES + _pick(GOODS, "手机 电脑 照相机 手表 椅子 桌子 吉他")),
    Activity("借", verb("borrow"), GOODS),
)
# Objects that allow no counting or describing: Chinese verb, object, English verb, what follows
SET_PHRASES = (
    ("看", "电视", WATCH, "TV"),
    ("听", "音乐", verb("listen"), "to music"),
    ("听", "广播", verb("listen"), "to the radio"),
    ("做", "作业", DO, "homework"),
    ("做", "饭", verb("cook"), ""),
    ("做", "蛋糕", MAKE, "a cake"),
    ("打", "篮球", PLAY, "basketball"),
    ("打", "网球", PLAY, "tennis"),
    ("踢", "足球", PLAY, "soccer"),
    ("下", "棋", PLAY, "chess"),
    ("弹", "钢琴", PLAY, "the piano"),
    ("弹", "吉他", PLAY, "the guitar"),
    ("玩", "游戏", PLAY, "games"),
    ("唱", "歌", SING, ""),
    ("开", "车", DRIVE, ""),
    ("骑", "马", RIDE, "a horse"),
    ("骑", "自行车", RIDE, "a bicycle"),
    ("学", "汉语", verb("study"), "Chinese"),
    ("学", "英语", verb("study"), "English"),
    ("学", "数学", verb("study"), "math"),
    ("学", "历史", verb("study"), "history"),
    ("说", "汉语", SPEAK, "Chinese"),
    ("说", "英语", SPEAK, "English"),
    ("说", "法语", SPEAK, "French"),
    ("拍", "照片", TAKE, "photos"),
    ("喂", "猫", verb("feed", "fed"), "the cat"),
    ("打扫", "房间", verb("clean"), "the room"),
    ("洗", "衣服", verb("wash"), "clothes"),
    ("洗", "碗", verb("wash"), "the dishes"),
    ("吃", "早饭", EAT, "breakfast"),
    ("吃", "午饭", EAT, "lunch"),
    ("吃", "晚饭", EAT, "dinner"),
)
# What one has learned to do; 会 without a day means "can" here
_SKILLS = """
打篮球 打网球 踢足球 下棋 弹钢琴 弹吉他 唱歌 开车 骑马 骑自行车 说汉语 说英语 说法语 做饭 跳舞 游泳
画画
"""
SKILLS = frozenset(_SKILLS.split())
# Verbs without an object
INTRANSITIVES = (
    ("睡觉", verb("sleep", "slept"), ""),
    ("休息", verb("rest"), ""),
    ("工作", verb("work"), ""),
    ("学习", verb("study"), ""),
    ("跳舞", verb("dance"), ""),
    ("游泳", verb("swim", "swam", "swum", gerund="swimming"), ""),
    ("跑步", verb("run", "ran", "run", gerund="running"), ""),
    ("散步", TAKE, "a walk"),
    ("上网", verb("surf"), "the Internet"),
    ("聊天", verb("chat", "chatted", gerund="chatting"), ""),
    ("画画", verb("paint"), ""),
)
# Verbs whose object is a person
PERSON_VERBS = (
    ("等", WAIT, "for"),
    ("帮助", verb("help"), ""),
    ("找", LOOK, "for"),
    ("看", verb("visit"), ""),
    ("问", verb("ask"), ""),
    ("教", verb("teach", "taught"), ""),
    ("画", verb("draw", "drew", "drawn"), ""),
    ("感谢", verb("thank"), ""),
)
# Chinese, verb, preposition before the receiver: 给妈妈一本书 give my mother a book
GIVING = (
    ("给", verb("give", "gave", "given", gerund="giving")),
    ("送给", verb("send", "sent")),
    ("借给", verb("lend", "lent")),
)

CAN, WILL = modal("can"), modal("will")
# Modal words: Chinese, the finite English verb and what leads on to the base form of the action
MODALS = (
    ("想", Predicate(verb("want"), "to", auxiliary=False)),
    ("喜欢", Predicate(verb("like"), "to", auxiliary=False)),
    ("打算", Predicate(verb("plan", "planned"), "to", auxiliary=False)),
    ("需要", Predicate(verb("need"), "to", auxiliary=False)),
    ("希望", Predicate(verb("hope"), "to", auxiliary=False)),
    ("要", Predicate(BE, "going to", auxiliary=True)),
    ("愿意", Predicate(BE, "willing to", auxiliary=True)),
    ("能", Predicate(CAN, "", auxiliary=True)),
    ("会", Predicate(WILL, "", auxiliary=True)),
    ("可以", Predicate(modal("may"), "", auxiliary=True)),
    ("应该", Predicate(modal("should"), "", auxiliary=True)),
    ("必须", Predicate(modal("must"), "", auxiliary=True)),
)
TIMELESS_MODALS = frozenset({"喜欢"})  # 喜欢 speaks of no particular day
WITHOUT_NEGATION = frozenset({"必须"})  # 不必须 is not said

HABIT_ADVERBS = (
    ("常常", "often"),
    ("总是", "always"),
    ("有时候", "sometimes"),
    ("也", "also"),
    ("只", "only"),
)

# --- times, places, ways ----------

DAYS = tuple(
    zip(
        "一二三四五六日",
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        strict=True,
    )
)
HABIT_TIMES = (
    ("每天", "every day"),
    ("每天早上", "every morning"),
    ("每天晚上", "every evening"),
    ("每个星期", "every week"),
    ("周末", "on weekends"),
    ("夏天", "in summer"),
    ("冬天", "in winter"),
    *((f"每个星期{zh}", f"every {en}") for zh, en in DAYS),
)
PAST_TIMES = (
    ("昨天", "yesterday"),
    ("昨天早上", "yesterday morning"),
    ("昨天下午", "yesterday afternoon"),
    ("昨天晚上", "last night"),
    ("前天", "the day before yesterday"),
    ("上个星期", "last week"),
    ("上个月", "last month"),
    ("去年", "last year"),
    ("今天早上", "this morning"),
    *((f"上个星期{zh}", f"last {en}") for zh, en in DAYS),
)
FUTURE_TIMES = (
    ("明天", "tomorrow"),
    ("明天早上", "tomorrow morning"),
    ("明天下午", "tomorrow afternoon"),
    ("明天晚上", "tomorrow evening"),
    ("后天", "the day after tomorrow"),
    ("今天", "today"),
    ("今天晚上", "tonight"),
    ("下个星期", "next week"),
    ("下个月", "next month"),
    ("明年", "next year"),
    *((f"下个星期{zh}", f"next {en}") for zh, en in DAYS),
)
# with the first and the last hour that they hold
DAY_PARTS = (
    ("早上", "in the morning", 5, 11),
    ("下午", "in the afternoon", 1, 6),
    ("晚上", "in the evening", 6, 11),
)


@dataclass(frozen=True)
class Place:
    zh: str
    at: str  # where something happens
    to: str  # where somebody goes


def _places(preposition: str, *pairs: str) -> tuple[Place, ...]:
    split = (pair.split(maxsplit=1) for pair in pairs)
    return tuple(Place(zh, f"{preposition} {en}", f"to {en}") for zh, en in split)


CITIES = _places(
    "in",
    "北京 Beijing",
    "上海 Shanghai",
    "广州 Guangzhou",
    "纽约 New York",
    "伦敦 London",
    "巴黎 Paris",
    "东京 Tokyo",
    "中国 China",
    "美国 America",
    "英国 England",
    "法国 France",
    "日本 Japan",
    "德国 Germany",
    "意大利 Italy",
    "加拿大 Canada",
)
TOWN = (
    *_places(
        "at",
        "学校 school",
        "图书馆 the library",
        "医院 the hospital",
        "饭馆 the restaurant",
        "超市 the supermarket",
        "公司 the company",
        "机场 the airport",
        "火车站 the train station",
        "银行 the bank",
        "电影院 the cinema",
        "商店 the store",
        "咖啡馆 the coffee shop",
        "博物馆 the museum",
        "动物园 the zoo",
        "酒店 the hotel",
        "海边 the seaside",
    ),
    *_places("in", "公园 the park", "教室 the classroom", "办公室 the office", "厨房 the kitchen"),
)
HOME = Place("家", "at home", "home")
MOON = Place("月球上", "on the moon", "to the moon")
DESTINATIONS = CITIES + TOWN
SCENES = CITIES + TOWN + (HOME, HOME, HOME, MOON)
SPOTS = (
    ("桌子上", "on the table"),
    ("桌子下面", "under the table"),
    ("椅子上", "on the chair"),
    ("床上", "on the bed"),
    ("床下面", "under the bed"),
    ("包里", "in the bag"),
    ("房间里", "in the room"),
    ("冰箱里", "in the refrigerator"),
    ("盒子里", "in the box"),
    ("花园里", "in the garden"),
    ("门后面", "behind the door"),
    ("窗户旁边", "next to the window"),
)
WAYS = (
    ("坐火车", "by train"),
    ("坐飞机", "by plane"),
    ("坐公共汽车", "by bus"),
    ("坐地铁", "by subway"),
    ("坐船", "by boat"),
    ("坐出租车", "by taxi"),
    ("开车", "by car"),
    ("骑自行车", "by bicycle"),
    ("走路", "on foot"),
)

# --- qualities ----------


@dataclass(frozen=True)
class Quality:
    zh: str
    en: str
    more: str  # the comparative


def _qualities(*rows: str) -> tuple[Quality, ...]:
    """Rows of `zh english [comparative]`; without a comparative it is `more english`."""
    qualities = []
    for row in rows:
        zh, en, *more = row.split()
        qualities.append(Quality(zh, en, more[0] if more else f"more {en}"))
    return tuple(qualities)


PERSON_QUALITIES = _qualities(
    "高 tall taller",
    "忙 busy busier",
    "累 tired",
    "高兴 happy happier",
    "聪明 smart smarter",
    "年轻 young younger",
    "漂亮 beautiful",
    "有名 famous",
    "努力 hardworking",
    "热情 friendly friendlier",
    "紧张 nervous",
    "健康 healthy healthier",
    "饿 hungry hungrier",
    "渴 thirsty thirstier",
)
ANIMAL_QUALITIES = _qualities(
    "大 big bigger",
    "小 small smaller",
    "可爱 cute cuter",
    "聪明 smart smarter",
    "漂亮 beautiful",
    "胖 fat fatter",
)
FOOD_QUALITIES = _qualities(
    "好吃 tasty tastier", "贵 expensive", "便宜 cheap cheaper", "新鲜 fresh fresher"
)
DRINK_QUALITIES = _qualities(
    "好喝 delicious", "贵 expensive", "便宜 cheap cheaper", "热 hot hotter"
)
THING_QUALITIES = _qualities(
    "大 big bigger",
    "小 small smaller",
    "新 new newer",
    "旧 old older",
    "贵 expensive",
    "便宜 cheap cheaper",
    "漂亮 beautiful",
    "有用 useful",
)
READING_QUALITIES = _qualities(
    "有意思 interesting", "无聊 boring", "重要 important", "新 new newer", "旧 old older"
)
WEATHER_QUALITIES = _qualities(
    "冷 cold colder", "热 hot hotter", "暖和 warm warmer", "凉快 cool cooler"
)
# Stands before a noun: 红色的苹果
COLOURS = _qualities(
    "红色 red redder",
    "黑色 black blacker",
    "白色 white whiter",
    "绿色 green greener",
    "蓝色 blue bluer",
)

DEGREES = (("很", "very"), ("非常", "extremely"), ("有点儿", "a little"))

# These alone stand before a noun without 的: 新书, but 贵的书
BARE_BEFORE_NOUN = frozenset("大小新旧热")

# --- feelings and thoughts ----------

FEELINGS = (("喜欢", verb("like")), ("爱", verb("love")), ("认识", verb("know", "knew", "known")))
WISHES = (("想要", verb("want")), ("要", verb("want")), ("需要", verb("need")))
THOUGHTS = (
    ("知道", verb("know", "knew", "known")),
    ("觉得", verb("think", "thought")),
    ("说", verb("say", "said")),
    ("希望", verb("hope")),
)

GREETINGS = (
    ("你好", "hello"),
    ("早上好", "good morning"),
    ("晚上好", "good evening"),
    ("再见", "goodbye"),
    ("谢谢", "thank you"),
    ("对不起", "I am sorry"),
    ("生日快乐", "happy birthday"),
)
POINTERS: tuple[tuple[str, str, Literal["3s", "pl"]], ...] = (
    ("这", "this", "3s"),
    ("那", "that", "3s"),
    ("这些", "these", "pl"),
    ("那些", "those", "pl"),
)

# --- weather, numbers ----------

PRECIPITATION = (("下雨", verb("rain")), ("下雪", verb("snow")))
DIGITS = "零一二三四五六七八九"
_SMALL_NUMBERS = """
zero one two three four five six seven eight nine
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
SMALL_NUMBERS = tuple(_SMALL_NUMBERS.split())
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = tuple(_TENS.split())
