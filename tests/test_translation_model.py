"""Translation checkpoints from directory to text, against transformers' own tokenizers and
generate."""

import itertools
import json
import math
import pickle
import sys

import fastmha as fm
import numpy as np
import pytest
import torch
import transformers
from checkpoints import rewrite_config
from pieces import KINDS, SIZE, Models, made_up_lines, write_tokenizer
from seq2seq_checkpoints import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

# our name of a case -> model_type, languages, what the config says besides sizes
CASES = {
    "bart": ("bart", {}, {}),
    "m2m_100": ("m2m_100", {"src_lang": "fr", "tgt_lang": "zu"}, {}),
    "marian": ("marian", {}, {}),
    "mbart": ("mbart", {"src_lang": "ro_RO", "tgt_lang": "de_DE"}, {}),
    "mbart50": ("mbart", {"src_lang": "sl_SI", "tgt_lang": "ar_AR"}, {}),
    "nllb": ("m2m_100", {"src_lang": "zho_Hans", "tgt_lang": "fra_Latn"}, {}),
    "t5": ("t5", {}, {}),
}
POSITIONS = 90
# Random weights repeat themselves; so ruled, translations tell each other apart.
VARIED = {"max_new_tokens": 23, "no_repeat_ngram_size": 2}
TEXTS = [*made_up_lines(14, seed=5), "鲸 ka", ""]


class Case:
    """transformers' model and tokenizer, and ours."""

    def __init__(self, directory, name, trained):
        self.directory, self.name = directory, name
        self.model_type, self.languages, config = CASES[name]
        size = write_tokenizer(directory, name, trained)
        tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        tokens["decoder_start_token_id"] = 2
        if name == "marian":
            tokens = {"bos_token_id": None, "pad_token_id": size - 1, "eos_token_id": 0}
            tokens["decoder_start_token_id"] = size - 1
        if name == "t5":
            tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        else:
            config = {"max_position_embeddings": POSITIONS, **config}

        def ends(model):  # targets end at all lengths
            model.get_output_embeddings().weight[tokens["eos_token_id"]] *= 2.5

        self.theirs = write_checkpoint(
            directory, self.model_type, vocab_size=size, change=ends, **tokens, **config
        )
        if name == "bart":
            self.theirs.generation_config.forced_bos_token_id = 0
            self.theirs.generation_config.save_pretrained(directory)
        self.tokenizer = getattr(transformers, KINDS[name]).from_pretrained(directory)
        if "src_lang" in self.languages:
            self.tokenizer.src_lang = self.languages["src_lang"]
        self.ours = fm.load(directory)

    @property
    def start(self):
        """How transformers is told the language of a target."""
        if "tgt_lang" not in self.languages:
            return {}
        language = self.languages["tgt_lang"]
        token = f"__{language}__" if self.name == "m2m_100" else language
        argument = "decoder_start_token_id" if self.name == "mbart" else "forced_bos_token_id"
        return {argument: self.tokenizer.convert_tokens_to_ids(token)}

    def generate(self, text, **options):
        """Sequences and their scores (of beam search)."""
        ids = self.tokenizer(text, return_tensors="pt")
        result = self.theirs.generate(
            ids["input_ids"],
            attention_mask=ids["attention_mask"],
            return_dict_in_generate=True,
            output_scores=True,
            **{**VARIED, "do_sample": False, **self.start, **options},
        )
        return result.sequences, getattr(result, "sequences_scores", None)

    def expected(self, text, **options):
        if not text.strip():
            return ""
        ids = self.generate(text, **options)[0]
        return self.tokenizer.decode(ids[0], skip_special_tokens=True).strip()

    def translate(self, texts, **options):
        options = {**VARIED, **self.languages, **options}
        return self.ours.translate(texts, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained):
    cases = {}

    def make(name):
        if name not in cases:
            cases[name] = Case(tmp_path_factory.mktemp(name), name, trained)
        return cases[name]

    return make


@pytest.fixture(params=CASES)
def case(request, made):
    return made(request.param)


@pytest.fixture
def marian(made):
    return made("marian")


warns_of_whales = pytest.mark.filterwarnings("ignore::fastmha.UnknownCharacterWarning")


# ---- translate ----------------------------------------------------------------------------------


