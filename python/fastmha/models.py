"""Whole models from checkpoint directories: config.json, weights in safetensors, tokenizers.

Encoders of Hugging Face are in encoder_model.py, the Transformer that translates is here. A new
kind of model is a class with `from_directory` and one line in MODEL_TYPES.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from fastmha._types import Float32, Float32Type, Int64, Integers, is_float32
from fastmha.config import config_from, read_json
from fastmha.encoder_model import EncoderModel
from fastmha.families import FAMILIES
from fastmha.generate import Hypothesis, beam_search, greedy_search
from fastmha.nn.module import UNSET, check_size
from fastmha.nn.transformer import Tokens, Transformer
from fastmha.sentence import read_sentence_settings
from fastmha.texts import check_text, read_tokenizer, tracked
from fastmha.weights import read_safetensors

__all__ = [
    "AttentionMaps",
    "TranslationConfig",
    "TranslationModel",
    "UnknownCharacter",
    "UnknownCharacterWarning",
    "demo_model_path",
    "load",
]

TokenIds = Sequence[Integers | Sequence[int]]
# Sentences that run together when nobody says otherwise: enough rows to fill the kernels, little
# memory.
BATCH_SIZE = 64


class UnknownCharacterWarning(UserWarning):
    """A text holds characters that the model has never seen; they are read as the unknown token."""


@dataclass(frozen=True)
class UnknownCharacter:
    """A piece of text that the tokenizer does not know, and where it begins, counted in characters
    from 0."""

    text: str
    position: int

    def __str__(self) -> str:
        code_points = " ".join(f"U+{ord(character):04X}" for character in self.text)
        return f"{self.text!r} ({code_points}) at character {self.position + 1}"


@dataclass(frozen=True)
class AttentionMaps:
    """Every attention weight of one translated sentence; row = the token that looks, column = the
    token looked at.

    Attributes
    ----------
    source, target : tuple of str
        Tokens of the source, and of the decoder's input (the start token, then the translation).
    translation : str
    encoder, decoder, cross : list of ndarray of float32
        Per layer (heads, S, S), (heads, T, T) and (heads, T, S).
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    translation: str
    encoder: list[Float32]
    decoder: list[Float32]
    cross: list[Float32]


@dataclass(frozen=True)
class TranslationConfig:
    """config.json of ``"model_type": "fastmha-transformer"``."""

    src_vocab_size: int
    tgt_vocab_size: int
    d_model: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    d_ff: int
    activation: str = "relu"
    norm_first: bool = False
    final_norm: bool = True
    norm_eps: float = 1e-5
    positions: str = "sinusoidal"
    scale_embedding: bool = True
    max_positions: int = 512
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int = 3

    def build(self) -> Transformer:
        """The model without its weights."""
        settings = dataclasses.asdict(self)
        del settings["unk_token_id"]  # the tokenizers' affair
        return Transformer(**settings, seed=UNSET)


