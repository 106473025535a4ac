"""Tokenizers of encoder-decoder checkpoints, id for id those of transformers, on small
sentencepiece models trained here."""

import json
import shutil
import sys

import numpy as np
import pytest
import transformers
from fastmha.decoding import GenerationSettings
from fastmha.translation_texts import read_translation_texts
from pieces import KINDS, SIZE, Models, made_up_lines, pieces_of, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

TEXTS = [
    *made_up_lines(40, seed=3),
    *("  Kalo   MINE", "a\tb", "鲸 kalo", "kalo 鲸鱼x", "x</s> y", "<unk> b", " lead", "..."),
    *("a\u00a0b", "▁ka lo", "ro_RO kalo", ">>fra<< kalo lo", ">>xyz<<kalo", ">> kalo", "<mask> ka"),
    *("__fr__ ka", "<extra_id_3> ka", "fra_Latn ka", "", "ü ñ", "ka\nlo"),
]
SETTINGS = GenerationSettings(decoder_start_token_id=2)
# Where transformers 5 leaves sentencepiece's normalisation when it makes a tokenizer of the model:
# spaces at the end, and all of it for mBART.
NORMALISED = ["trail  ", " ", "ﬁne ½ Å", "kalo\u200bmi"]
SENTENCEPIECE = [family for family in KINDS if family != "bart"]
EXACT = ("marian", "m2m_100", "t5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("pieces"))


def both(directory, family, trained, **settings):
    """Our tokenizer and transformers' own."""
    size = write_tokenizer(directory, family, trained, **settings)
    ours = read_translation_texts(directory, {"model_type": family}, size, size)
    return ours, getattr(transformers, KINDS[family]).from_pretrained(directory)


def compare(ours, theirs, texts, **languages):
    for text in texts:
        expected = theirs(text).input_ids
        (ids,) = ours.sources([text], **languages)
        assert ids.tolist() == expected, text
        decoded = theirs.decode(expected, skip_special_tokens=True)
        # sentencepiece leaves no space at the ends, where transformers 5 may (unknown characters)
        assert ours.decode(ids).strip() == decoded.strip(), text
    together = ours.sources(texts, **languages)
    assert [ids.tolist() for ids in together] == [theirs(text).input_ids for text in texts]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {}) for family in SENTENCEPIECE),
        ("marian", {"separate_vocabs": True}),
        ("marian", {"clean_up_tokenization_spaces": True}),
        ("nllb", {"legacy_behaviour": True}),
        ("mbart", {"src_lang": "ro_RO"}),
        ("t5", {"clean_up_tokenization_spaces": True}),
    ],
)
def test_ids_and_text_are_those_of_transformers(tmp_path, trained, family, settings):
    ours, theirs = both(tmp_path, family, trained, **settings)
    compare(ours, theirs, [*TEXTS, *(NORMALISED if family in EXACT else ())])


@pytest.mark.parametrize("family", ["mbart", "mbart50", "nllb", "t5"])
def test_tokenizer_json_as_transformers_saves_it(tmp_path, trained, family):
    both(tmp_path, family, trained)
    theirs = getattr(transformers, KINDS[family]).from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    ours = read_translation_texts(tmp_path / "saved", {"model_type": family}, len(theirs), 999)
    compare(ours, theirs, [*TEXTS, *NORMALISED])


@pytest.mark.parametrize(
    ("family", "source", "target"),
    [
        ("m2m_100", "fr", "zu"),
        ("mbart", "ro_RO", "de_DE"),
        ("mbart50", "sl_SI", "ar_AR"),
        ("nllb", "zho_Hans", "fra_Latn"),
    ],
)
def test_languages(tmp_path, trained, family, source, target):
    ours, theirs = both(tmp_path, family, trained)
    theirs.src_lang = source
    compare(ours, theirs, TEXTS, src_lang=source)
    token = {"m2m_100": f"__{target}__"}.get(family, target)
    name = "decoder_start_token_id" if family == "mbart" else "forced_bos_token_id"
    assert ours.start(target, SETTINGS) == {name: theirs.convert_tokens_to_ids(token)}
    with pytest.raises(ValueError, match=rf"tgt_lang must say the language .*{target}"):
        ours.start(None, SETTINGS)
    assert ours.start(None, SETTINGS.replace(forced_bos_token_id=7)) == {}
    ours.tgt_lang = target
    assert ours.start(None, SETTINGS) == ours.start(target, SETTINGS)
    for argument in ("src_lang", "tgt_lang"):
        with pytest.raises(ValueError, match=rf"{argument} must be one of .*{source}.*; got 'xx'"):
            ours.language(argument, "xx")
    with pytest.raises(ValueError, match="src_lang must be one of"):
        ours.sources(["ka"], src_lang="xx")


