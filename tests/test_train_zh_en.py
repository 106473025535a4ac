"""The demo's grammar, its split and tokenisers, and the training script in its short form."""

import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
safetensors_torch = pytest.importorskip("safetensors.torch")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_zh_en  # noqa: E402
from zh_en import data, english, grammar, lexicon, phrases  # noqa: E402
from zh_en.model import Config, Transformer, greedy, pad, sinusoidal_positions  # noqa: E402


@pytest.fixture(scope="module")
def training():
    return data.training_pairs(60_000)


@pytest.fixture(scope="module")
def held_out():
    return data.held_out_pairs()


# ---------- the grammar ----------


def test_no_sentence_has_two_translations():
    # Every template by itself as well, so that rare ones are drawn often enough to collide.
    rng = Random("two translations")
    targets = defaultdict(set)
    for template, _ in grammar.TEMPLATES:
        for _ in range(2000):
            clause = template(rng)
            targets[clause.zh].add((english.capitalise(clause.en), clause.question))
    for _ in range(60_000):
        source, target = grammar.sample(rng)
        targets[source].add((target.removesuffix("?"), target.endswith("?")))
    assert {zh: en for zh, en in targets.items() if len(en) > 1} == {}


def test_an_ambiguous_grammar_is_refused(monkeypatch):
    answers = iter([("甲", "One"), ("甲", "Two")])
    monkeypatch.setattr(data.grammar, "sample", lambda rng: next(answers))
    monkeypatch.setattr(data, "is_held_out", lambda source: False)
    with pytest.raises(data.AmbiguousSentence, match=r"甲.*One.*Two"):
        data.training_pairs(2)


@pytest.fixture(scope="module")
def said():
    """All that four templates say when they know four pronouns, two meals and one animal."""
    rng = Random("what the grammar says")
    pronouns = [who for who in phrases.PRONOUNS if who.zh in ("我", "你", "他", "她")]
    meals = [
        phrases.Action("吃", "汉堡", lexicon.EAT, "a hamburger"),
        phrases.Action("吃", "苹果", lexicon.EAT, "an apple"),
    ]
    cat = lexicon.ANIMALS[:1]
    result = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phrases, "subject", lambda rng: phrases.pick(rng, pronouns))
        patch.setattr(phrases, "action", lambda rng: phrases.pick(rng, meals))
        for table, nouns in (("ANIMALS", cat), ("GOODS", ()), ("FOODS", ()), ("DRINKS", ())):
            patch.setattr(lexicon, table, nouns)
        for template in (grammar.doing, grammar.do_you, grammar.liking, grammar.having):
            for _ in range(40_000):
                clause = template(rng)
                mark = "?" if clause.question else ""
                result[clause.zh] = english.capitalise(clause.en) + mark
    return result


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("我想吃汉堡", "I want to eat a hamburger"),
        ("他想吃汉堡", "He wants to eat a hamburger"),
        ("你想吃苹果吗", "Do you want to eat an apple?"),
        ("她昨天吃了苹果", "She ate an apple yesterday"),
        ("他没吃苹果", "He didn't eat an apple"),
        ("我正在吃苹果", "I am eating an apple"),
        ("她吃过汉堡吗", "Has she eaten a hamburger?"),
        ("我喜欢猫", "I like cats"),
        ("他有两只猫", "He has two cats"),
    ],
)
def test_the_grammar_says(source, target, said):
    assert said[source] == target


def test_articles_plurals_and_verb_forms():
    assert english.with_article("old book") == "an old book"
    assert english.with_article("used car") == "a used car"
    assert [english.plural(w) for w in ("key", "cherry", "watch", "bus")] == [
        "keys",
        "cherries",
        "watches",
        "buses",
    ]
    watch, study = english.verb("watch"), english.verb("study")
    assert (watch.third, watch.past, watch.gerund) == ("watches", "watched", "watching")
    assert (study.third, study.past, study.gerund) == ("studies", "studied", "studying")
    assert english.BE.finite("1s", "present") == "am"
    assert english.BE.finite("pl", "past") == "were"


