"""The Chinese-to-English model that ships inside the package, run by fastmha and by PyTorch."""

import json
import sys
from pathlib import Path

import fastmha as fm
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
safetensors_torch = pytest.importorskip("safetensors.torch")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from zh_en import data, grammar  # noqa: E402
from zh_en.model import Config, Transformer, greedy  # noqa: E402

CHECKPOINT = fm.demo_model_path()
MAX_NEW_TOKENS = 64

# What the demo is for, and sentences that nobody says every day.
EXAMPLES = {
    "我想吃汉堡": "I want to eat a hamburger",
    "你想吃什么": "What do you want to eat?",
    "现在几点": "What time is it now?",
    "外星人想在月球上跟我奶奶一起喝茶吗": (
        "Does the alien want to drink tea with my grandmother on the moon?"
    ),
    "恐龙不喜欢弹钢琴": "The dinosaur doesn't like to play the piano",
    "冰箱里有二十五只兔子": "There are twenty-five rabbits in the refrigerator",
    "国王的大象比我的汽车大": "The king's elephant is bigger than my car",
    "那三只企鹅正在图书馆看报纸": "Those three penguins are reading a newspaper at the library",
    "如果明天下雪，机器人就在厨房跳舞": "If it snows tomorrow, the robot will dance in the kitchen",
}


@pytest.fixture(scope="module")
def fields():
    return json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source():
    return tokenizers.Tokenizer.from_file(str(CHECKPOINT / "source_tokenizer.json"))


@pytest.fixture(scope="module")
def target():
    return tokenizers.Tokenizer.from_file(str(CHECKPOINT / "target_tokenizer.json"))


@pytest.fixture(scope="module")
def held_out():
    return data.held_out_pairs()


@pytest.fixture(scope="module")
def source_ids(source, held_out):
    return [encoding.ids for encoding in source.encode_batch([zh for zh, _ in held_out])]


@pytest.fixture(scope="module")
def torch_model(fields):
    model = Transformer(Config.from_json(fields)).eval()
    state = safetensors_torch.load_file(CHECKPOINT / "model.safetensors")
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture(scope="module")
def by_torch(torch_model, source_ids):
    return greedy(torch_model, source_ids, max_new_tokens=MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def model():
    return fm.load(CHECKPOINT)


# ---------- the checkpoint ----------


def test_the_checkpoint_is_small():
    files = list(CHECKPOINT.iterdir())
    assert {file.name for file in files} == {
        "config.json",
        "model.safetensors",
        "source_tokenizer.json",
        "target_tokenizer.json",
    }
    assert sum(file.stat().st_size for file in files) <= 5_000_000


def test_the_checkpoint_is_float32(torch_model):
    assert all(parameter.dtype == torch.float32 for parameter in torch_model.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in torch_model.parameters())


def test_the_held_out_sentences_are_those_of_the_training_run(fields, held_out):
    """The grammar may not drift away from the weights, and gives the same on every machine."""
    assert len(held_out) == fields["held_out_pairs"] >= 3000
    assert data.fingerprint(held_out) == fields["held_out_sha256"]


def test_the_vocabulary_knows_the_whole_language(source, target, held_out):
    for zh, en in [*held_out, *data.training_pairs(20_000, seed=7)]:
        assert data.UNKNOWN not in source.encode(zh).ids, zh
        assert data.UNKNOWN not in target.encode(en).ids, en


# ---------- PyTorch, the other side of the comparison ----------


def test_torch_translates_the_held_out_sentences(by_torch, target, held_out):
    translations = target.decode_batch(by_torch.tokens)
    exact = sum(got == en for got, (_, en) in zip(translations, held_out, strict=True))
    assert exact >= 0.97 * len(held_out)


def test_no_choice_hangs_on_rounding(by_torch):
    """The best logit leads by far more than float32 rounding (some 1e-5 here), at every token."""
    assert min(by_torch.margins) > 1e-3


# ---------- fastmha ----------


def test_fastmha_translates_the_held_out_sentences(model, held_out):
    translations = model.translate([zh for zh, _ in held_out], max_new_tokens=MAX_NEW_TOKENS)
    exact = sum(got == en for got, (_, en) in zip(translations, held_out, strict=True))
    assert exact >= 0.97 * len(held_out)


def test_fastmha_gives_the_tokens_of_torch_on_all_of_them(model, source_ids, by_torch):
    generated = model.generate(source_ids, max_new_tokens=MAX_NEW_TOKENS)
    ours = [list(map(int, tokens)) for tokens in generated]
    different = [i for i, tokens in enumerate(ours) if tokens != by_torch.tokens[i]]
    assert different == []


def test_examples(model):
    assert dict(zip(EXAMPLES, model.translate(list(EXAMPLES)), strict=True)) == EXAMPLES


def test_the_unusual_sentences_of_the_example_are_in_the_language(source):
    for sentence in grammar.DEMO_SENTENCES:
        assert data.UNKNOWN not in source.encode(sentence).ids


def test_final_punctuation_and_spaces_do_not_matter(model):
    same = ["我想吃汉堡", "我想吃汉堡。", "我 想 吃 汉 堡", "  我想吃汉堡！\n"]
    assert model.translate(same) == ["I want to eat a hamburger"] * 4