@warns_of_whales
@pytest.mark.parametrize("beam_size", [1, 3])
def test_translations_are_those_of_transformers(case, beam_size):
    found = case.translate(TEXTS, beam_size=beam_size)
    assert [text.strip() for text in found] == [
        case.expected(text, num_beams=beam_size) for text in TEXTS
    ]
    assert len(set(found)) > 1
    if case.name == "t5":
        assert repr(case.ours) == (
            f"TranslationModel(T5, {SIZE + 10} tokens, d_model=48, 2 + 2 blocks)"
        )


@warns_of_whales
def test_a_translation_depends_on_its_own_text_alone(case):
    together = case.translate(TEXTS, beam_size=2)
    assert case.translate(TEXTS, beam_size=2, batch_size=3) == together
    assert [case.translate([text], beam_size=2)[0] for text in TEXTS] == together
    assert case.translate(TEXTS[::-1], beam_size=2)[::-1] == together
    assert case.translate(iter(TEXTS), beam_size=2) == together


@warns_of_whales
def test_streams_and_n_best(case):
    texts = ["", " ", *TEXTS, TEXTS[0], "\t"]
    options = {**VARIED, **case.languages}
    expected = case.translate(texts)
    for batch_size in (2, 64):
        found = case.ours.translate_stream(iter(texts), batch_size=batch_size, **options)
        assert list(found) == expected
    several = list(case.ours.n_best_stream(iter(texts), 2, beam_size=3, **options))
    assert [len(best) for best in several] == [2] * len(texts)
    assert [best[0].text for best in several] == case.translate(texts, beam_size=3)
    for text, best in zip(texts, several, strict=True):
        if not text.strip():
            assert [(t.text, t.score, t.ids.size) for t in best] == [("", 0.0, 0)] * 2
            continue
        _, scores = case.generate(text, num_beams=3, num_return_sequences=2)
        assert [t.score for t in best] == pytest.approx(scores.tolist(), abs=1e-4)
        assert all(case.ours.decode(t.ids) == t.text for t in best)


@warns_of_whales
def test_pieces_of_a_stream_make_the_translation(case):
    options = {**VARIED, **case.languages}
    for text in TEXTS[:5]:
        pieces = list(case.ours.stream(text, **options))
        assert "".join(pieces) == case.translate([text])[0]
        assert len(pieces) > 1 or len("".join(pieces)) < 8
    assert list(case.ours.stream(" ", **options)) == []


def test_a_prefix_is_the_beginning(case):
    text, start = TEXTS[0], "kalo mine"
    (found,) = case.translate([text], prefix=start, max_new_tokens=5)
    assert found.startswith(start)
    forced = [token for token in [case.start.get("forced_bos_token_id")] if token is not None]
    if case.name == "bart":
        forced = [0]
    if case.name == "marian":
        ids = case.tokenizer(text_target=start, add_special_tokens=False).input_ids
    else:
        ids = case.tokenizer(start, add_special_tokens=False).input_ids
    settings = case.theirs.generation_config
    first = case.start.get("decoder_start_token_id", settings.decoder_start_token_id)
    given = torch.tensor([[first, *forced, *ids]])
    sequences, _ = case.generate(
        text, decoder_input_ids=given, max_new_tokens=5, forced_bos_token_id=None
    )
    assert found.strip() == case.tokenizer.decode(sequences[0], skip_special_tokens=True).strip()
    several = case.translate([text, "", text], prefix=[start, "ka", ""], max_new_tokens=5)
    assert several == [found, "", *case.translate([text], max_new_tokens=5)]
    options = {**VARIED, "max_new_tokens": 5, **case.languages}
    pieces = case.ours.stream(text, prefix=start, **options)
    assert "".join(pieces) == found


