"""What families are built from: tables, embeddings, networks that run ragged.

A network takes the token ids of any number of sequences, end to end without padding, and gives
their hidden states in the same form:

    ids  | a a a a | b b | c c c |  + cu_seqlens 0 4 6 9  ->  (9, d_model)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastmha._types import Float32, Int64, Integers
from fastmha.nn.blocks import Encoder, EncoderBlock
from fastmha.nn.layers import LayerNorm, check_ids
from fastmha.nn.module import UNSET, Module, Shape

__all__ = ["AbsoluteEncoder", "Embeddings", "Network", "Table", "positions_within"]


class Table(Module):
    """Rows that are looked up. The array it is loaded from is kept, not copied: of a mapped file
    only the rows that are looked up are read."""

    def __init__(self, rows: int, width: int) -> None:
        self._shape = (rows, width)

    weight: Float32

    def _own_shapes(self) -> dict[str, Shape]:
        return {"weight": self._shape}

    def _own_state(self) -> dict[str, Float32]:
        return {"weight": np.array(self.weight)}

    def _set_own(self, state: dict[str, Float32]) -> None:
        self.weight = state["weight"]


class Embeddings(Module):
    """``norm(words[id] + positions[position] + types[0])``; positions and types where a family has
    them.

    All tokens are of type 0, as transformers has it for texts that are no pairs.
    """

    def __init__(
        self, vocab_size: int, d_model: int, eps: float, *, positions: int = 0, types: int = 0,
        norm_bias: bool = True,
    ) -> None:  # fmt: skip
        self.words = Table(vocab_size, d_model)
        self.positions = Table(positions, d_model) if positions else None
        self.types = Table(types, d_model) if types else None
        self.norm = LayerNorm(d_model, eps, bias=norm_bias)
        self._added: Float32 | None = None

    def __call__(self, ids: Int64, positions: Int64 | None = None) -> Float32:
        rows = self.words.weight.take(ids, axis=0)
        if self.positions is None or positions is None:
            return self.norm(rows)
        if self._added is None:  # of each position, its row and that of type 0
            self._added = np.array(self.positions.weight)
            if self.types is not None:
                self._added += self.types.weight[0]
        return self.norm(rows, residual=self._added.take(positions, axis=0))

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "words", self.words
        if self.positions is not None:
            yield "positions", self.positions
        if self.types is not None:
            yield "types", self.types
        yield "norm", self.norm


class Network(Module):
    """An encoder of tokens, without its tokenizer.

    A family's network takes its config alone, sets these attributes, names its parts in `_children`
    (blocks as ``layers.0``, ...) and computes in `_forward`.
    """

    d_model: int
    vocab_size: int
    max_length: int  # tokens of the longest sequence

    def __call__(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        """Hidden states (T, d_model) of the sequences that lie end to end in `ids` (T,).

        Raises
        ------
        ValueError
            An id outside the vocabulary, or a sequence longer than the model takes.
        """
        self.check("forward", ids, int(np.diff(cu_seqlens).max(initial=0)))
        return self._forward(ids, cu_seqlens, None)

    def with_attention(
        self, ids: Int64, cu_seqlens: Int64
    ) -> tuple[Float32, list[Sequence[Float32]]]:
        """The hidden states, and for each layer the weights (heads, L, L) of each sequence."""
        self.check("forward", ids, int(np.diff(cu_seqlens).max(initial=0)))
        weights: list[Sequence[Float32]] = []
        return self._forward(ids, cu_seqlens, weights), weights

    def check(self, operation: str, ids: Integers, longest: int) -> None:
        """Ids in the vocabulary, and the longest sequence of them within the positions."""
        check_ids(ids, self.vocab_size, f"{operation}: token ids")
        if longest > self.max_length:
            raise ValueError(
                f"{operation}: a sequence has {longest} tokens, the model takes {self.max_length}; "
                "shorten it"
            )

    def _forward(
        self, ids: Int64, cu_seqlens: Int64, weights: list[Sequence[Float32]] | None
    ) -> Float32:
        """Hidden states; appends the weights of each layer to `weights` when that is a list."""
        raise NotImplementedError


class AbsoluteEncoder(Network):
    """Embeddings with learnt positions, then the blocks of the paper: BERT and those after it.

    Parameters
    ----------
    embeddings : Embeddings
    blocks : list of EncoderBlock
    padding_id : int, optional
        Positions are counted from ``padding_id + 1``, and a padding token within a text does not
        count (RoBERTa). Without it they are counted from 0.
    """

    def __init__(
        self, embeddings: Embeddings, blocks: list[EncoderBlock], *, padding_id: int | None = None
    ) -> None:
        if embeddings.positions is None:
            raise ValueError("there must be at least one position")
        self.embeddings = embeddings
        self.encoder = Encoder(blocks)
        self.vocab_size, self.d_model = embeddings.words.state_shapes()["weight"]
        self.padding_id = padding_id
        positions = embeddings.positions.state_shapes()["weight"][0]
        self.max_length = positions - (0 if padding_id is None else padding_id + 1)

    def _relative_bias(self) -> Float32 | None:
        """What a family adds to every block's scores by distance."""
        return None

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "embeddings", self.embeddings
        # block by block rather than the encoder as one: weights are converted for one at a time
        for index, block in enumerate(self.encoder.layers):
            yield f"layers.{index}", block

    def _forward(
        self, ids: Int64, cu_seqlens: Int64, weights: list[Sequence[Float32]] | None
    ) -> Float32:
        x = self.embeddings(ids, positions_within(ids, cu_seqlens, self.padding_id))
        result: Any = self.encoder(
            x,
            cu_seqlens=cu_seqlens,
            relative_bias=self._relative_bias(),
            return_weights=weights is not None,
        )
        if weights is None:
            return result  # type: ignore[no-any-return]
        weights.extend(result[1])
        return result[0]  # type: ignore[no-any-return]


def encoder_blocks(
    count: int, d_model: int, num_heads: int, d_ff: int, activation: str, eps: float
) -> list[EncoderBlock]:
    """`count` blocks of the paper, norms last, without their weights."""
    return [
        EncoderBlock(d_model, num_heads, d_ff, activation=activation, norm_eps=eps, seed=UNSET)
        for _ in range(count)
    ]


def positions_within(ids: Int64, cu_seqlens: Int64, padding_id: int | None = None) -> Int64:
    """The position of each token in its sequence; see :class:`AbsoluteEncoder`."""
    starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    positions: Int64 = np.arange(len(ids)) - starts
    if padding_id is None:
        return positions
    counts = ids != padding_id
    if counts.all():
        return positions + (padding_id + 1)
    before = np.concatenate([[0], np.cumsum(counts)])  # tokens that count in front of each
    positions = (before[1:] - before[starts]) * counts + padding_id
    return positions