def test_marian_is_told_the_language_of_the_target_in_the_source(tmp_path, trained):
    ours, theirs = both(tmp_path, "marian", trained)
    assert sorted(ours.languages) == ["deu", "fra"]
    (ids,) = ours.sources(["kalo lo"], tgt_lang="fra")
    assert ids.tolist() == theirs(">>fra<< kalo lo").input_ids
    (ids,) = ours.sources([">>deu<< kalo lo"], tgt_lang="fra")  # the text knows better
    assert ids.tolist() == theirs(">>deu<< kalo lo").input_ids
    assert ours.start("fra", SETTINGS) == {}
    with pytest.raises(ValueError, match="src_lang is 'deu', this model is told the target's"):
        ours.sources(["ka"], src_lang="deu")
    with pytest.raises(ValueError, match="tgt_lang must be one of fra, deu; got 'eng'"):
        ours.sources(["ka"], tgt_lang="eng")


def test_marian_targets_have_a_model_of_their_own(tmp_path, trained):
    for settings in ({}, {"separate_vocabs": True}):
        ours, theirs = both(tmp_path, "marian", trained, **settings)
        for text in made_up_lines(20, seed=1):
            (ids,) = ours.targets([text])
            expected = theirs(text_target=text).input_ids
            assert [*ids.tolist(), theirs.eos_token_id] == expected
            assert ours.decode(ids) == theirs.decode(expected, skip_special_tokens=True)


def test_models_that_are_not_told_languages(tmp_path, trained):
    ours, _ = both(tmp_path, "t5", trained)
    for argument in ("src_lang", "tgt_lang"):
        with pytest.raises(ValueError, match=f"{argument} is 'fr', this model is not told lang"):
            ours.sources(["ka"], **{argument: "fr"})
    with pytest.raises(ValueError, match="tgt_lang is 'fr'"):
        ours.start("fr", SETTINGS)


def test_unknown_pieces_and_where_they_are(tmp_path, trained):
    for family in ("marian", "t5"):
        ours, _ = both(tmp_path / family, family, trained)
        pieces = ours.source.unknown("ka 鲸lo 鱼")
        assert [(piece.text, piece.position) for piece in pieces] == [("鲸", 3), ("鱼", 7)]
        assert ours.source.unknown("kalo mi") == []
    _, theirs = both(tmp_path / "json", "t5", trained)
    theirs.save_pretrained(tmp_path / "saved")
    ours = read_translation_texts(tmp_path / "saved", {"model_type": "t5"}, 999, 999)
    assert [(piece.text, piece.position) for piece in ours.source.unknown("ka 鲸")] == [("鲸", 3)]


def test_longest_sources(tmp_path, trained):
    ours, theirs = both(tmp_path, "marian", trained, model_max_length=12)
    text = "kalo mine tura shi " * 3
    with pytest.raises(ValueError, match=r"text 7 has \d+ tokens, the model has 9 positions; spl"):
        ours.sources(["ka", text], longest=9, first=6)
    whole = ours.sources([text], tgt_lang="fra")[0].tolist()
    for longest, most in ((9, 9), (30, 12), (None, 12), (2, 2)):
        (ids,) = ours.sources([text], tgt_lang="fra", longest=longest, truncate=True)
        assert ids.tolist() == [*whole[: most - 1], theirs.eos_token_id]
    ours.cut_left = True
    (ids,) = ours.sources([text], longest=9, truncate=True)
    assert ids.tolist() == whole[-9:]


def test_wrong_texts(tmp_path, trained):
    ours, _ = both(tmp_path, "marian", trained)
    for method in (ours.sources, ours.targets):
        with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
            method(["ka", 5])
        with pytest.raises(ValueError, match=r"texts\[3\] holds U\+D800 at character 2"):
            method(["ka", "x\ud800"], first=2)
    assert ours.sources([]) == []


