"""Texts of encoder-decoder checkpoints: source texts -> ids with all that the model expects around
them, target ids -> texts, and how a family is told languages.

    kind (tokenizer_class)    source                   target
    Marian                    [>>code<<] text </s>     text </s>
    M2M100, NLLB, mBART-50    language text </s>       language text </s>
    mBART                     text </s> language       text </s>, with the language as start token
    T5                        text </s>                text </s>
    BART and any other        what tokenizer.json puts around it

Files that are read: tokenizer.json, or else source.spm, target.spm and vocab.json (Marian),
sentencepiece.bpe.model with vocab.json (M2M100) or without (mBART, NLLB), spiece.model (T5);
tokenizer_config.json, special_tokens_map.json and added_tokens.json where present. Texts are
tokenised as they stand: like transformers' MarianTokenizer, Marian's applies no Moses
normalisation of punctuation, whether sacremoses is installed or not.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmha._types import Int64
from fastmha.config import read_json
from fastmha.decoding import GenerationSettings
from fastmha.texts import check_text, read_tokenizer
from fastmha.vocabularies import SentencePieces, TokenizerJson, Vocabulary, read_pieces

__all__ = [
    "LanguageError",
    "TextTooLongError",
    "TranslationTexts",
    "read_pair",
    "read_translation_texts",
]

# The languages of checkpoints whose files do not list them, in the order of their ids. (NLLB's 202
# are in its tokenizer.json and tokenizer_config.json.)
MBART = [
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
]  # fmt: skip
MBART50 = [
    *MBART,
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK",
    "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN",
    "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
]  # fmt: skip
M2M100 = [
    "af", "am", "ar", "ast", "az", "ba", "be", "bg", "bn", "br", "bs", "ca", "ceb", "cs", "cy",
    "da", "de", "el", "en", "es", "et", "fa", "ff", "fi", "fr", "fy", "ga", "gd", "gl", "gu", "ha",
    "he", "hi", "hr", "ht", "hu", "hy", "id", "ig", "ilo", "is", "it", "ja", "jv", "ka", "kk", "km",
    "kn", "ko", "lb", "lg", "ln", "lo", "lt", "lv", "mg", "mk", "ml", "mn", "mr", "ms", "my", "ne",
    "nl", "no", "ns", "oc", "or", "pa", "pl", "ps", "pt", "ro", "ru", "sd", "si", "sk", "sl", "so",
    "sq", "sr", "ss", "su", "sv", "sw", "ta", "th", "tl", "tn", "tr", "uk", "ur", "uz", "vi", "wo",
    "xh", "yi", "yo", "zh", "zu",
]  # fmt: skip
WMT21 = ["en", "ha", "is", "ja", "cs", "ru", "zh", "de"]
# The pieces that fairseq's dictionaries begin with, which sentencepiece's models have elsewhere.
FAIRSEQ = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


@dataclass(frozen=True)
class Languages:
    """How the tokenizers of a family write languages.

    Attributes
    ----------
    token : re.Pattern
        The token of a language; its group is the name that users give.
    source : str, optional
        The source language when nobody says which.
    behind : bool
        The language stands behind the end token of a source, not in front of its text.
    starts : bool
        A target starts with its language; otherwise it is the first token that is generated.
    of_target : bool
        What stands in front of a source is the language of its target.
    """

    token: re.Pattern[str]
    source: str | None = None
    behind: bool = False
    starts: bool = False
    of_target: bool = False


UNDERSCORED = re.compile(r"([a-z]{2}_[A-Z]{2})")  # en_XX
LANGUAGES = {
    "MarianTokenizer": Languages(re.compile(r">>(.+)<<"), of_target=True),
    "MBartTokenizer": Languages(UNDERSCORED, "en_XX", behind=True, starts=True),
    "MBart50Tokenizer": Languages(UNDERSCORED, "en_XX"),
    "M2M100Tokenizer": Languages(re.compile(r"__([a-z]{2,3})__"), "en"),
    "NllbTokenizer": Languages(re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"), "eng_Latn"),
}
# What config.json's model_type means when no file names the class of the tokenizer.
USUAL_KINDS = {
    **{"marian": "MarianTokenizer", "mbart": "MBartTokenizer", "m2m_100": "M2M100Tokenizer"},
    **{"t5": "T5Tokenizer", "mt5": "T5Tokenizer"},
}


class TextTooLongError(ValueError):
    """A source with more tokens than the model can read."""

    def __init__(self, index: int, tokens: int, longest: int) -> None:
        self.index = index
        self.reason = f"{tokens} tokens, the model has {longest} positions; split it, or truncate"
        super().__init__(f"translate: text {index} has {self.reason}")


class LanguageError(ValueError):
    """A language that is not known, or not to be said, or none where one must be.

    Attributes
    ----------
    argument : str
        ``src_lang`` or ``tgt_lang``.
    """

    def __init__(
        self, argument: str, problem: str, languages: Iterable[str] = (), got: str = ""
    ) -> None:
        self.argument = argument
        self._problem, self._languages, self._got = problem, list(languages), got
        super().__init__(f"translate: {self.words(argument, len(self._languages))}")

    def words(self, name: str, most: int) -> str:
        """What is wrong with the argument, which the user knows as `name`; the `most` first
        languages are listed."""
        listed = ", ".join(self._languages[:most])
        more = len(self._languages) - most
        return f"{name} {self._problem}{listed}{f' and {more} more' if more > 0 else ''}{self._got}"


@dataclass
class TranslationTexts:
    """Source texts -> ids, target ids -> texts; made by :func:`read_translation_texts`.

    Attributes
    ----------
    source, target : Vocabulary
    before, behind : tuple of int
        What stands around every source, its language apart.
    convention : Languages, optional
        How languages are written; None: the model is not told any.
    languages : mapping
        Their names -> ids.
    src_lang, tgt_lang : str, optional
        What the checkpoint says.
    most_tokens : int, optional
        The most tokens of a source that is cut off; None: as many as the model takes.
    cut_left : bool
        Such a source keeps its end.
    """

    source: Vocabulary
    target: Vocabulary
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    convention: Languages | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    src_lang: str | None = None
    tgt_lang: str | None = None
    most_tokens: int | None = None
    cut_left: bool = False

    def sources(
        self,
        texts: Sequence[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        longest: int | None = None,
        truncate: bool = False,
        first: int = 0,
    ) -> list[Int64]:
        """The ids of each source text.

        Parameters
        ----------
        texts : sequence of str
        src_lang, tgt_lang : str, optional
            Languages; what the checkpoint says when not given.
        longest : int, optional
            The most tokens that the model takes.
        truncate : bool, default False
            Cut longer ones off; otherwise they are an error.
        first : int, default 0
            The number of the first text, for messages.

        Raises
        ------
        TypeError
            Something else than a str.
        ValueError
            A text with a lone surrogate or with too many tokens, a language that is not known.
        """
        texts = _checked(texts, first)
        before, behind = self._around(src_lang, tgt_lang)
        sources = []
        for n, ids in enumerate(_encoded(self.source, texts), first):
            front = before
            if front and self._has_code(ids):
                front = self.before
            if truncate:
                ids = self._cut(ids, longest, len(front) + len(behind))
            whole = np.array([*front, *ids, *behind], np.int64)
            if longest is not None and len(whole) > longest:
                raise TextTooLongError(n, len(whole), longest)
            sources.append(whole)
        return sources

    def targets(self, texts: Sequence[str], *, first: int = 0) -> list[Int64]:
        """The ids of each target text, with nothing around them."""
        texts = _checked(texts, first)
        return [np.array(ids, np.int64) for ids in _encoded(self.target, texts)]

    def decode(self, ids: Int64) -> str:
        """The text of a target; special tokens are left out."""
        return self.target.decode(ids.tolist())

    def start(self, tgt_lang: str | None, settings: GenerationSettings) -> dict[str, int]:
        """The settings that make a target one of this language; none where the source says it, or
        `settings` do.

        Raises
        ------
        ValueError
            A language that is not known, or none where one must be said.
        """
        convention = self.convention
        if tgt_lang is None and convention is not None and not convention.of_target:
            said = settings.forced_bos_token_id is not None or (
                convention.starts and settings.decoder_start_token_id in self.languages.values()
            )
            if said:
                return {}
            tgt_lang = self.tgt_lang
            if tgt_lang is None:
                problem = "must say the language of the translation, one of "
                raise LanguageError("tgt_lang", problem, self.languages)
        if tgt_lang is None:
            return {}
        token = self.language("tgt_lang", tgt_lang)
        assert convention is not None
        if convention.of_target:
            return {}
        return {"decoder_start_token_id" if convention.starts else "forced_bos_token_id": token}

    def language(self, argument: str, name: str) -> int:
        """The token of the language called `name`."""
        if self.convention is None or not self.languages:
            raise LanguageError(argument, f"is {name!r}, this model is not told languages")
        if name not in self.languages:
            raise LanguageError(argument, "must be one of ", self.languages, f"; got {name!r}")
        return self.languages[name]

    def _around(
        self, src_lang: str | None, tgt_lang: str | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What stands in front of a source, and behind it."""
        convention = self.convention
        if convention is None:
            for argument, name in (("src_lang", src_lang), ("tgt_lang", tgt_lang)):
                if name is not None:
                    self.language(argument, name)
            return self.before, self.behind
        if convention.of_target:
            if src_lang is not None:
                raise LanguageError(
                    "src_lang", f"is {src_lang!r}, this model is told the target's language alone"
                )
            tokens = () if tgt_lang is None else (self.language("tgt_lang", tgt_lang),)
        else:
            name = src_lang or self.src_lang or convention.source
            tokens = () if name is None else (self.language("src_lang", name),)
        if convention.behind:
            return self.before, (*self.behind, *tokens)
        return (*tokens, *self.before), self.behind

    def _has_code(self, ids: Sequence[int]) -> bool:
        """A source that says itself which language it is translated into."""
        convention = self.convention
        if convention is None or not convention.of_target or not ids:
            return False
        return convention.token.fullmatch(self.source.token(ids[0]) or "") is not None

    def _cut(self, ids: list[int], longest: int | None, around: int) -> list[int]:
        limits = [limit for limit in (longest, self.most_tokens) if limit is not None]
        room = max(min(limits, default=len(ids) + around) - around, 0)
        if len(ids) <= room:
            return ids
        return ids[len(ids) - room :] if self.cut_left else ids[:room]


