"""What turns text into ids and ids into text: a sentencepiece model, or a tokenizer.json.

Neither puts anything around a text; see translation_texts.py for what a model expects there.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmha._extras import require
from fastmha.texts import make_threads

__all__ = ["SentencePieces", "TokenizerJson", "UnknownCharacter", "Vocabulary"]

SPACE = "▁"  # how pieces write a space, which begins most words

# What transformers' clean_up_tokenization_spaces takes a space away from.
CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True)
class UnknownCharacter:
    """A piece of text that the tokenizer does not know, and where it begins, counted in characters
    from 0."""

    text: str
    position: int

    def __str__(self) -> str:
        code_points = " ".join(f"U+{ord(character):04X}" for character in self.text)
        return f"{self.text!r} ({code_points}) at character {self.position + 1}"


class Vocabulary(ABC):
    """Texts <-> ids of one language, or of all that share it.

    Attributes
    ----------
    special : mapping
        Tokens that are no text -> ids. In a text they stand for themselves, in decoded text they
        are left out.
    unknown_id : int or None
        What stands for characters that have no token; None: all have.
    """

    special: Mapping[str, int]
    unknown_id: int | None
    # whether spaces before punctuation are taken out of decoded text
    clean_up = False

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with nothing around them."""

    @abstractmethod
    def id(self, token: str) -> int | None: ...

    @abstractmethod
    def token(self, id_: int) -> str | None: ...

    def labels(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for, to show it."""
        names = ((id_, self.token(id_)) for id_ in ids)
        return [f"#{id_}" if name is None else name for id_, name in names]

    @property
    @abstractmethod
    def tokens(self) -> Mapping[str, int]:
        """All of them, with their ids."""

    @property
    def size(self) -> int:
        """All ids lie below it."""
        return max(self.tokens.values(), default=-1) + 1

    @abstractmethod
    def unknown(self, text: str) -> list[UnknownCharacter]:
        """The pieces of `text` that have no token."""

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str: ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens and ids past the vocabulary are left out."""
        text = self._decode(ids)
        for spaced, mark in CLEANED if self.clean_up else ():
            text = text.replace(spaced, mark)
        return text


class SentencePieces(Vocabulary):
    """A sentencepiece model whose pieces have the ids that a checkpoint gives them.

    Parameters
    ----------
    model : sentencepiece.SentencePieceProcessor
        See :func:`read_pieces`.
    ids : mapping, optional
        Piece -> id; the model's own when not given.
    shift : int, default 0
        What is added to the model's own ids: fairseq's checkpoints have a token more in front.
    special : mapping
        Tokens that are no pieces -> ids.
    unknown : str, default "<unk>"
        The special token that stands for what has no id.
    codes : bool, default False
        Whether a text may begin with a code like ``>>fra<<``, which is one token.
    """

    def __init__(
        self,
        model: Any,
        ids: Mapping[str, int] | None = None,
        *,
        special: Mapping[str, int],
        shift: int = 0,
        unknown: str = "<unk>",
        codes: bool = False,
    ) -> None:
        self._model = model
        if ids is None:
            pieces = model.id_to_piece(list(range(model.get_piece_size())))
            ids = {piece: id_ + shift for id_, piece in enumerate(pieces)}
        self._ids = {**ids, **special}
        self.special = dict(special)
        self.unknown_id = self._ids[unknown]
        self._names = {id_: token for token, id_ in self._ids.items()}
        self._left_out = frozenset(self.special.values())
        # The longest first: one may begin like another.
        alone = [re.escape(token) for token in sorted(special, key=len, reverse=True)]
        if codes:
            alone.insert(0, r"\A>>.*?<<")
        self._alone = re.compile("|".join(f"({token})" for token in alone), re.DOTALL)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # one thread: it takes microseconds a sentence, and callers know how many threads there are
        found = [self._alone.search(text) is not None for text in texts]
        plain = [text for text, split in zip(texts, found, strict=True) if not split]
        pieces = iter(self._model.encode(plain, out_type=str, num_threads=1) if plain else ())
        return [
            self._ids_of(self._tokens_of(text) if split else next(pieces))
            for text, split in zip(texts, found, strict=True)
        ]

    def _ids_of(self, tokens: Sequence[str]) -> list[int]:
        ids, unknown = self._ids, self.unknown_id
        assert unknown is not None
        return [ids.get(token, unknown) for token in tokens]

    def _tokens_of(self, text: str) -> list[str]:
        """Special tokens and codes as they stand, and the pieces of what is between them."""
        tokens: list[str] = []
        end = 0
        for match in self._alone.finditer(text):
            tokens += self._model.encode(text[end : match.start()], out_type=str)
            tokens.append(match.group())
            end = match.end()
        tokens += self._model.encode(text[end:], out_type=str)
        return tokens

    def _decode(self, ids: Sequence[int]) -> str:
        tokens = [self._names[n] for n in ids if n in self._names and n not in self._left_out]
        # Pieces that only another model knows (of the source) come back as they are.
        return str(self._model.decode_pieces(tokens)).replace(SPACE, " ").strip()

    def id(self, token: str) -> int | None:
        return self._ids.get(token)

    def token(self, id_: int) -> str | None:
        return self._names.get(id_)

    @property
    def tokens(self) -> Mapping[str, int]:
        return self._ids

    def unknown(self, text: str) -> list[UnknownCharacter]:
        return list(self._unknown(text))

    def _unknown(self, text: str) -> Iterator[UnknownCharacter]:
        """Pieces come in the order of the text; what normalisation has changed is not found there
        and moves nothing."""
        place = 0
        for token in self._tokens_of(text):
            surface = token.replace(SPACE, "")
            at = text.find(surface, place) if surface else -1
            if surface and self._ids.get(token, self.unknown_id) == self.unknown_id:
                yield UnknownCharacter(surface, place if at < 0 else at)
            if at >= 0:
                place = at + len(surface)


class TokenizerJson(Vocabulary):
    """A tokenizer of the library tokenizers, which came from a tokenizer.json.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    unknown_id : int or None
    """

    def __init__(self, tokenizer: Any, unknown_id: int | None) -> None:
        tokenizer.no_padding()  # many a file asks for it; here nothing is ever padded
        tokenizer.no_truncation()
        self.tokenizer, self.unknown_id = tokenizer, unknown_id
        added = tokenizer.get_added_tokens_decoder()
        self.special = {token.content: id_ for id_, token in added.items() if token.special}
        # without offsets, where this version has it
        self._encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        make_threads(self.tokenizer)
        # a tuple would pass as a pair of texts, a subclass of str as nothing at all
        encodings = self._encode([str(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the file itself puts in front of a text and behind it."""
        encoding = self.tokenizer.encode("a")
        inner = [n for n, special in enumerate(encoding.special_tokens_mask) if not special]
        if not inner:
            return (), tuple(encoding.ids)
        return tuple(encoding.ids[: inner[0]]), tuple(encoding.ids[inner[-1] + 1 :])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def id(self, token: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token)
        return found

    def token(self, id_: int) -> str | None:
        found: str | None = self.tokenizer.id_to_token(id_)
        return found

    @property
    def tokens(self) -> Mapping[str, int]:
        found: Mapping[str, int] = self.tokenizer.get_vocab()
        return found

    def unknown(self, text: str) -> list[UnknownCharacter]:
        if self.unknown_id is None:
            return []
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return [
            UnknownCharacter(text[start:end], start)
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ == self.unknown_id and text[start:end].strip()
        ]


def read_pieces(file: Path) -> Any:
    """The sentencepiece model in `file`.

    Raises
    ------
    ModuleNotFoundError
        sentencepiece is not installed; ``pip install "fastmha[text]"`` brings it.
    FileNotFoundError, ValueError
        The file does not exist, or is no sentencepiece model.
    """
    sentencepiece = require("sentencepiece", "text", "loading this model's tokenizer")
    if not file.is_file():
        raise FileNotFoundError(f"load: {file} does not exist")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        model.encode("a", out_type=str)  # an empty file shows here
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{file}: broken or not a sentencepiece model: {error}") from error
    return model