def test_scores_of_given_translations(case):
    text = TEXTS[0]
    ((best,),) = case.ours.n_best_stream([text], 1, max_new_tokens=9, **case.languages)
    (source,), ids = case.ours.encode_texts([text], **languages_of(case, "src")), best.ids
    settings = case.theirs.generation_config
    start = case.start.get("decoder_start_token_id", settings.decoder_start_token_id)
    read = [start, *ids.tolist()]
    expected = [*ids.tolist(), settings.eos_token_id]
    with torch.no_grad():
        logits = case.theirs(
            input_ids=torch.from_numpy(source)[None], decoder_input_ids=torch.tensor([read])
        ).logits[0]
    logits = torch.log_softmax(logits.double(), -1)
    log_probs = [logits[n, token].item() for n, token in enumerate(expected)]
    (by_ids,) = case.ours.score([(source, ids)], **languages_of(case, "tgt"))
    np.testing.assert_allclose(by_ids.log_probs, log_probs, atol=1e-4)
    assert by_ids.total == pytest.approx(sum(log_probs), abs=1e-3)
    target = "kalo mine"
    (by_text,) = case.ours.score([(text, target)], **case.languages)
    pieces = case.ours.texts.targets([target])[0]
    forced = 1 if case.name == "bart" or "forced_bos_token_id" in case.start else 0
    first = {"forced_bos_token_id": 0, **case.start}.get("forced_bos_token_id")
    whole = np.concatenate([[first][:forced], pieces]).astype(np.int64)
    (with_forced,) = case.ours.score([(source, whole)], **languages_of(case, "tgt"))
    np.testing.assert_array_equal(by_text.log_probs, with_forced.log_probs[forced:])
    assert len(by_text.log_probs) == len(pieces) + 1


def languages_of(case, *sides):
    return {k: v for k, v in case.languages.items() if k[:3] in sides}


def test_generate_takes_and_gives_ids(case):
    sources = case.ours.encode_texts(TEXTS[:6], **languages_of(case, "src"))
    options = {**VARIED, "max_new_tokens": 9, **case.start}
    for beams in (1, 3):
        ids, scores = case.ours.generate(sources, beam_size=beams, return_scores=True, **options)
        for text, found, score in zip(TEXTS, ids, scores, strict=False):
            sequences, expected = case.generate(text, num_beams=beams, **options)
            end = case.theirs.generation_config.eos_token_id
            kept = sequences[0, 1:].tolist()
            kept = kept[: kept.index(end)] if end in kept else kept
            assert found.tolist() == kept
            if beams > 1:
                assert score == pytest.approx(expected.item(), abs=1e-4)
    several = case.ours.generate(sources, beam_size=3, num_return_sequences=2, **options)
    assert [ids.tolist() for ids in several[::2]] == [found.tolist() for found in ids]
    (state,) = case.ours.forward(sources[:1])
    with torch.no_grad():
        expected = case.theirs.get_encoder()(torch.from_numpy(sources[0])[None])[0][0]
    np.testing.assert_allclose(state, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert case.ours.forward([]) == []
    assert case.ours.generate([]) == []


def test_attention_of_every_head_of_every_layer(case):
    case.theirs.set_attn_implementation("eager")
    options = {**VARIED, "max_new_tokens": 7, **case.languages}
    maps = case.ours.attention(TEXTS[0], **options)
    (source,) = case.ours.encode_texts(TEXTS[:1], **languages_of(case, "src"))
    assert len(maps.source) == len(source)
    assert maps.translation == case.translate(TEXTS[:1], max_new_tokens=7)[0]
    names = [case.ours.texts.target.id(token) for token in maps.target]
    with torch.no_grad():
        result = case.theirs(
            input_ids=torch.from_numpy(source)[None],
            decoder_input_ids=torch.tensor([names]),
            output_attentions=True,
        )
    for ours, theirs in (
        (maps.encoder, result.encoder_attentions),
        (maps.decoder, result.decoder_attentions),
        (maps.cross, result.cross_attentions),
    ):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other[0].numpy(), rtol=2e-4, atol=2e-5)


# ---- languages ----------------------------------------------------------------------------------


def test_languages_that_are_not_said_or_not_known(made):
    model = made("m2m_100").ours
    assert len(model.languages) == 100
    with pytest.raises(ValueError, match="tgt_lang must say the language of the translation, one"):
        model.translate(["ka"])
    with pytest.raises(ValueError, match=r"tgt_lang must be one of af, am, .*, zu; got 'xx'"):
        model.translate_stream(["ka"], tgt_lang="xx")
    with pytest.raises(ValueError, match="src_lang must be one of"):
        model.translate_stream(["ka"], tgt_lang="zu", src_lang="xx")
    with pytest.raises(ValueError, match="tgt_lang is 'fr', this model is not told languages"):
        made("t5").ours.translate(["ka"], tgt_lang="fr")
    assert made("t5").ours.languages == ()


