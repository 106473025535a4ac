"""Files of sentence-transformers and tokenizers: pooling, lengths, prompts, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys

import fastmha as fm
import numpy as np
import pytest
from checkpoints import VOCAB, write_checkpoint, write_tokenizer
from conftest import Random, assert_same_bits
from fastmha.sentence import MODES, normalized, pool, read_sentence_settings
from fastmha.texts import TextTokenizer

TEXTS = ["w3 w50 w96", "w4", "w5 w6 w7 w8 w9 w10 w11 w12", ""]


@pytest.fixture
def checkpoint(tmp_path):
    write_checkpoint(tmp_path, "bert")
    return tmp_path


def write_json(file, value):
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def write_modules(directory, pooling, *, normalize=False, transformer="", prefix="models"):
    kinds = [("Transformer", transformer), ("Pooling", "1_Pooling")]
    kinds += [("Normalize", "2_Normalize")] if normalize else []
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.{prefix}.{kind}"}
        for n, (kind, path) in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling" / "config.json", pooling)


def pooled_by_hand(states, mode):
    states = states.astype(np.float64)
    weights = np.arange(1, len(states) + 1)[:, None]
    return {
        "cls": states[0],
        "max": states.max(0),
        "mean": states.mean(0),
        "mean_sqrt_len_tokens": states.sum(0) / len(states) ** 0.5,
        "weightedmean": (states * weights).sum(0) / weights.sum(),
        "lasttoken": states[-1],
    }[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["flags", "name", "list"])
def test_pooling_modes(checkpoint, mode, form):
    flag = f"pooling_mode_{mode}" + ("_token" if mode == "cls" else "")
    flag += "_tokens" if mode in ("max", "mean", "weightedmean") else ""
    pooling = {
        "flags": {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": False, flag: True},
        "name": {"embedding_dimension": 48, "pooling_mode": mode, "include_prompt": True},
        "list": {"embedding_dimension": 48, "pooling_mode": [mode, "mean"]},
    }[form]
    write_modules(checkpoint, pooling)
    model = fm.load(checkpoint)
    embeddings = model.encode(TEXTS)
    states = model.forward(model.encode_texts(TEXTS))
    modes = [mode, "mean"] if form == "list" else [mode]
    assert model.embedding_dim == 48 * len(modes)
    for embedding, state, text in zip(embeddings, states, TEXTS, strict=True):
        expected = np.concatenate([pooled_by_hand(state, mode) for mode in modes])
        np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-6)
        assert_same_bits(model.encode(text)[0], embedding)


def test_several_flags_are_joined_in_their_order(checkpoint):
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    write_modules(checkpoint, flags | {"pooling_mode_max_tokens": True})
    assert fm.load(checkpoint).settings.pooling == ("cls", "max", "mean")


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 127, 128, 129, 1000])
def test_pooling_does_not_depend_on_the_batch(length):
    random = Random(0)
    others = [random.normal(n, 48) for n in (3, 1, 300)]
    own = random.normal(length, 48)
    for mode in MODES:
        alone = pool(own, np.array([0, length]), [mode])
        for place in range(4):
            parts = [*others[:place], own, *others[place:]]
            bounds = np.cumsum([0, *map(len, parts)])
            rows = pool(np.concatenate(parts), bounds, [mode])
            assert_same_bits(rows[place], alone[0], mode)
            assert_same_bits(normalized(rows)[place], normalized(alone)[0], mode)


def test_normalize(checkpoint):
    write_modules(checkpoint, {"pooling_mode_mean_tokens": True}, normalize=True)
    model = fm.load(checkpoint)
    lengths = np.linalg.norm(model.encode(TEXTS), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert np.abs(np.linalg.norm(model.encode(TEXTS, normalize=False), axis=1) - 1).min() > 0.1
    assert_same_bits(normalized(np.zeros((1, 4), np.float32)), np.zeros((1, 4), np.float32))


def test_without_these_files_it_is_the_mean(checkpoint):
    settings = fm.load(checkpoint).settings
    assert (settings.pooling, settings.normalize, settings.prompt) == (("mean",), False, "")


def test_longest_text(checkpoint):
    write_json(checkpoint / "sentence_bert_config.json", {"max_seq_length": 7})
    model = fm.load(checkpoint)
    assert model.max_length == 7
    (ids,) = model.encode_texts(["w3 " * 50])
    assert ids.tolist() == [0, 3, 3, 3, 3, 3, 2]
    long = {"max_seq_length": 5000, "do_lower_case": True}  # more than there are positions
    write_json(checkpoint / "sentence_bert_config.json", long)
    write_json(checkpoint / "tokenizer_config.json", {"model_max_length": 10**30})
    model = fm.load(checkpoint)
    assert model.max_length == 210
    (ids,) = model.encode_texts(["W3 w4"])  # lower-cased
    assert ids.tolist() == [0, 3, 4, 2]
    assert model.encode(["w4 " * 5000]).shape == (1, 48)
    # tokenizer_config.json is asked only where sentence_bert_config.json says nothing
    write_json(checkpoint / "tokenizer_config.json", {"model_max_length": 9})
    assert fm.load(checkpoint).max_length == 210
    write_json(checkpoint / "sentence_bert_config.json", {"max_seq_length": 11})
    assert fm.load(checkpoint).max_length == 11
    write_json(checkpoint / "sentence_bert_config.json", {"max_seq_length": None})
    assert fm.load(checkpoint).max_length == 9
    config = {"model_max_length": 5, "truncation_side": "left"}
    write_json(checkpoint / "tokenizer_config.json", config)
    (ids,) = fm.load(checkpoint).encode_texts(["w3 w4 w5 w6 w7"])
    assert ids.tolist() == [0, 5, 6, 7, 2]


def test_default_prompt(checkpoint):
    file = checkpoint / "config_sentence_transformers.json"
    plain = fm.load(checkpoint)
    write_json(file, {"prompts": {"query": "w9 "}, "default_prompt_name": "query"})
    model = fm.load(checkpoint)
    assert_same_bits(model.encode("w3"), plain.encode("w9 w3"))
    assert_same_bits(model.encode("w3", prompt=""), plain.encode("w3"))
    write_json(file, {"prompts": {"query": "w9 "}, "default_prompt_name": None})
    assert fm.load(checkpoint).settings.prompt == ""
    for name in ("query", ["query"]):
        write_json(file, {"prompts": {}, "default_prompt_name": name})
        with pytest.raises(ValueError, match=r"default_prompt_name is .*, which prompts does not"):
            fm.load(checkpoint)


@pytest.mark.parametrize("prefix", ["models", "base.modules.transformer"])
def test_the_encoder_in_a_directory_of_its_own(checkpoint, prefix):
    expected = fm.load(checkpoint).encode(TEXTS)
    inner = checkpoint / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.move(checkpoint / name, inner / name)
    write_json(inner / "sentence_bert_config.json", {"max_seq_length": 20})
    write_modules(checkpoint, {}, transformer="0_Transformer", prefix=prefix)
    model = fm.load(checkpoint)
    assert model.max_length == 20
    assert_same_bits(model.encode(TEXTS), expected)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("modules.json", {}, "expected a JSON array, got a dict"),
        ("modules.json", [{"path": ""}], "not a list of modules"),
        ("modules.json", [{"path": "", "type": "x.Transformer"}], "got Transformer"),
        ("modules.json", [{"path": "../x", "type": "x.Transformer"}], "points outside the direct"),
        ("1_Pooling/config.json", {"pooling_mode_median_tokens": True}, "pooling_mode_median_tok"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode must be among"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode must be among"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt is False"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length must be an int"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is"),
        ("sentence_bert_config.json", {"max_seq_length": 1}, r"too short for 2 special tokens"),
    ],
)
def test_what_is_not_supported_is_named(checkpoint, file, value, message):
    write_modules(checkpoint, {"pooling_mode_mean_tokens": True})
    write_json(checkpoint / file, value)
    with pytest.raises(ValueError, match=message):
        fm.load(checkpoint)


def test_other_modules_are_refused(checkpoint):
    write_modules(checkpoint, {})
    modules = json.loads((checkpoint / "modules.json").read_text())
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    write_json(checkpoint / "modules.json", modules)
    with pytest.raises(ValueError, match="got Transformer, Pooling, Dense"):
        read_sentence_settings(checkpoint)


def test_what_is_missing_is_named_with_its_directory(checkpoint, monkeypatch):
    """fm.load(".") said that config.json does not exist."""
    monkeypatch.chdir(checkpoint)
    assert fm.load(".").embedding_dim == fm.load(checkpoint).embedding_dim
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        for path in (".", checkpoint / ".." / checkpoint.name):
            with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(checkpoint))}\b.*{name}"):
                fm.load(path)
        (checkpoint / name).write_bytes(content)


def test_missing_and_broken_files(checkpoint):
    write_modules(checkpoint, {})
    (checkpoint / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Pooling/config\.json does not exist"):
        fm.load(checkpoint)
    (checkpoint / "modules.json").write_text("{")
    with pytest.raises(ValueError, match=r"modules\.json: not JSON"):
        fm.load(checkpoint)
    (checkpoint / "modules.json").unlink()
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: broken or not a tokenizer"):
        fm.load(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json and no vocab\.txt"):
        fm.load(checkpoint)
    write_tokenizer(checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only pytorch_model\.bin: .*save_pretrained"):
        fm.load(checkpoint)


def test_broken_tokenizers(checkpoint):
    """tokenizers itself says nothing before it is used, and then it may panic."""
    file = checkpoint / "tokenizer.json"
    kept = json.loads(file.read_text())
    broken = json.loads(file.read_text())
    broken["post_processor"]["single"][0]["SpecialToken"]["id"] = "<x>"
    write_json(file, broken)
    with pytest.raises(ValueError, match=r"broken"):
        fm.load(checkpoint)
    broken = kept | {"model": kept["model"] | {"unk_token": "<x>"}}
    write_json(file, broken)
    with pytest.raises(ValueError, match=r"broken tokenizer: .*Missing"):
        fm.load(checkpoint)
    write_json(file, kept)
    for config, message in (
        ({"truncation_side": 5}, "truncation_side must be one of"),
        ({"do_lower_case": "no"}, "do_lower_case must be one of"),
        ({"strip_accents": []}, "strip_accents must be one of"),
        ({"add_prefix_space": "yes"}, "add_prefix_space must be one of"),
    ):
        write_json(checkpoint / "tokenizer_config.json", config)
        with pytest.raises(ValueError, match=message):
            fm.load(checkpoint)


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    write_checkpoint(tmp_path, "bert", vocab_size=50)
    with pytest.raises(ValueError, match=rf"holds {VOCAB} tokens, config\.json gives the model 50"):
        fm.load(tmp_path)


WORDPIECES = str.split(
    "[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s sleep ##ing caf ##é cafe 字 汉 . , ! é e a ##b Ab"
)
SENTENCES = ["The cats sleeping.", "café CAFÉ", "字汉!", "", "[SEP] the [MASK]", "ab\x00 Ab\tzzz"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
    ],
)
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_bert_tokenizers(tmp_path, config, file):
    """From vocab.txt alone, or from a tokenizer.json whose normaliser the config overrules."""
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in WORDPIECES))
    reference = BertTokenizer(str(tmp_path / "vocab.txt"), **config)
    if file == "tokenizer.json":
        BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 9, **config})
    ours = TextTokenizer.from_directory(tmp_path, len(WORDPIECES), 512)
    assert ours.max_length == 9
    for text, ids in zip(SENTENCES, ours(SENTENCES), strict=True):
        assert ids.tolist() == reference(text, truncation=True, max_length=9)["input_ids"], text


def test_a_vocabulary_with_other_special_tokens(tmp_path):
    """As MPNet has them; as strings or as objects."""
    (tmp_path / "vocab.txt").write_text("<s>\r\n<pad>\r\n</s>\r\n[UNK]\r\nthe\r\n")
    config = {"cls_token": "<s>", "sep_token": {"content": "</s>"}, "pad_token": "<pad>"}
    write_json(tmp_path / "tokenizer_config.json", config)
    assert TextTokenizer.from_directory(tmp_path, 5, 8)(["the cat </s>"])[0].tolist() == [
        *(0, 4, 3, 2, 2)
    ]
    with pytest.raises(ValueError, match=r"vocab\.txt: holds 5 tokens, config\.json .* 4"):
        TextTokenizer.from_directory(tmp_path, 4, 8)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"not the vocabulary of a BERT: no \[CLS\], \[SEP\]"):
        TextTokenizer.from_directory(tmp_path, 5, 8)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"vocab\.txt: not UTF-8"):
        TextTokenizer.from_directory(tmp_path, 5, 8)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("in_config", [{}, {"add_prefix_space": False}, {"add_prefix_space": True}])
def test_prefix_space_of_roberta(tmp_path, in_file, in_config):
    """tokenizer_config.json counts, whatever tokenizer.json says, as in transformers."""
    from transformers import AutoTokenizer, RobertaTokenizer

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcĠ", "Ġa", "ab"]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    made = RobertaTokenizer(
        vocab=vocabulary, merges=[("Ġ", "a"), ("a", "b")], add_prefix_space=in_file
    )
    made.save_pretrained(tmp_path)
    config = {"tokenizer_class": "RobertaTokenizer", **in_config}
    write_json(tmp_path / "tokenizer_config.json", config)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    ours = TextTokenizer.from_directory(tmp_path, len(tokens), 32)
    texts = ["a b", " a b", "ab a", "", "abc  ab"]
    for text, ids in zip(texts, ours(texts), strict=True):
        assert ids.tolist() == reference(text)["input_ids"], text
    begins = ours(["a"])[0].tolist()
    assert begins == [0, 9 if in_config.get("add_prefix_space") else 5, 2]


def test_lower_case_as_sentence_transformers(tmp_path):
    """In front of the tokenizer's own rules, once; nothing is stripped."""
    from tokenizers import Tokenizer, models, normalizers

    rules = {
        "none": None,
        "one": normalizers.NFC(),
        "several": normalizers.Sequence([normalizers.NFC(), normalizers.Replace("b", "c")]),
        "lower": normalizers.Lowercase(),
        "lower last": normalizers.Sequence(
            [normalizers.Replace("B", "c"), normalizers.Lowercase()]
        ),
    }
    for name, rule in rules.items():
        tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, " ab": 1, " ac": 2}, "<unk>"))
        if rule is not None:
            tokenizer.normalizer = rule
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        ours = TextTokenizer.from_directory(tmp_path, 3, 8, lowercase=True)
        expected = 2 if name in ("several", "lower last") else 1
        assert ours([" AB"])[0].tolist() == [expected], name
        plain = TextTokenizer.from_directory(tmp_path, 3, 8)
        assert plain([" AB"])[0].tolist() == [2 if name == "lower last" else int(name == "lower")]