@pytest.mark.parametrize(
    ("n", "zh", "en"),
    [
        (1, "一", "one"),
        (10, "十", "ten"),
        (12, "十二", "twelve"),
        (20, "二十", "twenty"),
        (21, "二十一", "twenty-one"),
        (99, "九十九", "ninety-nine"),
    ],
)
def test_numbers(n, zh, en):
    assert (phrases.chinese_number(n), phrases.english_number(n)) == (zh, en)


# ---------- the split ----------


def test_same_seed_same_data(training):
    again = data.training_pairs(60_000)
    assert data.fingerprint(again) == data.fingerprint(training)
    assert data.fingerprint(data.training_pairs(1000, seed=1)) != data.fingerprint(training[:1000])


def test_held_out_sentences_are_never_trained_on(training, held_out):
    assert len(held_out) == len(dict(held_out)) == 5000
    assert not {zh for zh, _ in training} & {zh for zh, _ in held_out}
    # not only for these samples: the two sides can never meet, whatever the seed and size
    assert all(data.is_held_out(zh) for zh, _ in held_out)
    assert not any(data.is_held_out(zh) for zh, _ in training)


def test_held_out_set_is_varied(held_out):
    """Thousands of sentences of one shape would prove little."""
    words = {word for _, en in held_out for word in en.rstrip("?").split()}
    assert len(words) > 700
    assert sum(en.endswith("?") for _, en in held_out) > 1000
    assert len({len(zh) for zh, _ in held_out}) > 20