class TranslationModel:
    """A Transformer with the tokenizers of its two languages; made by :func:`load`.

    Attributes
    ----------
    config : TranslationConfig
    transformer : Transformer

    Examples
    --------
    >>> import fastmha as fm
    >>> model = fm.load(fm.demo_model_path())
    >>> model.translate(["我想吃汉堡"])
    ['I want to eat a hamburger']
    """

    def __init__(
        self,
        config: TranslationConfig,
        transformer: Transformer,
        source_tokenizer: Any,
        target_tokenizer: Any,
    ) -> None:
        self.config, self.transformer = config, transformer
        self._source_tokenizer, self._target_tokenizer = source_tokenizer, target_tokenizer

    @classmethod
    def from_directory(cls, path: Path, config: dict[str, Any]) -> "TranslationModel":
        """Load config.json's model from its directory; :func:`load` reads the config and calls
        this."""
        settings = config_from(TranslationConfig, config, path / "config.json")
        try:
            transformer = settings.build()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path / 'config.json'}: {error}") from error
        source = read_tokenizer(path / "source_tokenizer.json", settings.src_vocab_size)
        target = read_tokenizer(path / "target_tokenizer.json", settings.tgt_vocab_size)
        weights = read_safetensors(path)
        try:
            transformer.load_state_dict(weights)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error
        return cls(settings, transformer, source, target)

    def translate(
        self,
        texts: Sequence[str],
        *,
        beam_size: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = BATCH_SIZE,
        progress: bool = False,
    ) -> list[str]:
        """Translate sentences.

        Parameters
        ----------
        texts : sequence of str
            Blank ones give empty strings.
        beam_size : int, default 1
            Hypotheses kept per sentence; 1 is greedy search.
        max_new_tokens : int, optional
            The longest translation in tokens, the end token included; as many as the model has
            positions when not given.
        batch_size : int, default 64
            Sentences that run together. Results do not depend on it.
        progress : bool, default False
            Show a progress bar on stderr (needs the extra ``fastmha[cli]``).

        Returns
        -------
        list of str, in the order of `texts`

        Raises
        ------
        TypeError
            `texts` is one string, or holds something else than strings.
        ValueError
            A text with more tokens than the model has positions, or with a lone surrogate, which is
            no character; sizes below 1.

        Warns
        -----
        UnknownCharacterWarning
            Characters that the model has never seen; the rest is translated all the same.
        """
        sources = self.encode_texts(texts)
        unknown = [
            f"text {n}: {piece}" for n, text in enumerate(texts) for piece in self.unknown(text)
        ]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            warnings.warn(
                "characters unknown to the model: " + "; ".join(unknown[:5]) + more,
                UnknownCharacterWarning,
                stacklevel=2,
            )
        filled = [n for n, text in enumerate(texts) if text.strip()]
        targets = self._run(
            [sources[n] for n in filled], beam_size, max_new_tokens, batch_size, progress
        )
        translations = [""] * len(texts)
        for n, target in zip(filled, targets, strict=True):
            translations[n] = self._target_tokenizer.decode(target.ids.tolist())
        return translations

    @overload
    def generate(
        self,
        token_ids: TokenIds,
        *,
        beam_size: int = ...,
        max_new_tokens: int | None = ...,
        return_scores: Literal[False] = ...,
        batch_size: int = ...,
        progress: bool = ...,
    ) -> list[Int64]: ...
    @overload
    def generate(
        self,
        token_ids: TokenIds,
        *,
        beam_size: int = ...,
        max_new_tokens: int | None = ...,
        return_scores: Literal[True],
        batch_size: int = ...,
        progress: bool = ...,
    ) -> tuple[list[Int64], list[float]]: ...
    def generate(
        self,
        token_ids: TokenIds,
        *,
        beam_size: int = 1,
        max_new_tokens: int | None = None,
        return_scores: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: bool = False,
    ) -> Any:
        """Generate the target ids of sources given as ids.

        Parameters
        ----------
        token_ids : list of integer arrays
            Each with the end token at its end, as :meth:`encode_texts` gives them.
        beam_size, max_new_tokens, batch_size, progress
            As for :meth:`translate`. `max_new_tokens` does not count the start token, which is not
            generated.
        return_scores : bool, default False
            Also return the score of each target: the sum of the log-probabilities of its tokens,
            the end token included, divided by their number.

        Returns
        -------
        list of ndarray of int64
            Without start token, end token and padding.
        list of float
            Only with `return_scores`.

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An id outside the vocabulary, an empty source, more tokens than the model has positions;
            sizes below 1.
        """
        sources = [np.asarray(ids) for ids in token_ids]
        targets = self._run(sources, beam_size, max_new_tokens, batch_size, progress)
        ids = [target.ids for target in targets]
        return (ids, [target.score for target in targets]) if return_scores else ids

    def forward(self, token_ids: TokenIds) -> list[Float32]:
        """The encoder's output for each source, (L_n, d_model); all sources run together, without
        padding."""
        tokens = Tokens("forward", "token_ids", list(token_ids))
        memory = self.transformer.encode(tokens.ids, tokens.cu_seqlens)
        return np.split(memory, tokens.cu_seqlens[1:-1]) if tokens.batch else []

    def encode_texts(self, texts: Sequence[str]) -> list[Int64]:
        """The source ids of each text, with the end token at the end."""
        if isinstance(texts, str):
            raise TypeError("translate: texts must be a list of str, got one str; pass [text]")
        for n, text in enumerate(texts):
            check_text(f"translate: texts[{n}]", text)
        end = self.config.eos_token_id
        sources = []
        for n, encoding in enumerate(self._source_tokenizer.encode_batch(list(texts))):
            ids = encoding.ids if encoding.ids[-1:] == [end] else [*encoding.ids, end]
            if len(ids) > self.config.max_positions:
                raise ValueError(
                    f"translate: text {n} has {len(ids)} tokens, the model has "
                    f"{self.config.max_positions} positions; split it"
                )
            sources.append(np.array(ids, np.int64))
        return sources

    def tokenize(self, text: str) -> list[str]:
        """The source tokens of `text`, without the end token."""
        check_text("tokenize: text", text)
        end = self.config.eos_token_id
        encoding = self._source_tokenizer.encode(text)
        pairs = zip(encoding.tokens, encoding.ids, strict=True)
        return [token for token, id_ in pairs if id_ != end]

    def unknown(self, text: str) -> list[UnknownCharacter]:
        """The pieces of `text` that the model has never seen."""
        check_text("unknown: text", text)
        encoding = self._source_tokenizer.encode(text)
        return [
            UnknownCharacter(text[start:end], start)
            for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ == self.config.unk_token_id and text[start:end].strip()
        ]

    def attention(
        self, text: str, *, beam_size: int = 1, max_new_tokens: int | None = None
    ) -> AttentionMaps:
        """Translate one sentence and return the weights of every head of every layer.

        Raises
        ------
        ValueError
            A blank text, or one longer than the model has positions.
        """
        if not text.strip():
            raise ValueError("attention: the text is blank")
        (source,) = self.encode_texts([text])
        (target,) = self._run([source], beam_size, max_new_tokens, 1, False)
        model = self.transformer
        # the decoder reads the start token and what it wrote, as far as it has positions
        read = np.concatenate([[self.config.bos_token_id], target.ids])[: self.config.max_positions]
        encoder, decoder, cross = model.attention_weights(source, read)
        return AttentionMaps(
            tuple(self._labels(self._source_tokenizer, source)),
            tuple(self._labels(self._target_tokenizer, read)),
            self._target_tokenizer.decode(target.ids.tolist()),
            encoder,
            decoder,
            cross,
        )

    def _labels(self, tokenizer: Any, ids: Int64) -> Iterator[str]:
        for id_ in ids.tolist():
            token = tokenizer.id_to_token(id_)
            yield f"#{id_}" if token is None else token

    def _run(
        self,
        sources: list[Integers],
        beam_size: int,
        max_new_tokens: int | None,
        batch_size: int,
        progress: bool,
    ) -> list[Hypothesis]:
        """Search for the target of each source, in batches of sources of about the same length."""
        if max_new_tokens is None:
            max_new_tokens = self.config.max_positions
        check_size(
            "generate", beam_size=beam_size, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        if beam_size * 2 > self.config.tgt_vocab_size and beam_size > 1:
            raise ValueError(
                f"generate: beam_size must be at most half of the target vocabulary "
                f"({self.config.tgt_vocab_size}), got {beam_size}"
            )
        order = sorted(range(len(sources)), key=lambda n: sources[n].size, reverse=True)
        batches = [order[n : n + batch_size] for n in range(0, len(order), batch_size)]
        targets: dict[int, Hypothesis] = {}
        for batch in tracked(batches, len, len(sources), progress, "translating"):
            found = self._search([sources[n] for n in batch], beam_size, max_new_tokens)
            targets.update(zip(batch, found, strict=True))
        return [targets[n] for n in range(len(sources))]

    def _search(
        self, sources: list[Integers], beam_size: int, max_new_tokens: int
    ) -> list[Hypothesis]:
        bos, eos = self.config.bos_token_id, self.config.eos_token_id
        tokens = Tokens("generate", "token_ids", sources)
        start = self.transformer.start(len(sources), max_new_tokens, beam_size=beam_size)
        start.join(self.transformer.encode(tokens.ids, tokens.cu_seqlens), tokens.cu_seqlens)
        if beam_size == 1:
            return greedy_search(
                start, len(sources), bos=bos, eos=eos, max_new_tokens=max_new_tokens
            )
        return beam_search(
            start,
            len(sources),
            beam_size=beam_size,
            bos=bos,
            eos=eos,
            max_new_tokens=max_new_tokens,
        )

    def __repr__(self) -> str:
        return f"TranslationModel({self.transformer!r})"


MODEL_TYPES: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "fastmha-transformer": TranslationModel.from_directory,
    **dict.fromkeys(FAMILIES, EncoderModel.from_directory),
}


