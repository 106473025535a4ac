"""Texts and their tokenizers: what can be wrong with a text, tokenizer.json or vocab.txt -> ids."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastmha import _core
from fastmha._extras import require
from fastmha._types import Int64
from fastmha.config import read_json
from fastmha.nn.ragged import check_iterable

__all__ = [
    "TextTokenizer",
    "check_many",
    "check_text",
    "make_threads",
    "read_tokenizer",
    "tracked",
]

# The special tokens of a vocab.txt and how BERT writes them; tokenizer_config.json may differ.
SPECIAL = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
# How many threads tokenizers makes, once in a process, when it first gets several texts.
POOL_SIZE = "RAYON_NUM_THREADS"


def check_text(what: str, text: object) -> None:
    """Tokenizers take Unicode text alone; a str may hold surrogates, too."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds U+{ord(text[error.start]):04X} at character {error.start + 1}, a lone "
            "surrogate, which is no character (bytes that were not UTF-8?); decode them with their "
            "own encoding, or with errors='replace'"
        ) from None


def check_many(operation: str, texts: object) -> None:
    """One text is an iterable of its characters: a result for each would surprise."""
    if isinstance(texts, str):
        raise TypeError(f"{operation}: texts must be an iterable of str, got one str; pass [text]")
    check_iterable(f"{operation}: texts", texts, "an iterable of str")


class TextTokenizer:
    """Texts -> ids, special tokens included, cut to the longest length that the model takes.

    Texts are tokenised as they stand: nothing is stripped or cleaned before the tokenizer's own
    rules apply.
    """

    def __init__(self, tokenizer: Any, max_length: int, side: str = "right") -> None:
        special = tokenizer.num_special_tokens_to_add(False)
        if max_length < special:
            raise ValueError(
                f"the longest text ({max_length} tokens) is too short for {special} special tokens"
            )
        self.max_length = max_length
        self._tokenizer = tokenizer
        tokenizer.no_padding()  # many a file asks for it; here nothing is ever padded
        tokenizer.enable_truncation(max_length, direction=side)
        # without offsets, where this version has it
        self._encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        vocab_size: int,
        max_length: int,
        *,
        asked_length: int | None = None,
        lowercase: bool = False,
    ) -> "TextTokenizer":
        """The tokenizer of a checkpoint.

        Parameters
        ----------
        directory : path
            With tokenizer.json, or vocab.txt of a BERT; tokenizer_config.json where present.
        vocab_size : int
            Ids that the model knows.
        max_length : int
            Tokens that the model takes.
        asked_length : int, optional
            Where texts are cut off; what tokenizer_config.json says when not given. Never beyond
            `max_length`.
        lowercase : bool, default False
            Lower-case every text first, as sentence-transformers does: by the tokenizer's own rule,
            unless that is already part of it.

        Raises
        ------
        FileNotFoundError
            Neither file exists.
        ValueError
            A broken file, or a tokenizer with more ids than the model knows.
        """
        file = directory / "tokenizer_config.json"
        config = read_json(file) if file.is_file() else {}
        _check_config(config, file)
        if (directory / "tokenizer.json").is_file():
            tokenizer = read_tokenizer(directory / "tokenizer.json", vocab_size)
            _apply_config(tokenizer, config)
            _apply_prefix_space(tokenizer, config)
        elif (directory / "vocab.txt").is_file():
            tokenizer = _from_vocabulary(directory / "vocab.txt", config, vocab_size)
        else:
            raise FileNotFoundError(
                f"load: {directory} has no tokenizer.json and no vocab.txt; transformers writes "
                "one: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
            )
        if lowercase:
            _lower_case(tokenizer)
        limit = config.get("model_max_length") if asked_length is None else asked_length
        # transformers writes 1e30 for "no limit"
        if isinstance(limit, int | float) and 0 < limit < max_length:
            max_length = int(limit)
        truncation = tokenizer.truncation or {}
        side = config.get("truncation_side", truncation.get("direction", "right"))
        _try(tokenizer, directory)
        return cls(tokenizer, max_length, side)

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        first: int = 0,
        operation: str = "encode",
    ) -> list[Int64]:
        """The ids of each text. As many threads as get_num_threads() said at the first call work on
        many texts, and the GIL is released meanwhile.

        Parameters
        ----------
        texts : sequence of str
        prompt : str, default ""
            Put before each.
        first : int, default 0
            The number of the first text, for messages.
        operation : str, default "encode"
            In whose name errors are.

        Raises
        ------
        TypeError
            Something else than a str.
        ValueError
            A text with a lone surrogate.
        """
        # a tuple would pass as a pair of texts
        if not all(type(text) is str for text in texts):
            self._check(operation, texts, first)
            texts = [str(text) for text in texts]  # subclasses of str
        try:
            make_threads(self._tokenizer)
            encodings = self._encode([prompt + text for text in texts] if prompt else texts)
        except TypeError:  # all that tokenizers says about a surrogate
            check_text(f"{operation}: prompt", prompt)
            self._check(operation, texts, first)
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{operation}: the tokenizer failed: {error}") from error
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def _check(self, operation: str, texts: Sequence[str], first: int) -> None:
        for n, text in enumerate(texts, first):
            check_text(f"{operation}: texts[{n}]", text)

    def tokens(self, ids: Int64) -> list[str]:
        """What each id stands for."""
        names = map(self._tokenizer.id_to_token, ids.tolist())
        return [f"#{i}" if name is None else name for i, name in zip(ids, names, strict=True)]


