"""Networks with an encoder and a decoder, as whoever decodes sees them: sources in, logits out.

    ids  | a a a a | b b |  + cu_seqlens 0 4 6      encode       ->  memory (6, d_model)
    memory                                          join         ->  hypotheses of a and b
    one token for each hypothesis                   logits       ->  (hypotheses, vocabulary)

Sources join behind those present and leave from anywhere; what a source gets does not depend on who
else is present.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from fastmha._types import Float32, Int64, Integers
from fastmha.nn.blocks import Decoder, Encoder
from fastmha.nn.layers import Linear
from fastmha.nn.module import Module, check_size
from fastmha.nn.ragged import as_integers, check_cu_seqlens

__all__ = ["EncoderDecoder", "Generation", "Hypotheses"]

Lengths = Integers | Sequence[int]


class Hypotheses(Protocol):
    """Token sequences that grow, `beam_size` next to each other for each source that is present:
    row ``n * beam_size + b`` is beam b of the n-th source."""

    def join(self, memory: Float32, cu_seqlens: Int64) -> None:
        """Let new sources join behind those present; their hypotheses have read nothing yet."""

    def logits(self, tokens: Int64) -> Float32:
        """Append one token to every hypothesis and return (rows, vocab_size) for the one after
        it, in an array that is the caller's to change."""

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let hypothesis b continue hypothesis ``beam_indices[b]`` of the same source."""

    def select(self, sources: ArrayLike) -> None:
        """Keep the sources at these places, in rising order, and forget the others."""


class EncoderDecoder(Module):
    """An encoder of source tokens, a decoder of target tokens that attends to it, and a map to
    logits.

    A subclass sets the attributes, names its parts in `_children` and gives rows for tokens in
    `_embed_source` and `_embed_target`.

    One that is loaded from a checkpoint may say in `tied` where else a tensor may be stored, and in
    `renamed` which modules are called otherwise than its family says.

    Attributes
    ----------
    source_vocab_size : int
    vocab_size : int
        Of targets: the columns of logits.
    d_model : int
    max_source_length, max_target_length : int or None
        Tokens of the longest source, and the most that a hypothesis reads; None: no limit.
    """

    source_vocab_size: int
    vocab_size: int
    d_model: int
    max_source_length: int | None
    max_target_length: int | None
    encoder: Encoder
    decoder: Decoder
    output: Linear
    tied: Mapping[str, tuple[str, ...]] = {}
    renamed: Mapping[str, str] = {}

    def encode(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        """The encoder's output (T, d_model) for the sources that lie end to end in `ids` (T,).

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An empty source, one that is too long, an id outside the vocabulary.
        """
        return self._encode(*self._source("encode", ids, cu_seqlens))

    def start(self, sources: int, capacity: int, *, beam_size: int = 1) -> Hypotheses:
        """Room for the hypotheses of at most `sources` sources at a time, `beam_size` each, which
        read up to `capacity` tokens; nothing has joined yet.

        Raises
        ------
        ValueError
            Sizes below 1, more tokens than the model has positions.
        """
        check_size("start", sources=sources, capacity=capacity, beam_size=beam_size)
        most = self.max_target_length
        if most is not None and capacity > most:
            raise ValueError(
                f"generate: the model has {most} positions, so it generates at most {most} tokens; "
                f"got max_new_tokens={capacity}"
            )
        return Generation(self, sources, capacity, beam_size)

    def target_logits(
        self, memory: Float32, memory_cu_seqlens: Int64, target_ids: Int64, cu_seqlens: Int64
    ) -> Float32:
        """The logits (Tt, vocab_size) after each token of targets that are known.

        Parameters
        ----------
        memory, memory_cu_seqlens
            What :meth:`encode` returned, and the bounds of the sources in it.
        target_ids : ndarray of int64, (Tt,)
            Targets end to end, each with its start token; one for each source.
        cu_seqlens : ndarray of int64, (N + 1,)

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An empty target, one that is too long, an id outside the vocabulary, another number of
            targets than sources.
        """
        ids, bounds = self._target("target_logits", target_ids, cu_seqlens)
        lonely = len(ids) == len(bounds) - 1 and self.max_target_length != 1
        if lonely:
            # Only single tokens: attention would take its way for single queries, which rounds in
            # another order. A second token keeps scores the same bits in any company.
            ids, bounds = ids.repeat(2), bounds * 2
        positions = np.arange(len(ids)) - np.repeat(bounds[:-1], np.diff(bounds))
        x = self.decoder(
            self._embed_target(ids, positions),
            memory,
            relative_bias=self._biases()[1],
            cu_seqlens=bounds,
            memory_cu_seqlens=memory_cu_seqlens,
        )
        return self._logits(x[::2].copy() if lonely else x)

    def attention_weights(
        self, source: Int64, target: Int64
    ) -> tuple[list[Float32], list[Float32], list[Float32]]:
        """Of one source and what its target reads, per layer: encoder (heads, S, S), decoder
        (heads, T, T), decoder to encoder (heads, T, S).

        Raises
        ------
        TypeError, ValueError
            As for :meth:`encode` and :meth:`target_logits`.
        """
        operation = "attention_weights"
        ids, bounds = self._source(operation, source, [0, len(source)])
        target_ids, _ = self._target(operation, target, [0, len(target)])
        encoder_bias, decoder_bias = self._biases()
        x = self._embed_source(ids, bounds)
        memory, encoder = self.encoder(x[None], relative_bias=encoder_bias, return_weights=True)
        x = self._embed_target(target_ids, np.arange(len(target_ids)))
        _, decoder = self.decoder(x[None], memory, relative_bias=decoder_bias, return_weights=True)
        return (
            [weights[0] for weights in encoder],
            [own[0] for own, _ in decoder],
            [cross[0] for _, cross in decoder],
        )

    def _source(self, operation: str, ids: Int64, cu_seqlens: Lengths) -> tuple[Int64, Int64]:
        """Ids and bounds of sources, checked."""
        ids, bounds = _checked(operation, "source", ids, cu_seqlens, self.source_vocab_size)
        _check_longest(operation, "source", bounds, self.max_source_length)
        return ids, bounds

    def _target(self, operation: str, ids: Int64, cu_seqlens: Lengths) -> tuple[Int64, Int64]:
        """Ids and bounds of targets, checked."""
        ids, bounds = _checked(operation, "target", ids, cu_seqlens, self.vocab_size)
        _check_longest(operation, "target", bounds, self.max_target_length)
        return ids, bounds

    def _encode(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        x: Float32 = self.encoder(
            self._embed_source(ids, cu_seqlens),
            cu_seqlens=cu_seqlens,
            relative_bias=self._biases()[0],
        )
        return x

    def _biases(self) -> tuple[Float32 | None, Float32 | None]:
        """The relative_bias of self-attention in encoder and decoder."""
        return None, None

    def _embed_source(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        """(T, d_model), a new array."""
        raise NotImplementedError

    def _embed_target(self, ids: Int64, positions: Int64) -> Float32:
        """(T, d_model), a new array; `positions` counts from 0 within each target."""
        raise NotImplementedError

    def _logits(self, x: Float32) -> Float32:
        """(T, vocab_size) for the decoder's output (T, d_model), which may be overwritten."""
        return self.output(x)

    def _blocks(self) -> Iterator[tuple[str, Module]]:
        """For `_children`: block by block, so that weights are converted for one at a time."""
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            for index, block in enumerate(stack.layers):
                yield f"{name}.layers.{index}", block
            if stack.norm is not None:
                yield f"{name}.norm", stack.norm