def test_bart(tmp_path):
    size = write_tokenizer(tmp_path, "bart", None, clean_up_tokenization_spaces=True)
    theirs = transformers.BartTokenizer.from_pretrained(tmp_path)
    ours = read_translation_texts(tmp_path, {"model_type": "bart"}, size, size)
    texts = [text for text in TEXTS if "<mask>" not in text]  # which takes the space before it
    compare(ours, theirs, [*texts, *NORMALISED, "a , b ."])
    assert ours.source.unknown("鲸") == []
    (ids,) = ours.sources(["ka lo mi ne tu ra shi"], longest=5, truncate=True)
    assert ids.size == 5
    assert (ids[0], ids[-1]) == (0, 2)


# ---- what can be wrong with files ---------------------------------------------------------------


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_broken_files(tmp_path, trained):
    def read(family="marian", size=999):
        return read_translation_texts(tmp_path, {"model_type": family}, size, size)

    with pytest.raises(FileNotFoundError, match=r"no tokenizer; let transformers write a tokeniz"):
        read("bart")
    size = write_tokenizer(tmp_path, "marian", trained)
    with pytest.raises(ValueError, match=f"ids up to {size - 1}, config.json gives the model 99"):
        read(size=99)
    (tmp_path / "target.spm").unlink()
    with pytest.raises(FileNotFoundError, match=r"target.spm does not exist"):
        read()
    for content in (b"", b"not a model"):
        (tmp_path / "target.spm").write_bytes(content)
        with pytest.raises(ValueError, match=r"target.spm: broken or not a sentencepiece model"):
            read()
    shutil.copy(trained.target, tmp_path / "target.spm")
    rewrite(tmp_path / "vocab.json", lambda ids: ids.pop("<unk>"))
    with pytest.raises(ValueError, match=r"vocab.json: does not hold <unk>"):
        read()
    rewrite(tmp_path / "vocab.json", lambda ids: ids.update({"<unk>": "1"}))
    with pytest.raises(ValueError, match=r"'<unk>' must have an id of at least 0, got '1'"):
        read()


def test_models_that_do_not_say_their_ids(tmp_path, trained):
    size = write_tokenizer(tmp_path, "nllb", trained)

    def read(family, kind):
        rewrite(tmp_path / "tokenizer_config.json", lambda c: c.update({"tokenizer_class": kind}))
        return read_translation_texts(tmp_path, {"model_type": family}, size, size)

    assert len(read("m2m_100", None).languages) == 3  # no vocab.json: NLLB
    with pytest.raises(ValueError, match="does not say the ids of a PegasusTokenizer; let transf"):
        read("pegasus", "PegasusTokenizer")
    rewrite(tmp_path / "tokenizer_config.json", lambda c: c.pop("added_tokens_decoder"))
    with pytest.raises(ValueError, match="no file says the ids of the languages; let transform"):
        read("m2m_100", "NllbTokenizer")
    added = {str(SIZE + 1): {"content": "eng_Latn", "special": False}}
    rewrite(tmp_path / "tokenizer_config.json", lambda c: c.update({"added_tokens_decoder": added}))
    with pytest.raises(ValueError, match="adds a token that is not special"):
        read("m2m_100", "NllbTokenizer")


def test_old_files(tmp_path, trained):
    """Ids in added_tokens.json, tokens as objects in special_tokens_map.json, the class in
    config.json."""
    size = write_tokenizer(tmp_path, "mbart50", trained)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"xx_YY": size}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}})
    )
    config = {"model_type": "mbart", "tokenizer_class": "MBart50Tokenizer"}
    ours = read_translation_texts(tmp_path, config, size + 1, size + 1)
    assert ours.languages["xx_YY"] == size
    ids = ours.sources(["ka"], src_lang="xx_YY")[0]
    assert (ids[0], ids[-1]) == (size, 2)


def test_a_missing_package_names_the_extra(tmp_path, trained, monkeypatch):
    size = write_tokenizer(tmp_path, "marian", trained)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModuleNotFoundError, match=r"'sentencepiece': pip install \"fastmha\[text"):
        read_translation_texts(tmp_path, {"model_type": "marian"}, size, size)


def test_one_token_for_each_piece(trained):
    assert len(pieces_of(trained.source)) == SIZE - 3
    assert np.unique(pieces_of(trained.source)).size == SIZE - 3