def load(path: str | os.PathLike[str], dtype: Float32Type = "float32") -> Any:
    """Load a model from a checkpoint directory: config.json, ``*.safetensors`` and tokenizers.

    Parameters
    ----------
    path : path
        The directory. config.json's ``model_type`` says what it holds: one of the families of
        Hugging Face encoders ("bert", "roberta", ...), with the files of sentence-transformers
        where present, or "fastmha-transformer", an encoder-decoder Transformer for translation.
    dtype : dtype, default "float32"
        How the weights are kept; float32 is the only one so far.

    Returns
    -------
    EncoderModel or TranslationModel

    Raises
    ------
    ModuleNotFoundError
        safetensors or tokenizers is not installed; ``pip install "fastmha[text]"`` brings them.
    FileNotFoundError
        The directory or one of its files does not exist; weights in pickles are not opened.
    ValueError
        An unknown model type or dtype, a broken file, weights that do not fit the config, a field
        of the config that asks for what is not done here.

    Notes
    -----
    Weights are mapped from the files, and tables stay mapped: do not overwrite the files in place
    while the model is in use.

    Examples
    --------
    >>> import fastmha as fm
    >>> model = fm.load(fm.demo_model_path())
    >>> model.translate(["我想吃汉堡"], beam_size=4)
    ['I want to eat a hamburger']
    """
    if not is_float32(dtype):
        raise ValueError(f"load: dtype must be 'float32', got {dtype!r}")
    directory = Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"load: {directory} is not a directory with a checkpoint")
    if (directory / "modules.json").is_file():  # the encoder may be in a directory of its own
        file = read_sentence_settings(directory).directory / "config.json"
    else:
        file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"load: {file} does not exist")
    config = read_json(file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ValueError(
            f"{file}: model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}"
        )
    return MODEL_TYPES[model_type](directory, config)


def demo_model_path() -> Path:
    """The directory of the small Chinese-to-English model that comes with the package.

    Examples
    --------
    >>> import fastmha as fm
    >>> (fm.demo_model_path() / "config.json").is_file()
    True
    """
    return Path(__file__).resolve().parent / "data" / "zh_en"