def test_the_tokenizer_has_as_many_threads(checkpoint):
    """Those of fm.get_num_threads(), unless the user has said another number."""
    code = (
        "import os, fastmha as fm\n"
        f"model = fm.load({str(checkpoint)!r})\n"
        "fm.set_num_threads(3)\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        "model.encode_texts(['w3', 'w4'] * 50)\n"
        "print(threads() - before, os.environ.get('RAYON_NUM_THREADS'))\n"
    )
    for asked, expected in ((None, "3 None"), ("5", "5 5")):
        environment = {n: v for n, v in os.environ.items() if n != "RAYON_NUM_THREADS"}
        environment |= {} if asked is None else {"RAYON_NUM_THREADS": asked}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_ids_instead_of_texts(checkpoint):
    write_modules(checkpoint, {"pooling_mode": "mean"}, normalize=True)
    model = fm.load(checkpoint)
    ids = model.encode_texts(TEXTS)
    for options in ({}, {"normalize": False}, {"batch_size": 1}, {"batch_tokens": 1}):
        expected = model.encode(TEXTS, **options)
        assert_same_bits(model.encode_ids(ids, **options), expected)
        assert_same_bits(model.encode_ids([i.tolist() for i in ids], **options), expected)
    assert not model.encode_ids([[]]).any()
    assert model.encode_ids([]).shape == (0, 48)
    with pytest.raises(ValueError, match=r"encode_ids: token_ids must be a list of one-dim"):
        model.encode_ids(np.zeros((1, 1, 3), int))
    with pytest.raises(TypeError, match=r"encode_ids: token ids must be integers"):
        model.encode_ids([[0.5]])
    with pytest.raises(ValueError, match=rf"must lie in 0 \.\. {VOCAB - 1}"):
        model.encode_ids([[VOCAB]])


