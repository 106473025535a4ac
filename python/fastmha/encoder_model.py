"""Encoder checkpoints with their tokenizer: texts -> sentence embeddings, ids -> hidden states.

Texts are sorted by length and run end to end, without padding, as many at a time as a budget of
tokens allows; then they are put back in order:

    texts  ->  ids  ->  | longest | next | ...  up to batch_tokens |  ->  pool  ->  (N, D), in order

Kernels give each sequence the same bits in any company, so an embedding depends on its text alone.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from fastmha._types import Float32, Int64, Integers
from fastmha.families import FAMILIES, Network
from fastmha.lines import chunks
from fastmha.nn.module import check_size
from fastmha.nn.ragged import as_integers, check_iterable, cumulative
from fastmha.sentence import SentenceSettings, normalized, pool, read_sentence_settings
from fastmha.tensors import Tensors
from fastmha.texts import TextTokenizer, check_many, check_text, tracked

__all__ = ["EncoderMaps", "EncoderModel"]

# Tokens that run together: enough rows to fill the kernels, and activations (4096 x d_ff floats)
# that a last-level cache can hold for small models.
BATCH_TOKENS = 4096
# Texts that are tokenised and sorted together when they come from an iterator: what is in memory
# at any time.
CHUNK = 4096
# The text of a fingerprint.
PROBE = "The quick brown fox jumps over 13 lazy dogs. 敏捷的棕色狐狸。"


@dataclass(frozen=True)
class EncoderMaps:
    """Every attention weight of one text; row = the token that looks, column = the token looked at.

    Attributes
    ----------
    tokens : tuple of str
    layers : list of ndarray of float32
        Per layer (heads, L, L).
    """

    tokens: tuple[str, ...]
    layers: list[Float32]


@dataclass(frozen=True)
class Embedding:
    """How sequences become embeddings, and the call that says it, in whose name errors are."""

    operation: str
    batch_size: int | None
    batch_tokens: int
    normalize: bool | None

    def __post_init__(self) -> None:
        check_size(self.operation, batch_tokens=self.batch_tokens)
        if self.batch_size is not None:
            check_size(self.operation, batch_size=self.batch_size)
        if not (self.normalize is None or isinstance(self.normalize, bool | np.bool_)):
            raise TypeError(
                f"{self.operation}: normalize must be a bool or None, got {self.normalize!r}"
            )


class EncoderModel:
    """An encoder with its tokenizer; made by :func:`load`.

    Attributes
    ----------
    config : dataclass
        What the network took from config.json.
    network : Network
        ids (T,) and cu_seqlens -> hidden states (T, d_model).
    settings : SentenceSettings
        Pooling, normalisation and prompt.
    max_length : int
        Tokens of the longest text, special tokens included; longer ones are cut off.
    embedding_dim : int
        Width of an embedding.

    Examples
    --------
    >>> import fastmha as fm
    >>> model = fm.load("all-MiniLM-L6-v2")  # a directory
    >>> embeddings = model.encode(["A cat sleeps.", "A kitten naps.", "Stocks fell."])
    >>> embeddings.shape
    (3, 384)
    >>> similarity = embeddings @ embeddings.T
    >>> bool(similarity[0, 1] > 0.5 > similarity[0, 2])
    True
    """

    def __init__(
        self, config: Any, network: Network, tokenizer: TextTokenizer, settings: SentenceSettings
    ) -> None:
        self.config, self.network, self.settings = config, network, settings
        self._tokenizer = tokenizer
        self.max_length = tokenizer.max_length
        self.embedding_dim = len(settings.pooling) * network.d_model

    @classmethod
    def from_directory(cls, path: Path, config: dict[str, Any]) -> "EncoderModel":
        """Load the model in `path`; :func:`load` reads its config.json and calls this."""
        settings = read_sentence_settings(path)
        path = settings.directory
        family = FAMILIES[config["model_type"]]
        tensors = Tensors(path)
        kept, network = family.build(config, path / "config.json", tensors)
        family.load(network, tensors, path)
        tokenizer = TextTokenizer.from_directory(
            path,
            network.vocab_size,
            network.max_length,
            asked_length=settings.max_length,
            lowercase=settings.lowercase,
        )
        return cls(kept, network, tokenizer, settings)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool | None = None,
        prompt: str | None = None,
        progress: bool = False,
    ) -> Float32:
        """The embedding of each text.

        Parameters
        ----------
        texts : str or iterable of str
            A list, one text, or any iterator. Texts longer than `max_length` tokens are cut off.
        batch_size : int, optional
            The most texts that run together; no limit when not given.
        batch_tokens : int, default 4096
            The most tokens that run together (a longer text runs alone). Results do not depend on
            either.
        normalize : bool, optional
            Whether embeddings get length 1; what the checkpoint says when not given.
        prompt : str, optional
            Put before every text; what the checkpoint says, mostly nothing, when not given.
        progress : bool, default False
            Show a progress bar on stderr (needs the extra ``fastmha[cli]``).

        Returns
        -------
        ndarray of float32, (N, embedding_dim), in the order of `texts`

        Raises
        ------
        TypeError
            `texts` holds something else than strings.
        ValueError
            A text with a lone surrogate, which is no character; sizes below 1.
        """
        how = Embedding("encode", batch_size, batch_tokens, normalize)
        return self._encode(how, texts, prompt, progress)

    def _encode(
        self, how: Embedding, texts: str | Iterable[str], prompt: str | None, progress: bool
    ) -> Float32:
        texts = [texts] if isinstance(texts, str) else texts
        total = len(texts) if isinstance(texts, Sequence) else None
        chunk = CHUNK // 16 if progress else CHUNK  # steps that a bar can show
        blocks = self._blocks(how, texts, prompt, chunk)
        blocks = tracked(blocks, len, total, progress, "embedding")
        return stacked(blocks, self.embedding_dim, CHUNK if total is None else total)

    def encode_ids(
        self,
        token_ids: Sequence[Integers | Sequence[int]],
        *,
        batch_size: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool | None = None,
    ) -> Float32:
        """The embedding of each sequence of token ids, as :meth:`encode_texts` gives them.

        Parameters
        ----------
        token_ids : list of integer arrays
        batch_size, batch_tokens, normalize
            As for :meth:`encode`.

        Returns
        -------
        ndarray of float32, (N, embedding_dim)
            Zeros for a sequence without a token.

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An id outside the vocabulary, or more tokens than the model takes.

        Examples
        --------
        >>> import fastmha as fm, numpy as np
        >>> model = fm.load("all-MiniLM-L6-v2")  # a directory
        >>> texts = ["A cat sleeps.", "Stocks fell."]
        >>> ids = model.encode_texts(texts)
        >>> bool(np.array_equal(model.encode_ids(ids), model.encode(texts)))
        True
        """
        how = Embedding("encode_ids", batch_size, batch_tokens, normalize)
        return self._embed(how, self._id_arrays("encode_ids", token_ids))

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        chunk: int = CHUNK,
        batch_size: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool | None = None,
        prompt: str | None = None,
    ) -> Iterator[Float32]:
        """The same as :meth:`encode` for any number of texts in bounded memory.

        Parameters
        ----------
        texts : iterable of str
        chunk : int, default 4096
            Texts that are read, tokenised and sorted together.
        batch_size, batch_tokens, normalize, prompt
            As for :meth:`encode`.

        Yields
        ------
        ndarray of float32, (n, embedding_dim)
            Of the next n texts, n = `chunk` except at the end.
        """
        check_size("encode_stream", chunk=chunk)
        how = Embedding("encode_stream", batch_size, batch_tokens, normalize)
        return self._blocks(how, texts, prompt, chunk)

    def _blocks(
        self, how: Embedding, texts: Iterable[str], prompt: str | None, chunk: int
    ) -> Iterator[Float32]:
        """The embeddings of `chunk` texts after the other."""
        check_many(how.operation, texts)
        if prompt is None:
            prompt = self.settings.prompt
        else:
            check_text(f"{how.operation}: prompt", prompt)
        return self._each_block(how, iter(texts), prompt, chunk)

    def _each_block(
        self, how: Embedding, texts: Iterator[str], prompt: str, chunk: int
    ) -> Iterator[Float32]:
        for number, part in chunks(texts, chunk):
            ids = self._tokenizer(part, prompt=prompt, first=number - 1, operation=how.operation)
            yield self._embed(how, ids)

    def _embed(self, how: Embedding, sequences: Sequence[Integers]) -> Float32:
        rows = np.zeros((len(sequences), self.embedding_dim), np.float32)
        for batch, states, bounds in self._run(sequences, how.batch_size, how.batch_tokens, None):
            rows[batch] = pool(states, bounds, self.settings.pooling)
        normalize = self.settings.normalize if how.normalize is None else how.normalize
        return normalized(rows) if normalize else rows

    def encode_to_file(
        self,
        texts: Iterable[str],
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool | None = None,
        prompt: str | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> int:
        """Write the embeddings of any number of texts to a file, in bounded memory.

        An interrupted call goes on when it is repeated with the same texts: what is done is in
        ``path + ".partial"`` until everything is there.

        Parameters
        ----------
        texts : iterable of str
        path : path
        format : {"npy", "jsonl", "parquet"}, optional
            What `path` ends in when not given. .npy holds the embeddings alone, the others the
            texts, too. Parquet needs the extra ``fastmha[parquet]``.
        batch_tokens, normalize, prompt, progress
            As for :meth:`encode`.
        overwrite : bool, default False
            Replace a file that exists.

        Returns
        -------
        int
            Rows in the file.

        Raises
        ------
        FileExistsError
            `path` exists, and `overwrite` is False.
        ValueError
            What was kept of an interrupted call is of other texts, another model, other settings.
        """
        from fastmha.embed_files import file_format, write_embeddings

        check_many("encode_to_file", texts)
        if not isinstance(path, str | os.PathLike):
            got = type(path).__name__
            raise TypeError(f"encode_to_file: path must be a str or a path, got {got}")
        path = Path(path)
        try:
            kind = file_format(path, format)
        except ValueError as error:
            raise ValueError(f"encode_to_file: {error}") from None
        if not path.parent.is_dir():
            raise FileNotFoundError(f"encode_to_file: {path.parent} is not a directory")
        if path.is_dir():
            raise IsADirectoryError(f"encode_to_file: {path} is a directory; name a file")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; overwrite=True replaces it")

        how = Embedding("encode_to_file", None, batch_tokens, normalize)

        def encode(part: Sequence[str]) -> Float32:
            return self._encode(how, part, prompt, progress=False)

        total = len(texts) if isinstance(texts, Sequence) else None
        rest = iter(texts)
        with kind(path, self.embedding_dim, self.fingerprint(encode)) as out:
            out.check_kept(rest)
            left = None if total is None else total - out.rows
            steps = write_embeddings(out, rest, encode)
            for _ in tracked(steps, int, left, progress, "embedding"):
                pass
            return out.rows

    def fingerprint(self, encode: Callable[[list[str]], Float32]) -> str:
        """What tells models, settings and instruction sets apart: the bits of one embedding."""
        return f"{self.max_length} {hashlib.sha256(encode([PROBE]).tobytes()).hexdigest()}"

    @overload
    def forward(
        self,
        token_ids: Sequence[Integers | Sequence[int]],
        *,
        batch_tokens: int = ...,
        return_attention: Literal[False] = ...,
    ) -> list[Float32]: ...
    @overload
    def forward(
        self,
        token_ids: Sequence[Integers | Sequence[int]],
        *,
        batch_tokens: int = ...,
        return_attention: Literal[True],
    ) -> tuple[list[Float32], list[list[Float32]]]: ...
    def forward(
        self,
        token_ids: Sequence[Integers | Sequence[int]],
        *,
        batch_tokens: int = BATCH_TOKENS,
        return_attention: bool = False,
    ) -> Any:
        """The hidden states of sequences given as ids, as :meth:`encode_texts` gives them.

        Parameters
        ----------
        token_ids : list of integer arrays
        batch_tokens : int, default 4096
            As for :meth:`encode`.
        return_attention : bool, default False
            Also return the weights of every layer and head.

        Returns
        -------
        list of ndarray of float32, (L_n, d_model)
        list of list of ndarray of float32
            Only with `return_attention`: for each sequence, for each layer, (heads, L_n, L_n).

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An id outside the vocabulary, or more tokens than the model takes.
        """
        check_size("forward", batch_tokens=batch_tokens)
        sequences = self._id_arrays("forward", token_ids)
        states = [np.empty((0, self.network.d_model), np.float32) for _ in sequences]
        maps: list[list[Float32]] = [[] for _ in sequences]
        layers: list[Sequence[Float32]] | None = [] if return_attention else None
        for batch, rows, bounds in self._run(sequences, None, batch_tokens, layers):
            for place, n in enumerate(batch):
                # a copy: a view would keep the whole batch in memory
                states[n] = rows[bounds[place] : bounds[place + 1]].copy()
                maps[n] = [layer[place] for layer in layers or ()]
        return (states, maps) if return_attention else states

    def encode_texts(self, texts: Sequence[str]) -> list[Int64]:
        """The ids of each text, special tokens included, cut to `max_length`."""
        check_many("encode_texts", texts)
        return self._tokenizer(list(texts), operation="encode_texts")

    def attention(self, text: str, *, most_weights: int | None = None) -> EncoderMaps:
        """The weights of every head of every layer for one text.

        Parameters
        ----------
        text : str
        most_weights : int, optional
            Refuse a text that has more of them, layers * heads * tokens^2, before they are
            computed; no limit when not given.

        Raises
        ------
        ValueError
            More than `most_weights`.
        """
        check_text("attention: text", text)
        (ids,) = self._tokenizer([text], operation="attention")
        if most_weights is not None:
            check_size("attention", most_weights=most_weights)
            _, (layers,) = self.forward([ids[:1]], return_attention=True)
            heads = sum(map(len, layers))
            if heads * len(ids) ** 2 > most_weights:
                raise ValueError(
                    f"attention: {len(ids)} tokens have {heads * len(ids) ** 2:,} weights in all "
                    f"heads and layers, the limit is {most_weights:,}; shorten the text to "
                    f"{math.isqrt(most_weights // max(1, heads))} tokens"
                )
        _, (layers,) = self.forward([ids], return_attention=True)
        return EncoderMaps(tuple(self._tokenizer.tokens(ids)), layers)

    def _id_arrays(
        self, operation: str, token_ids: Iterable[Integers | Sequence[int]]
    ) -> list[Integers]:
        """Each sequence as a one-dimensional array of ids that the network can read."""
        check_iterable(f"{operation}: token_ids", token_ids, "a list of integer arrays")
        sequences = [as_integers(ids, f"{operation}: token ids") for ids in token_ids]
        for sequence in sequences:
            if sequence.ndim != 1:
                raise ValueError(
                    f"{operation}: token_ids must be a list of one-dimensional arrays, got one of "
                    f"shape {sequence.shape}"
                )
            self.network.check(operation, sequence, sequence.size)
        return sequences

    def _run(
        self,
        sequences: Sequence[Integers],
        batch_size: int | None,
        batch_tokens: int,
        weights: list[Sequence[Float32]] | None,
    ) -> Iterator[tuple[list[int], Float32, Int64]]:
        """For each batch: which sequences are in it, their hidden states end to end, the bounds.

        Empty sequences are in no batch. `weights` holds those of the batch at hand.
        """
        lengths = [len(ids) for ids in sequences]
        for batch in batches(lengths, batch_tokens, batch_size):
            bounds = cumulative(np.array([lengths[n] for n in batch]))
            ids = np.concatenate([sequences[n] for n in batch])
            if weights is None:
                yield batch, self.network(ids, bounds), bounds
            else:
                states, weights[:] = self.network.with_attention(ids, bounds)
                yield batch, states, bounds

    def __repr__(self) -> str:
        name = type(self.config).__name__.removesuffix("Config")
        return (
            f"EncoderModel({name}, embedding_dim={self.embedding_dim}, "
            f"max_length={self.max_length}, pooling={'+'.join(self.settings.pooling)})"
        )


def stacked(blocks: Iterable[Float32], width: int, expected: int) -> Float32:
    """The rows of all blocks as one array. It is made for as many rows as are expected and grows
    where it stands: np.concatenate would hold everything twice."""
    rows = np.empty((expected, width), np.float32)
    count = 0
    for block in blocks:
        if count + len(block) > len(rows):
            # an eighth more: what is beyond the end is there too, and the system moves pages
            # rather than copies them
            rows.resize((max(len(rows) * 9 // 8, count + len(block)), width), refcheck=False)
        rows[count : count + len(block)] = block
        count += len(block)
    rows.resize((count, width), refcheck=False)
    return rows


def batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Indices of sequences that run together, the longest first: about the same length, and up to
    `batch_tokens` tokens and `batch_size` sequences, or one that is longer alone.

    Sequences without a token are left out.
    """
    batch: list[int] = []
    tokens = 0
    for n in sorted(range(len(lengths)), key=lambda n: lengths[n], reverse=True):
        if not lengths[n]:
            break
        if batch and (tokens + lengths[n] > batch_tokens or len(batch) == batch_size):
            yield batch
            batch, tokens = [], 0
        batch.append(n)
        tokens += lengths[n]
    if batch:
        yield batch