def _checked(texts: Sequence[str], first: int) -> Sequence[str]:
    for n, text in enumerate(texts, first):
        check_text(f"translate: texts[{n}]", text)
    return texts


def _encoded(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    try:
        return vocabulary.encode(texts)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"translate: the tokenizer failed: {error}") from error


# ---- from files ---------------------------------------------------------------------------------


def read_translation_texts(
    directory: Path, config: Mapping[str, Any], source_vocab_size: int, vocab_size: int
) -> TranslationTexts:
    """The tokenizers of a checkpoint.

    Parameters
    ----------
    directory : path
    config : mapping
        Its config.json.
    source_vocab_size, vocab_size : int
        The ids that the model knows.

    Raises
    ------
    ModuleNotFoundError
        tokenizers or sentencepiece is not installed; ``pip install "fastmha[text]"`` brings them.
    FileNotFoundError
        Files are missing.
    ValueError
        A broken file, or a tokenizer with more ids than the model knows.
    """
    files = _Files(directory, config)
    if files.kind == "MarianTokenizer":
        texts = _marian(files)
    elif (directory / "tokenizer.json").is_file():
        texts = _from_json(files, max(source_vocab_size, vocab_size))
    elif (directory / "vocab.json").is_file() and (directory / PIECES[0]).is_file():
        texts = _m2m100(files)
    else:
        texts = _from_pieces(files)
    for vocabulary, size in ((texts.source, source_vocab_size), (texts.target, vocab_size)):
        if vocabulary.size > size:
            raise ValueError(
                f"{directory}: the tokenizer has ids up to {vocabulary.size - 1}, config.json "
                f"gives the model {size} tokens"
            )
    return texts