def test_every_held_out_character_and_word_is_trained_on(held_out):
    training = data.training_pairs(train_zh_en.Plan().training_pairs // 2)
    source = data.source_tokenizer(zh for zh, _ in training)
    target = data.target_tokenizer(en for _, en in training)
    for zh, en in held_out:
        assert data.UNKNOWN not in source.encode(zh).ids, zh
        assert data.UNKNOWN not in target.encode(en).ids, en


# ---------- the tokenisers ----------


def test_source_tokenizer_is_one_token_per_character(training):
    tokenizer = data.source_tokenizer(zh for zh, _ in training)
    assert [tokenizer.token_to_id(token) for token in data.SPECIAL_TOKENS] == [0, 1, 2, 3]
    encoding = tokenizer.encode("我想吃汉堡")
    assert encoding.tokens == ["我", "想", "吃", "汉", "堡", "</s>"]
    for same in ("我想吃汉堡。", " 我 想 吃 汉 堡！\n", "我想吃汉堡？", "我想吃汉堡."):
        assert tokenizer.encode(same).ids == encoding.ids
    comma, full_width = tokenizer.encode("谢谢,安娜"), tokenizer.encode("谢谢，安娜")
    assert comma.ids == full_width.ids
    assert data.UNKNOWN not in comma.ids


def test_special_tokens_in_a_sentence_are_only_characters(training):
    tokenizer = data.source_tokenizer(zh for zh, _ in training)
    assert tokenizer.encode("我</s>").ids == [tokenizer.token_to_id("我"), *[data.UNKNOWN] * 4, 2]


def test_target_tokenizer_gives_back_every_sentence(held_out):
    tokenizer = data.target_tokenizer(en for _, en in held_out)
    assert [tokenizer.token_to_id(token) for token in data.SPECIAL_TOKENS] == [0, 1, 2, 3]
    encodings = tokenizer.encode_batch([en for _, en in held_out])
    assert all(e.ids[0] == data.START and e.ids[-1] == data.END for e in encodings)
    assert tokenizer.decode_batch([e.ids for e in encodings]) == [en for _, en in held_out]


# ---------- the model ----------


def test_sinusoidal_positions_follow_the_paper():
    table = sinusoidal_positions(50, 16)
    for position, i in ((0, 0), (1, 0), (7, 3), (49, 7)):
        angle = torch.tensor(position / 10000 ** (2 * i / 16), dtype=torch.float64)
        assert table[position, 2 * i] == pytest.approx(torch.sin(angle).item(), abs=1e-6)
        assert table[position, 2 * i + 1] == pytest.approx(torch.cos(angle).item(), abs=1e-6)


def test_padding_changes_nothing():
    """Trained in padded batches, used without padding: a sentence must not see its neighbours."""
    torch.manual_seed(0)
    model = Transformer(Config(20, 20, d_model=16, num_heads=2, d_ff=32)).eval()
    short, long = [5, 6, 2], [7, 8, 9, 10, 11, 2]
    target = torch.tensor([[1, 4], [1, 4]])
    with torch.no_grad():
        together = model(pad([short, long]), target)
        alone = model(torch.tensor([short]), target[:1])
    torch.testing.assert_close(together[0], alone[0], rtol=1e-5, atol=1e-5)


# ---------- the script ----------


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("zh_en")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers: a second thread costs more than it gives
    losses, score = train_zh_en.run(train_zh_en.SHORT, out)
    torch.set_num_threads(threads)
    return out, losses, score


def test_short_training_learns(short_run):
    _, losses, score = short_run
    assert len(losses) == train_zh_en.SHORT.steps
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert score.total == train_zh_en.SHORT.held_out_pairs


def test_short_training_writes_a_whole_checkpoint(short_run):
    from tokenizers import Tokenizer

    out, _, score = short_run
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "source_tokenizer.json",
        "target_tokenizer.json",
    }
    fields = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert fields["model_type"] == "fastmha-transformer"
    assert fields["seed"] == 0
    model = Transformer(Config.from_json(fields))
    state = safetensors_torch.load_file(out / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    model.load_state_dict(state, strict=True)

    # What was written translates as what was evaluated.
    source = Tokenizer.from_file(str(out / "source_tokenizer.json"))
    target = Tokenizer.from_file(str(out / "target_tokenizer.json"))
    assert (source.get_vocab_size(), target.get_vocab_size()) == (
        fields["src_vocab_size"],
        fields["tgt_vocab_size"],
    )
    held_out = data.held_out_pairs(train_zh_en.SHORT.held_out_pairs)
    assert fields["held_out_sha256"] == data.fingerprint(held_out)
    again = train_zh_en.evaluate(model, held_out, source, target)
    # A gap between two logits: torch's products round with where the weights lie in memory.
    assert again.margin == pytest.approx(score.margin, abs=1e-4)
    assert replace(again, margin=score.margin) == score


def test_batches_hold_every_example_once_per_epoch():
    rng = Random(0)
    examples = [([4] * rng.randrange(1, 9), [5] * rng.randrange(2, 9)) for _ in range(500)]
    stream = train_zh_en.batches(examples, 100, Random(0))
    seen = 0
    while seen < 490:  # what is left over at the end of an epoch is less than one batch
        batch = next(stream)
        lengths = [len(zh) + len(en) for zh, en in batch]
        assert sum(lengths) >= 100
        assert max(lengths) - min(lengths) <= 4
        seen += len(batch)


def test_command_line_help_and_missing_argument(capsys):
    with pytest.raises(SystemExit) as asked:
        train_zh_en.main(["--help"])
    assert asked.value.code == 0
    assert "--short" in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        train_zh_en.main(["--short"])
    assert wrong.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_greedy_stops_at_the_end_token():
    """A model whose output always prefers one token: `</s>` at once, or a word until the limit."""
    model = Transformer(Config(20, 20, d_model=16, num_heads=2, d_ff=32))
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[data.END] = 3.0
        ended = greedy(model, [[5, 2], [6, 7, 2]])
        model.output.bias[9] = 5.0
        endless = greedy(model, [[5, 2], [6, 7, 2]], max_new_tokens=4)
    assert ended.tokens == [[], []]
    assert ended.margins == [3.0, 3.0]
    assert endless.tokens == [[9] * 4] * 2