def test_a_language_that_the_files_say(tmp_path, made):
    """forced_bos_token_id of generation_config.json, else tgt_lang of tokenizer_config.json."""
    case = made("mbart50")
    for file in case.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    expected = case.ours.translate(["ka lo"], src_lang="sl_SI", tgt_lang="de_DE")
    assert expected != case.ours.translate(["ka lo"], src_lang="sl_SI", tgt_lang="fr_XX")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"src_lang": "sl_SI", "tgt_lang": "de_DE"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert fm.load(tmp_path).translate(["ka lo"]) == expected
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tgt_lang": "fr_XX"}))
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    generation["forced_bos_token_id"] = case.ours.texts.languages["de_DE"]
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert fm.load(tmp_path).translate(["ka lo"]) == expected


def saved_by_transformers(directory, case):
    """The same checkpoint with a tokenizer.json in place of the sentencepiece model."""
    for file in case.directory.iterdir():
        if file.name != "sentencepiece.bpe.model":
            (directory / file.name).write_bytes(file.read_bytes())
    transformers.AutoTokenizer.from_pretrained(case.directory).save_pretrained(directory)


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["mbart", "mbart50"])
def test_a_language_that_nobody_says(tmp_path, made, name):
    """Of the source it is en_XX, as in transformers; of the target there is no such default."""
    saved_by_transformers(tmp_path, made(name))
    for directory in (made(name).directory, tmp_path):
        theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), fm.load(directory)
        expected = theirs("ka lo").input_ids
        assert theirs.convert_tokens_to_ids("en_XX") in expected
        assert ours.encode_texts(["ka lo"])[0].tolist() == expected
        with pytest.raises(ValueError, match="tgt_lang must say the language of the translation"):
            ours.translate(["ka lo"])


@pytest.mark.parametrize("name", ["mbart", "mbart50"])
def test_a_tokenizer_that_does_not_hold_its_languages(tmp_path, made, name):
    """It was loaded as one that is not told languages: sources and targets were without one."""
    saved_by_transformers(tmp_path, made(name))
    codes = set(made(name).ours.languages)
    tokens = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    kept = [token for token in tokens if token["content"] not in codes]
    assert len(kept) < len(tokens)
    rewrite(tmp_path / "tokenizer.json", added_tokens=kept)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["extra_special_tokens"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no file says the ids of the languages; let tr"):
        fm.load(tmp_path)
    # the way that the message shows
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert set(fm.load(tmp_path).languages) == codes


def test_a_tokenizer_of_no_family(tmp_path, made):
    """What stands around a source is in tokenizer.json, and nothing is known of languages, here as
    in transformers."""
    saved_by_transformers(tmp_path, made("mbart50"))
    rewrite(tmp_path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), fm.load(tmp_path)
    assert ours.encode_texts(["ka lo"])[0].tolist() == theirs("ka lo").input_ids
    assert ours.languages == ()
    with pytest.raises(ValueError, match="tgt_lang is 'de_DE', this model is not told languages"):
        ours.translate(["ka lo"], tgt_lang="de_DE")


def test_codes_of_marian(marian):
    found = marian.translate(["kalo mine"], tgt_lang="fra")
    assert found == marian.translate([">>fra<< kalo mine"])
    assert found != marian.translate(["kalo mine"])
    # without a code it is what transformers makes of it, whatever language that is
    assert marian.translate(["kalo mine"]) == [marian.expected("kalo mine")]
    assert "fra" in marian.ours.languages


# ---- settings -----------------------------------------------------------------------------------


def test_generation_config_counts_and_calls_override_it(tmp_path, marian):
    for file in marian.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "generation_config.json"
    settings = json.loads(file.read_text()) | {"num_beams": 3, "max_length": 9}
    file.write_text(json.dumps(settings))
    model, plain = fm.load(tmp_path), marian.ours
    text = TEXTS[:3]
    assert model.translate(text) == plain.translate(text, beam_size=3, max_new_tokens=8)
    options = {"beam_size": 1, "max_new_tokens": 5}
    assert model.translate(text, **options) == plain.translate(text, **options)
    penalised = marian.translate(text, no_repeat_ngram_size=1, beam_size=3, length_penalty=2.0)
    assert [
        marian.expected(t, no_repeat_ngram_size=1, num_beams=3, length_penalty=2.0) for t in text
    ] == penalised
    samples = [marian.translate(text, do_sample=True, seed=seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    drawn = list(marian.ours.n_best_stream(text, 4, do_sample=True, seed=0))
    assert [len(best) for best in drawn] == [4] * 3
    assert "".join(marian.ours.stream(text[0], do_sample=True, seed=0, **VARIED)) == samples[0][0]
    file.write_text(json.dumps(settings | {"penalty_alpha": 0.6}))
    with pytest.raises(ValueError, match=r"generation_config.json: penalty_alpha is 0.6, which is"):
        fm.load(tmp_path)


def test_beams_are_refused_by_the_names_that_calls_have(tmp_path, marian):
    """The advice was num_beams=1, which is refused, too."""
    for file in marian.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 4}))
    model = fm.load(tmp_path)
    (ids,) = model.encode_texts(["ka"])
    for name, call in {
        "translate": lambda: model.translate(["ka"], do_sample=True),
        "n_best_stream": lambda: model.n_best_stream(["ka"], 2, do_sample=True),
        "attention": lambda: model.attention("ka", do_sample=True),
        "generate": lambda: model.generate([ids], do_sample=True),
    }.items():
        with pytest.raises(
            ValueError, match=rf"{name}: .* set beam_size=1 \(the checkpoint says 4"
        ):
            call()
    options = {**VARIED, "do_sample": True, "beam_size": 1, "seed": 0}
    assert model.translate(["ka"], **options) == marian.translate(["ka"], do_sample=True, seed=0)
    with pytest.raises(
        ValueError, match=r"n_best_stream: count \(5\) must be at most beam_size \(2"
    ):
        model.n_best_stream(["ka"], 5, beam_size=2)
    with pytest.raises(
        ValueError, match=r"generate: num_return_sequences \(5\) .* beam_size \(4\)"
    ):
        model.generate([ids], num_return_sequences=5)