class Generation:
    """The hypotheses of an :class:`EncoderDecoder`; made by :meth:`EncoderDecoder.start`."""

    __slots__ = ("_cache", "_network")

    def __init__(
        self, network: EncoderDecoder, sources: int, capacity: int, beam_size: int
    ) -> None:
        self._network = network
        self._cache = network.decoder.new_cache(sources, capacity, beam_size=beam_size, empty=True)

    def join(self, memory: Float32, cu_seqlens: Int64) -> None:
        """Let new sources join behind those present."""
        self._network.decoder.join(self._cache, memory, cu_seqlens)

    def logits(self, tokens: Int64) -> Float32:
        """Append one token to every hypothesis; (rows, vocab_size) for the one after it."""
        network, cache = self._network, self._cache
        x = network._embed_target(tokens, cache.lengths)
        x = network.decoder(
            x[:, None],  # one position each
            cache=cache,
            relative_bias=network._biases()[1],
        )
        return network._logits(x[:, 0])

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let hypothesis b continue hypothesis ``beam_indices[b]`` of the same source."""
        self._cache.reorder(beam_indices)

    def select(self, sources: ArrayLike) -> None:
        """Keep the sources at the places `sources`, in rising order, and forget the others."""
        self._cache.select(sources)


def _checked(
    operation: str, what: str, ids: Int64, cu_seqlens: Lengths, vocab_size: int
) -> tuple[Int64, Int64]:
    """Ids and bounds of sequences that hold something, within the vocabulary."""
    ids = as_integers(ids, f"{operation}: {what} ids").astype(np.int64, copy=False)
    if ids.ndim != 1:
        raise ValueError(
            f"{operation}: {what} ids must lie end to end in one dimension, got {ids.shape}"
        )
    bounds = check_cu_seqlens(operation, "cu_seqlens", cu_seqlens, len(ids))
    empty = np.flatnonzero(bounds[1:] == bounds[:-1])
    if empty.size:
        raise ValueError(f"{operation}: {what} {int(empty[0])} is empty")
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if outside.size:
        first = int(outside[0])
        n = int(np.searchsorted(bounds, first, "right")) - 1
        raise ValueError(
            f"{operation}: {what} {n} holds the id {int(ids[first])}, outside the vocabulary "
            f"0 .. {vocab_size - 1}"
        )
    return ids, bounds


def _check_longest(operation: str, what: str, bounds: Int64, most: int | None) -> None:
    lengths = np.diff(bounds)
    if most is not None and lengths.max(initial=0) > most:
        n = int(lengths.argmax())
        raise ValueError(
            f"{operation}: {what} {n} has {int(lengths[n])} tokens, the model has {most} positions"
        )