@pytest.mark.parametrize("operation", ["forward", "encode_ids"])
def test_what_is_no_list_of_ids(checkpoint, operation):
    """Errors were those of Python and NumPy: 'NoneType' object is not iterable, inhomogeneous
    shape."""
    method = getattr(fm.load(checkpoint), operation)
    for junk, message in (
        (None, "token_ids must be a list of integer arrays, got NoneType"),
        (5, "token_ids must be a list of integer arrays, got int"),
        ("ab", "token_ids must be a list of integer arrays, got str"),
        (np.array(5), r"token_ids must be a list of integer arrays, got one of shape \(\)"),
        ([5], r"token_ids must be a list of one-dimensional arrays, got one of shape \(\)"),
        ([None], "token ids must be integers, got NoneType"),
        ([["w3"]], "token ids must be integers, got str"),
        ([[5, [6, 7]]], "token ids must be integers, got lists of different lengths"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{operation}: {message}"):
            method(junk)


def test_what_is_no_text(checkpoint, tmp_path):
    model = fm.load(checkpoint)
    for junk in (None, 5, np.array("w3"), b"w3"):
        for operation in ("encode", "encode_stream", "encode_texts"):
            with pytest.raises(TypeError, match="texts must be an iterable of str, got "):
                getattr(model, operation)(junk)
    assert [ids.tolist() for ids in model.encode_texts(iter(["w5"]))] == [[0, 5, 2]]
    with pytest.raises(TypeError, match=r"^attention: most_weights must be an int, got '9'"):
        model.attention("w3", most_weights="9")
    with pytest.raises(TypeError, match=r"^encode_to_file: path must be a str or a path, got int"):
        model.encode_to_file(["w3"], 5)
    with pytest.raises(ValueError, match=r"^encode_to_file: the format must be one of .*\['npy'\]"):
        model.encode_to_file(["w3"], tmp_path / "x.npy", format=["npy"])


ENCODING = {
    "encode": lambda model, texts, **how: model.encode(texts, **how),
    "encode_stream": lambda model, texts, **how: list(model.encode_stream(texts, **how)),
    "encode_to_file": lambda model, texts, **how: model.encode_to_file(texts, FILE, **how),
    "encode_ids": lambda model, texts, **how: model.encode_ids([[5, 2]], **how),
    "encode_texts": lambda model, texts: model.encode_texts(texts),
    "attention": lambda model, texts: model.attention(texts[0]),
}
FILE = "embeddings.npy"


@pytest.mark.parametrize("operation", ENCODING)
def test_errors_name_the_call_that_was_made(checkpoint, monkeypatch, operation):
    """Those of encode() named encode_stream, and others encode()."""
    model, call = fm.load(checkpoint), ENCODING[operation]
    monkeypatch.chdir(checkpoint)
    wrong = []
    if operation != "encode_ids":
        wrong += [(["w3\ud800"], {}, "holds U.D800"), ([5], {}, "must be a str, got int")]
    if operation not in ("encode_texts", "attention"):
        wrong += [(["w3"], {"batch_tokens": 0}, "batch_tokens must be at least 1")]
        wrong += [(["w3"], {"normalize": 1}, "normalize must be a bool or None, got 1")]
    if operation in ("encode", "encode_stream", "encode_ids"):
        wrong += [(["w3"], {"batch_size": 0}, "batch_size must be at least 1")]
    if operation in ("encode", "encode_stream", "encode_to_file"):
        wrong += [(5, {}, "texts must be an iterable of str, got int")]
        for prompt in (5, np.arange(3)):
            wrong += [(["w3"], {"prompt": prompt}, "prompt must be a str, got (int|ndarray)")]
    for texts, how, message in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{operation}: .*{message}"):
            call(model, texts, **how)
        assert not (checkpoint / FILE).exists()


@pytest.mark.parametrize("operation", ["forward", "encode_ids"])
def test_errors_of_ids_name_the_call_that_was_made(checkpoint, operation):
    """Those of encode_ids() named forward()."""
    model = fm.load(checkpoint)
    for ids, message in (
        ([VOCAB], f"token ids must lie in 0 .. {VOCAB - 1}, got {VOCAB}"),
        ([5] * 1000, "a sequence has 1000 tokens, the model takes"),
    ):
        with pytest.raises(ValueError, match=f"^{operation}: {message}"):
            getattr(model, operation)([[5, 2], ids])


def test_texts_of_a_stream_are_counted(checkpoint):
    stream = fm.load(checkpoint).encode_stream(["w3", "w4", "w5", 6], chunk=2)
    assert len(next(stream)) == 2
    with pytest.raises(TypeError, match=r"^encode_stream: texts\[3\] must be a str, got int"):
        next(stream)


def test_normalize_is_a_bool(checkpoint):
    with pytest.raises(TypeError, match="normalize must be a bool or None, got 'no'"):
        fm.load(checkpoint).encode(["a"], normalize="no")


def test_any_iterator_fills_one_array(checkpoint, monkeypatch):
    monkeypatch.setattr("fastmha.encoder_model.CHUNK", 4)
    model = fm.load(checkpoint)
    texts = [f"w{3 + n % 90}" for n in range(50)]
    expected = model.encode(texts)
    for count in (0, 1, 4, 5, 49, 50):
        found = model.encode(iter(texts[:count]))
        assert_same_bits(found, expected[:count])
        assert found.base is None  # no view of something larger


def test_attention_is_bounded(checkpoint):
    model = fm.load(checkpoint)
    text = "w3 " * 8  # ten tokens, three layers of four heads
    assert model.attention(text, most_weights=1200).layers[0].shape == (4, 10, 10)
    with pytest.raises(ValueError, match=r"10 tokens have 1,200 weights .* shorten .* to 9 tokens"):
        model.attention(text, most_weights=1199)


def test_torch_is_not_needed(checkpoint):
    """The reference of the tests is theirs alone."""
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        f"import fastmha as fm; print(fm.load({str(checkpoint)!r}).encode(['w3 w4']).shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "(1, 48)\n", result.stderr