def test_without_generation_config(tmp_path, marian):
    for file in marian.directory.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite_config(tmp_path, bad_words_ids=[[7]], num_beams=2)
    model = fm.load(tmp_path)
    assert model.settings.num_beams == 2
    assert model.settings.bad_words_ids == ((7,),)
    assert model.settings.forced_eos_token_id == (0,)  # the class's own
    assert model.settings.decoder_start_token_id == model.config.vocab_size - 1


# ---- what can be wrong --------------------------------------------------------------------------


def test_long_texts(marian):
    text = "kalo mine tura shi po de " * 20
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens, the model has 90 positions; spl"):
        marian.translate(["ka", text])
    found = marian.translate(["ka", text], truncate=True)
    assert found[:1] == marian.translate(["ka"])
    (ids,) = marian.ours.encode_texts([text], truncate=True)
    assert ids.size == POSITIONS
    (expected,) = marian.ours.generate([ids], **VARIED)
    assert marian.ours.decode(expected) == found[1]
    with pytest.raises(ValueError, match=r"the model has 90 positions, so it generates at most 90"):
        marian.translate(["ka"], max_new_tokens=91)


def test_a_mistake_comes_when_what_is_before_it_is_through(marian):
    texts = [*TEXTS[:5], "", "kalo mine tura shi po de " * 20, "ka"]
    expected = marian.translate(texts[:6])

    def failing():
        yield from texts[:3]
        raise KeyError("gone")

    def run(texts, found):
        for text in marian.ours.translate_stream(texts, **VARIED):
            found.append(text)

    found = []
    with pytest.raises(ValueError, match="text 6 has"):
        run(texts, found)
    assert found == expected
    found = []
    with pytest.raises(KeyError, match="gone"):
        run(failing(), found)
    assert found == expected[:3]


def test_a_mistake_in_a_prefix_comes_when_what_is_before_it_is_through(marian):
    """It threw away what was finished: the search reads prefixes ahead."""
    texts = TEXTS[:5]
    long = "kalo mine tura shi po de " * 20
    expected = marian.translate(texts, prefix="ka")

    def failing():
        yield from ["ka", "ka"]
        raise KeyError("gone")

    def run(prefixes, error, match, texts=texts):
        found = []
        with pytest.raises(error, match=match):
            found.extend(marian.ours.translate_stream(texts, prefix=prefixes, **VARIED))
        return found

    too_long = r"translate_stream: prefix\[3\] is too long: the model has 90 positions, so it"
    given = ["ka", "ka", "ka", long, "ka"]
    assert run(given, ValueError, too_long) == expected[:3]
    # of two mistakes the one that comes first
    assert run(given, ValueError, too_long, [*texts[:4], 5]) == expected[:3]
    assert run(given, TypeError, r"texts\[2\] must be a str", [*texts[:2], 5]) == expected[:2]
    assert run(["ka", 3], TypeError, r"prefix\[1\] must be a str, got int") == expected[:1]
    assert run(["ka"] * 4, ValueError, "fewer prefixes than texts") == expected[:4]
    assert run(["ka"] * 6, ValueError, "more prefixes than texts") == expected
    assert run(failing(), KeyError, "gone") == expected[:2]
    with pytest.raises(ValueError, match="translate_stream: prefix is too long"):
        marian.ours.translate_stream(texts, prefix=long)