def read_tokenizer(file: Path, vocab_size: int) -> Any:
    """The tokenizer in `file`, which may not know more tokens than the model, `vocab_size`."""
    tokenizers = require("tokenizers", "text", "loading a model")
    if not file.is_file():
        raise FileNotFoundError(f"load: {file} does not exist")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{file}: broken or not a tokenizer: {error}") from error
    _check_size(tokenizer, file, vocab_size)
    return tokenizer


def _check_size(tokenizer: Any, file: Path, vocab_size: int) -> None:
    if tokenizer.get_vocab_size() > vocab_size:
        raise ValueError(
            f"{file}: holds {tokenizer.get_vocab_size()} tokens, config.json gives the model "
            f"{vocab_size}"
        )


def _check_config(config: dict[str, Any], file: Path) -> None:
    flags = (True, False, None)
    for name, values in (
        ("truncation_side", ("left", "right")),
        ("do_lower_case", flags),
        ("strip_accents", flags),
        ("tokenize_chinese_chars", flags),
        ("add_prefix_space", flags),
    ):
        value = config.get(name, values[0])
        if not any(value is allowed or value == allowed for allowed in values):
            raise ValueError(f"{file}: {name} must be one of {values}, got {value!r}")


def _try(tokenizer: Any, directory: Path) -> None:
    """What is wrong with a tokenizer should show when it is loaded."""
    try:
        types = tokenizer.encode("a").type_ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is no Exception
        raise ValueError(f"{directory}: broken tokenizer: {error}") from error
    if any(types):
        raise ValueError(
            f"{directory}: the tokenizer gives tokens of a single text other types than 0"
        )


def _apply_config(tokenizer: Any, config: dict[str, Any]) -> None:
    """What tokenizer_config.json says about a BERT's normaliser counts, as in transformers."""
    normalizers = require("tokenizers.normalizers", "text", "loading a model")
    old = tokenizer.normalizer
    if isinstance(old, normalizers.BertNormalizer):
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=old.clean_text,
            handle_chinese_chars=_flag(config, "tokenize_chinese_chars", old.handle_chinese_chars),
            strip_accents=config.get("strip_accents", old.strip_accents),
            lowercase=_flag(config, "do_lower_case", old.lowercase),
        )


def _apply_prefix_space(tokenizer: Any, config: dict[str, Any]) -> None:
    """Whether a text begins as if a space stood before it: for RoBERTa's tokenizer it is
    tokenizer_config.json that says so in transformers, False when it does not."""
    tokenizers = require("tokenizers", "text", "loading a model")
    old = tokenizer.pre_tokenizer
    is_roberta = str(config.get("tokenizer_class")).startswith("Roberta")
    if is_roberta and isinstance(old, tokenizers.pre_tokenizers.ByteLevel):
        old.add_prefix_space = _flag(config, "add_prefix_space", False)
        tokenizer.pre_tokenizer = old


def _lower_case(tokenizer: Any) -> None:
    normalizers = require("tokenizers.normalizers", "text", "loading a model")
    old = tokenizer.normalizer
    rules = list(old) if isinstance(old, normalizers.Sequence) else [old] if old else []
    if not any(isinstance(rule, normalizers.Lowercase) for rule in rules):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rules])


def make_threads(tokenizer: Any) -> None:
    """Let tokenizers make its threads, as many as everything else here runs on. It makes them
    once, as many as a variable says then; what a user has put there counts."""
    global _threads_are_made
    if _threads_are_made:
        return
    if POOL_SIZE not in os.environ:
        os.environ[POOL_SIZE] = str(_core.get_num_threads())
        try:
            tokenizer.encode_batch(["", ""])
        finally:  # other processes that start from here get nothing of it
            os.environ.pop(POOL_SIZE, None)
    _threads_are_made = True


_threads_are_made = False


def _from_vocabulary(file: Path, config: dict[str, Any], vocab_size: int) -> Any:
    """BERT's tokenizer from its vocabulary, one token a line."""
    tokenizers = require("tokenizers", "text", "loading a model")
    try:
        lines = file.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8: {error}") from error
    if lines[-1] == "":
        lines.pop()
    vocabulary = {token.removesuffix("\r"): id_ for id_, token in enumerate(lines)}
    names = {kind: _content(config.get(kind, usual)) for kind, usual in SPECIAL.items()}
    cls, sep, unknown = (names[kind] for kind in ("cls_token", "sep_token", "unk_token"))
    missing = [token for token in (cls, sep, unknown) if token not in vocabulary]
    if missing:
        raise ValueError(f"{file}: not the vocabulary of a BERT: no {', '.join(missing)}")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100)
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(config, "tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),  # null: when lower-casing
        lowercase=_flag(config, "do_lower_case", True),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, vocabulary[token]) for token in (cls, sep)],
    )
    tokenizer.add_special_tokens([token for token in names.values() if token in vocabulary])
    _check_size(tokenizer, file, vocab_size)
    return tokenizer


def _flag(config: dict[str, Any], name: str, otherwise: bool) -> bool:
    value = config.get(name)
    return otherwise if value is None else bool(value)


def _content(token: Any) -> str:
    """Tokens are strings, or objects that hold one."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


Item = TypeVar("Item")


def tracked(
    items: Iterable[Item],
    size: Callable[[Item], int],
    total: int | None,
    progress: bool,
    what: str,
) -> Iterator[Item]:
    """`items`, with a progress bar on stderr when asked for."""
    if not progress:
        yield from items
        return
    console = require("rich.console", "cli", "progress=True").Console(stderr=True)
    with require("rich.progress", "cli", "progress=True").Progress(
        console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))