PIECES = ("sentencepiece.bpe.model", "spiece.model")


class _Files:
    """The small files about a tokenizer, read and joined."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self.directory = directory
        self.settings: dict[str, Any] = {}
        # the later one counts
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (directory / name).is_file():
                self.settings |= read_json(directory / name)
        usual = USUAL_KINDS.get(str(config.get("model_type")))
        if usual == "M2M100Tokenizer" and not (directory / "vocab.json").is_file():
            usual = "NllbTokenizer"  # the same networks
        kind = self.settings.get("tokenizer_class") or config.get("tokenizer_class") or usual
        self.kind = str(kind).removesuffix("Fast")

    def special(self, name: str, usual: str) -> str:
        """A special token as it is written: a string, or an object that holds one."""
        token = self.settings.get(name, usual)
        return str(token.get("content", usual)) if isinstance(token, dict) else str(token)

    def more(self) -> list[str]:
        """Special tokens that have no name."""
        listed: list[Any] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = self.settings.get(name)
            listed += value if isinstance(value, list) else []
        return [str(t.get("content")) if isinstance(t, dict) else str(t) for t in listed]

    def added(self) -> dict[str, int]:
        """Tokens whose ids tokenizer_config.json or added_tokens.json says."""
        found: dict[str, int] = {}
        if (self.directory / "added_tokens.json").is_file():
            found |= _vocabulary(self.directory / "added_tokens.json")
        for id_, token in (self.settings.get("added_tokens_decoder") or {}).items():
            if not (isinstance(token, dict) and token.get("special", False)):
                raise ValueError(
                    f"{self.directory}: tokenizer_config.json adds a token that is not special, "
                    f"{token!r}, to a sentencepiece model; {SAVE}"
                )
            found[str(token["content"])] = int(id_)
        return found

    def common(self) -> dict[str, Any]:
        """What all kinds read in the same way."""
        longest = self.settings.get("model_max_length", 1e30)
        limited = isinstance(longest, int | float) and 0 < longest < 1e9  # 1e30: no limit
        return {
            "most_tokens": int(longest) if limited else None,
            "cut_left": self.settings.get("truncation_side") == "left",
            "src_lang": self.settings.get("src_lang"),
            "tgt_lang": self.settings.get("tgt_lang"),
        }

    def framed(self, source: Vocabulary, target: Vocabulary) -> TranslationTexts:
        """Texts that end with the end token, and are told languages as their kind is."""
        end = source.id(self.special("eos_token", "</s>"))
        if end is None:
            raise ValueError(f"{self.directory}: the tokenizer has no end token")
        convention = LANGUAGES.get(self.kind)
        languages = {}
        if convention is not None:
            if self.settings.get("legacy_behaviour"):  # of NLLB before transformers 4.30
                convention = dataclasses.replace(convention, behind=True)
            tokens = source.tokens if convention.of_target else source.special
            for token, id_ in sorted(tokens.items(), key=lambda item: item[1]):
                if match := convention.token.fullmatch(token):
                    languages[match[1]] = id_
            if not languages and not convention.of_target:
                # transformers adds them by itself, behind all others: ids that need not be the
                # model's
                raise ValueError(f"{self.directory}: no file says the ids of the languages; {SAVE}")
            if not languages:
                convention = None
        return TranslationTexts(
            source,
            target,
            behind=(end,),
            convention=convention,
            languages=languages,
            **self.common(),
        )


SAVE = (
    "let transformers write a tokenizer.json: "
    "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
)


def _marian(files: _Files) -> TranslationTexts:
    directory = files.directory
    unknown = files.special("unk_token", "<unk>")
    names = {unknown, files.special("eos_token", "</s>"), files.special("pad_token", "<pad>")}

    def pieces(model: str, vocabulary: str) -> SentencePieces:
        ids = _vocabulary(directory / vocabulary)
        if unknown not in ids:
            raise ValueError(f"{directory / vocabulary}: does not hold {unknown}")
        special = {token: ids[token] for token in names if token in ids} | files.added()
        model_ = read_pieces(directory / model)
        return SentencePieces(model_, ids, special=special, unknown=unknown, codes=True)

    separate = files.settings.get("separate_vocabs", False)
    source = pieces("source.spm", "vocab.json")
    target = pieces("target.spm", "target_vocab.json" if separate else "vocab.json")
    source.clean_up = target.clean_up = _clean_up(files)
    return files.framed(source, target)


def _m2m100(files: _Files) -> TranslationTexts:
    """Languages have the ids behind vocab.json, in a fixed order."""
    directory = files.directory
    ids = _vocabulary(directory / "vocab.json")
    codes = {"m2m100": M2M100, "wmt21": WMT21}.get(files.settings.get("language_codes", "m2m100"))
    if codes is None:
        raise ValueError(
            f"{directory}: language_codes must be m2m100 or wmt21, got "
            f"{files.settings['language_codes']!r}"
        )
    special = {token: ids[token] for token in FAIRSEQ if token in ids}
    special |= {f"__{code}__": len(ids) + n for n, code in enumerate(codes)}
    if "<unk>" not in special:
        raise ValueError(f"{directory / 'vocab.json'}: does not hold <unk>")
    model = read_pieces(directory / PIECES[0])
    pieces = SentencePieces(model, ids, special=special | files.added())
    pieces.clean_up = _clean_up(files)
    return files.framed(pieces, pieces)


def _from_pieces(files: _Files) -> TranslationTexts:
    """A sentencepiece model whose own ids count, apart from some at the beginning and the end."""
    directory = files.directory
    file = next((directory / name for name in PIECES if (directory / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"load: {directory} has no tokenizer; {SAVE}")
    model = read_pieces(file)
    count = model.get_piece_size()
    if files.kind == "T5Tokenizer":
        extra = files.settings.get("extra_ids", 100)
        special = {f"<extra_id_{n}>": count + extra - 1 - n for n in range(extra)}
        special |= {token: model.piece_to_id(token) for token in ("<pad>", "</s>", "<unk>")}
        pieces = SentencePieces(model, special=special | files.added())
    elif files.kind in LANGUAGES:
        codes = {"MBartTokenizer": MBART, "MBart50Tokenizer": MBART50}.get(files.kind, [])
        special = FAIRSEQ | {code: count + 1 + n for n, code in enumerate(codes)}
        if codes:
            special["<mask>"] = count + 1 + len(codes)
        pieces = SentencePieces(model, special=special | files.added(), shift=1)
    else:
        raise ValueError(
            f"{directory}: a sentencepiece model alone does not say the ids of a {files.kind}; "
            f"{SAVE}"
        )
    pieces.clean_up = files.kind != "NllbTokenizer" and _clean_up(files)
    return files.framed(pieces, pieces)


def _from_json(files: _Files, vocab_size: int) -> TranslationTexts:
    tokenizer = read_tokenizer(files.directory / "tokenizer.json", vocab_size)
    unknown = tokenizer.token_to_id(files.special("unk_token", "<unk>"))
    vocabulary = TokenizerJson(tokenizer, unknown)
    # As transformers does: pieces of BPE hold their spaces themselves.
    vocabulary.clean_up = type(tokenizer.model).__name__ != "BPE" and _clean_up(files)
    if files.kind in LANGUAGES:
        return files.framed(vocabulary, vocabulary)
    before, behind = vocabulary.around()
    return TranslationTexts(vocabulary, vocabulary, before, behind, **files.common())


def _clean_up(files: _Files) -> bool:
    return files.settings.get("clean_up_tokenization_spaces") is True


def _vocabulary(file: Path) -> dict[str, int]:
    """token -> id."""
    if not file.is_file():
        raise FileNotFoundError(f"load: {file} does not exist")
    ids = read_json(file)
    for token, id_ in ids.items():
        if type(id_) is not int or id_ < 0:
            raise ValueError(f"{file}: {token!r} must have an id of at least 0, got {id_!r}")
    return ids


def read_pair(
    directory: Path, source_vocab_size: int, vocab_size: int, *, end: int, unknown: int
) -> TranslationTexts:
    """The tokenizers of "fastmha-transformer", one file for each language; every source ends with
    `end`."""
    source, target = (
        TokenizerJson(read_tokenizer(directory / f"{language}_tokenizer.json", size), unknown)
        for language, size in (("source", source_vocab_size), ("target", vocab_size))
    )
    before, behind = source.around()
    if behind[-1:] != (end,):
        behind = (*behind, end)
    return TranslationTexts(source, target, before, behind)