def test_prefixes_that_are_wrong(marian):
    model = marian.ours
    assert model.translate(["ka", "", "lo"], prefix=["ka", "lo", ""], **VARIED)[1] == ""
    with pytest.raises(ValueError, match="translate: there are more prefixes than texts"):
        model.translate(["ka"], prefix=["ka", "lo"])
    with pytest.raises(ValueError, match="more prefixes than texts"):
        model.translate([], prefix=itertools.repeat("ka"))
    for wrong in (3, b"ka"):
        with pytest.raises(TypeError, match="prefix must be a str, or an iterable of one for each"):
            model.translate(["ka"], prefix=wrong)
    with pytest.raises(TypeError, match="stream: prefix must be a str, got int"):
        model.stream("ka", prefix=3)


def test_texts_are_read_a_little_ahead(marian):
    read = itertools.count()

    def endless():
        for n in read:
            yield TEXTS[n % 10]

    found = marian.ours.translate_stream(endless(), max_new_tokens=3, batch_size=2)
    assert len(list(itertools.islice(found, 20))) == 20
    assert next(read) < 600


def test_blank_texts_are_read_a_little_ahead_too(marian):
    """The search never sees them, and so never stopped reading."""
    read = itertools.count()
    found = marian.ours.translate_stream((" " for _ in itertools.islice(read, 5000)), batch_size=2)
    assert list(itertools.islice(found, 20)) == [""] * 20
    assert next(read) < 600


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "seed": 3}])
def test_texts_between_many_blank_ones(marian, sampled):
    texts = TEXTS[:5]
    expected = marian.translate(texts, **sampled)
    spread = ["", "", "\n"] * 50
    padded = [*spread, *texts[:2], *spread, texts[2], "", texts[3], *spread, texts[4], *spread]
    options = {**VARIED, **sampled, "batch_size": 1}
    found = list(marian.ours.translate_stream(padded, **options))
    assert len(found) == len(padded)
    assert [text for text in found if text] == [text for text in expected if text]
    assert [not text.strip() for text in padded] == [not text for text in found]
    prefixed = list(marian.ours.translate_stream(padded, prefix="ka", **options))
    assert [t for t in prefixed if t] == marian.translate(texts, prefix="ka", **sampled)


def test_draws_without_a_seed_differ_behind_blank_texts_too(marian):
    spread = [""] * 100
    options = {**VARIED, "do_sample": True, "batch_size": 1}
    texts = [TEXTS[0], *spread, TEXTS[0], *spread, TEXTS[0]]
    found = [text for text in marian.ours.translate_stream(texts, **options) if text]
    assert len(set(found)) == 3


def test_wrong_calls(marian):
    model = marian.ours
    for method in (model.translate, model.translate_stream, model.encode_texts):
        with pytest.raises(TypeError, match=r"got one str; pass \[text\]"):
            method("ka")
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
        model.translate(["ka", 5])
    with pytest.raises(TypeError, match="there is no setting 'beams'"):
        model.translate(["ka"], beams=2)
    with pytest.raises(TypeError, match="num_beams is called beam_size here"):
        model.translate(["ka"], num_beams=2)
    with pytest.raises(TypeError, match=r"n_best_stream\(texts, count\)"):
        model.translate(["ka"], num_return_sequences=2)
    with pytest.raises(ValueError, match="beam_size must be at least 1, got 0"):
        model.translate_stream(["ka"], beam_size=0)
    with pytest.raises(ValueError, match="count must be at least 1"):
        model.n_best_stream(["ka"], 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.translate(["ka"], batch_size=0)
    with pytest.raises(ValueError, match="fewer prefixes than texts"):
        model.translate(["ka", "lo"], prefix=["x"])
    with pytest.raises(ValueError, match="source 0 is empty"):
        model.generate([[]])
    with pytest.raises(ValueError, match=r"source 1 holds the id \d+, outside the vocabulary"):
        model.generate([[5, 0], [9999, 0]])
    with pytest.raises(ValueError, match="the text is blank"):
        model.attention(" ")
    with pytest.raises(ValueError, match="leaves no room in a target of at most 91 tokens"):
        model.translate(["ka"], prefix="kalo mine tura shi po de " * 20)


def test_wrong_calls_are_named(marian):
    """By the call that was made; things of another kind failed somewhere inside, or passed."""
    model, long = marian.ours, "kalo mine tura shi po de " * 20
    for name, error, match, call in (
        ("translate", TypeError, "texts must be .* got NoneType", lambda: model.translate(None)),
        ("translate", TypeError, "texts must be .* got bytes", lambda: model.translate(b"abc")),
        ("translate", TypeError, "batch", lambda: model.translate(["ka"], batch_size=2.5)),
        ("n_best_stream", TypeError, "ba", lambda: model.n_best_stream(["a"], 1, batch_size=2.5)),
        ("generate", TypeError, "batch", lambda: model.generate([[5, 0]], batch_size=2.5)),
        ("encode_texts", TypeError, "texts must be", lambda: model.encode_texts(None)),
        ("encode_texts", TypeError, "got one str", lambda: model.encode_texts("ka")),
        ("encode_texts", TypeError, "must be a str", lambda: model.encode_texts(["ka", 5])),
        ("encode_texts", ValueError, "text 0 has", lambda: model.encode_texts([long])),
        ("translate", ValueError, "text 0 has", lambda: model.translate([long])),
        ("stream", TypeError, "no beam_size: it is greedy", lambda: model.stream("a", beam_size=2)),
        ("stream", TypeError, "no setting 'beams'", lambda: model.stream("ka", beams=2)),
        ("stream", ValueError, "text 0 has", lambda: model.stream(long)),
        ("attention", ValueError, "text 0 has", lambda: model.attention(long)),
        ("attention", ValueError, "tgt_lang", lambda: model.attention("ka", tgt_lang="xx")),
        ("score", ValueError, "text 0 has", lambda: model.score([(long, "ka")])),
        ("score", TypeError, "pair 0 must be", lambda: model.score([("ka", "x", "y")])),
        ("score", TypeError, "pair 0 must be", lambda: model.score(["ka"])),
        ("score", TypeError, "pair 0 must be", lambda: model.score([5])),
        ("score", TypeError, "target 1 must be a", lambda: model.score([("a", "b"), ("a", None)])),
        ("n_best_stream", ValueError, "text 0", lambda: list(model.n_best_stream([long], 1))),
    ):
        with pytest.raises(error, match=f"^{name}: .*{match}"):
            call()


NESTED = [[1], [[2], [3, 4]]]  # NumPy makes no array of its second element
NO_IDS = {
    "None": (None, "token_ids must be a list of integer arrays, got NoneType"),
    "an int": (5, "token_ids must be a list of integer arrays, got int"),
    "a str": ("ab", "token_ids must be a list of integer arrays, got str"),
    "a scalar": (np.array(5), r"token_ids must be a list of integer arrays, got one of shape \(\)"),
    "one source": ([5, 0], r"source 0 must be one-dimensional, got \(\)"),
    "a list of None": ([None], "source 0 must be integers, got NoneType"),
    "a source of None": ([[5], [None]], "source 1 must be integers, got NoneType"),
    "a list of texts": (["ab"], "source 0 must be integers, got str"),
    "large ints": (
        [[5, 2**70]],
        "source 0 must be integers of 64 bits, got 1180591620717411303424",
    ),
    "nested lists": (NESTED, "source 1 must be integers, got lists of different lengths"),
}


@pytest.mark.parametrize("thing", NO_IDS)
@pytest.mark.parametrize("operation", ["generate", "forward"])
def test_what_is_no_list_of_ids(marian, operation, thing):
    """Errors were those of Python and NumPy: 'NoneType' object is not iterable, inhomogeneous
    shape."""
    junk, message = NO_IDS[thing]
    with pytest.raises((TypeError, ValueError), match=f"^{operation}: {message}"):
        getattr(marian.ours, operation)(junk)


def test_what_is_no_text_nor_ids(marian):
    model = marian.ours
    scalar = np.array("ab")
    for method in (model.translate, model.translate_stream, lambda t: model.n_best_stream(t, 1)):
        with pytest.raises(TypeError, match=r"texts must be an iterable of str, got one of shape"):
            method(scalar)
    with pytest.raises(TypeError, match=r"^translate: prefix must be a str, or an iterable of one"):
        model.translate(["ka"], prefix=scalar)
    for junk in (None, 5, "ab", scalar):
        with pytest.raises(TypeError, match=r"^score: pairs must be an iterable of \(source, tar"):
            model.score(junk)
    with pytest.raises(ValueError, match=r"^score: source 0 must be integers, got lists of diff"):
        model.score([(NESTED, "ka")])
    with pytest.raises(ValueError, match=r"^score: target 0 must be integers, got lists of diff"):
        model.score([("ka", NESTED)])
    with pytest.raises(ValueError, match=r"^generate: prefix 0 must be integers, got lists of"):
        model.generate([[5, 0]], prefix=NESTED)
    for junk, message in (
        (None, "must be integers, got NoneType"),
        ("ab", "must be integers, got str"),
        ([0.5], "must be integers, got float64"),
        (5, r"must be one-dimensional, got \(\)"),
        (NESTED, "must be integers, got lists of different lengths"),
        ([-1], "holds the id -1, outside the vocabulary"),
        ([2**62], "holds the id 4611686018427387904, outside the vocabulary"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^decode: ids {message}"):
            model.decode(junk)
    assert model.decode([]) == ""


def test_the_least_length_is_at_most_the_greatest(marian):
    with pytest.raises(
        ValueError, match=r"min_new_tokens \(9\) must be at most max_new_tokens \(5"
    ):
        marian.ours.translate(["ka"], min_new_tokens=9, max_new_tokens=5)


def test_generate_gives_as_many_targets_as_it_was_asked_for(marian):
    """Where there are fewer, those behind them were taken for another source's."""
    model = marian.ours
    ids = model.encode_texts(["ka", "lo"])
    end = model.settings.eos_token_id[0]
    only = [n for n in range(model.network.vocab_size) if n not in (5, end)]
    options = {"beam_size": 4, "max_new_tokens": 1, "suppress_tokens": only}
    (found, scores) = model.generate(ids, num_return_sequences=4, return_scores=True, **options)
    assert len(found) == len(scores) == 8
    assert min(scores[0], scores[4]) > -math.inf
    assert scores[3] == scores[7] == -math.inf
    assert found[3].size == found[7].size == 0
    assert found[3].dtype == np.int64


def test_unknown_characters_warn(marian):
    with pytest.warns(fm.UnknownCharacterWarning, match=r"text 1: '鲸' \(U\+9CB8\) at character 4"):
        marian.ours.translate(["ka", "lo 鲸 ka"], max_new_tokens=3)
    assert [str(piece) for piece in marian.ours.unknown("鲸")] == ["'鲸' (U+9CB8) at character 1"]
    assert marian.ours.tokenize("kalo") == marian.tokenizer.tokenize("kalo")


def test_broken_checkpoints(tmp_path, marian, monkeypatch):
    for file in marian.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"fastmha\[text\]\""):
        fm.load(tmp_path)
    monkeypatch.undo()
    for name in ("source.spm", "vocab.json", "model.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
            fm.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    rewrite_config(tmp_path, vocab_size=99)
    with pytest.raises(ValueError, match=r"config\.json"):
        fm.load(tmp_path)


def test_scores_are_finite_and_fall_with_length(marian):
    ((first, second),) = marian.ours.n_best_stream(["kalo"], 2)
    assert math.isfinite(first.score)
    assert first.score >= second.score


def test_fingerprints_tell_models_apart(made):
    prints = {made(name).ours.fingerprint() for name in ("marian", "t5", "bart")}
    assert len(prints) == 3
    assert made("t5").ours.fingerprint() in prints


def test_unknown_characters_of_a_prefix_and_a_stream_are_told():
    """They vanish from the result, and the reader must know."""
    demo = fm.load(fm.demo_model_path())
    with pytest.warns(fm.UnknownCharacterWarning, match="prefix.* holds characters unknown"):
        demo.translate(["我想吃汉堡"], prefix="I ♥")
    with pytest.warns(fm.UnknownCharacterWarning, match="♥"):
        list(demo.stream("我♥"))


def test_models_say_why_they_cannot_be_pickled():
    with pytest.raises(TypeError, match="cannot be pickled or copied deeply: in another process"):
        pickle.dumps(fm.load(fm.demo_model_path()))
