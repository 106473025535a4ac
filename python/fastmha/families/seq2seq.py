"""What families of encoder-decoder checkpoints have in common: those that came from fairseq (BART,
mBART, M2M100) and Marian differ in positions and norms alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmha._types import Float32, Int64
from fastmha.families.family import Names
from fastmha.families.networks import Table, positions_within
from fastmha.families.settings import named_activation
from fastmha.nn.blocks import Decoder, DecoderBlock, Encoder, EncoderBlock
from fastmha.nn.encoder_decoder import EncoderDecoder
from fastmha.nn.layers import LayerNorm, Linear
from fastmha.nn.module import UNSET, Module

__all__ = [
    "DECODER_LAYER",
    "ENCODER_LAYER",
    "NAMES",
    "NOT_SUPPORTED",
    "OUTPUT",
    "SHARED",
    "SOURCE",
    "TARGET",
    "AbsoluteEncoderDecoder",
    "Seq2SeqConfig",
    "TokenEmbedding",
    "tied",
]

EPS = 1e-5  # of every norm, no field of these configs
# What any of these would compute differently; see settings.EVERYWHERE.
NOT_SUPPORTED: Mapping[str, tuple[Any, ...]] = {"is_encoder_decoder": (True,)}
# Where a checkpoint may hold the table of words.
SHARED, SOURCE, TARGET = "shared", "encoder.embed_tokens", "decoder.embed_tokens"
OUTPUT = "lm_head"

ATTENTION = ("q_proj", "k_proj", "v_proj")
ENCODER_LAYER: Names = {
    "self_attn.in_proj": tuple(f"self_attn.{name}" for name in ATTENTION),
    "self_attn.out_proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm2": "final_layer_norm",
}
DECODER_LAYER: Names = {
    **ENCODER_LAYER,
    "multihead_attn.in_proj": tuple(f"encoder_attn.{name}" for name in ATTENTION),
    "multihead_attn.out_proj": "encoder_attn.out_proj",
    "norm2": "encoder_attn_layer_norm",
    "norm3": "final_layer_norm",
}
NAMES: Names = {
    "source.words": SOURCE,
    "target.words": TARGET,
    "output": OUTPUT,
    "output.bias": "final_logits_bias",
}


@dataclass(frozen=True)
class Seq2SeqConfig:
    vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_position_embeddings: int
    activation_function: str = "gelu"
    scale_embedding: bool = False
    tie_word_embeddings: bool = True


class TokenEmbedding(Module):
    """``norm(words[id] * scale + positions[position])``; the norm where a family has one.

    Parameters
    ----------
    words : Table
    scale : float, optional
    positions : ndarray of float32, (P, d_model), or int
        The rows of all positions; a number: so many rows come with the weights.
    first : int, default 0
        The row of position 0.
    eps : float, optional
        Of the norm; without it there is none.
    """

    def __init__(
        self, words: Table, *, scale: float | None, positions: Float32 | int, first: int = 0,
        eps: float | None = None,
    ) -> None:  # fmt: skip
        self.words = words
        width = words.state_shapes()["weight"][1]
        self.scale = None if scale is None else np.float32(scale)
        self.learned = Table(positions, width) if isinstance(positions, int) else None
        self.fixed = None if isinstance(positions, int) else positions
        self.first = first
        self.norm = None if eps is None else LayerNorm(width, eps)

    def __call__(self, ids: Int64, positions: Int64) -> Float32:
        x = self.words.weight.take(ids, axis=0)
        if self.scale is not None:
            x *= self.scale
        table = self.fixed if self.learned is None else self.learned.weight
        assert table is not None
        added = table.take(positions + self.first, axis=0)
        if self.norm is not None:
            return self.norm(x, residual=added)
        x += added
        return x

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "words", self.words
        if self.learned is not None:
            yield "positions", self.learned
        if self.norm is not None:
            yield "norm", self.norm


class AbsoluteEncoderDecoder(EncoderDecoder):
    """Token embeddings with absolute positions, then the blocks of the paper.

    Parameters
    ----------
    config : Seq2SeqConfig
    source, target : TokenEmbedding
    norm_first : bool
        Norms in front of each sub-layer, and one behind the last block of encoder and decoder.
    output_bias : bool
        Whether a bias is added to the logits.
    tied : mapping
        Tensor of a checkpoint -> where else it may be stored.
    padding_id : int, optional
        Positions are counted from ``padding_id + 1``, and a padding token has the row of
        `padding_id`; in a source it does not count. Without it they are counted from 0.
    """

    def __init__(
        self,
        config: Seq2SeqConfig,
        source: TokenEmbedding,
        target: TokenEmbedding,
        *,
        norm_first: bool,
        output_bias: bool,
        tied: Mapping[str, tuple[str, ...]],
        padding_id: int | None = None,
    ) -> None:
        self.source, self.target = source, target
        self.source_vocab_size, self.d_model = source.words.state_shapes()["weight"]
        self.vocab_size = target.words.state_shapes()["weight"][0]
        self.max_source_length = self.max_target_length = config.max_position_embeddings
        if config.max_position_embeddings < 1:
            raise ValueError("max_position_embeddings must be at least 1")
        activation = named_activation(config.activation_function, "activation_function")

        def blocks(kind: Any, count: int, heads: int, d_ff: int) -> list[Any]:
            return [
                kind(
                    config.d_model, heads, d_ff,
                    activation=activation, norm_first=norm_first, norm_eps=EPS, seed=UNSET,
                )
                for _ in range(count)
            ]  # fmt: skip

        def norm() -> LayerNorm | None:
            return LayerNorm(config.d_model, EPS) if norm_first else None

        encoder = blocks(
            EncoderBlock,
            config.encoder_layers,
            config.encoder_attention_heads,
            config.encoder_ffn_dim,
        )
        decoder = blocks(
            DecoderBlock,
            config.decoder_layers,
            config.decoder_attention_heads,
            config.decoder_ffn_dim,
        )
        self.encoder, self.decoder = Encoder(encoder, norm()), Decoder(decoder, norm())
        self.output = Linear.of_size(config.d_model, self.vocab_size, bias=output_bias, seed=UNSET)
        self.tied, self.padding_id = tied, padding_id

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "source", self.source
        yield "target", self.target
        yield from self._blocks()
        yield "output", self.output

    def _embed_source(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        return self.source(ids, positions_within(ids, cu_seqlens, self.padding_id))

    def _embed_target(self, ids: Int64, positions: Int64) -> Float32:
        padding_id = self.padding_id
        if padding_id is not None:
            # In a target a padding token counts: it does where tokens come one by one, which see
            # how many there were, and a score must be that of the target as it was generated.
            positions = np.where(ids == padding_id, padding_id, positions + (padding_id + 1))
        return self.target(ids, positions)


def tied(config: Seq2SeqConfig, *modules: str) -> dict[str, tuple[str, ...]]:
    """The tables of words `modules`, and the output map if the config says so, are one tensor,
    which may be stored as any of them."""
    last = (OUTPUT,) if config.tie_word_embeddings else ()
    names = tuple(f"{module}.weight" for module in (*modules, *last))
    return dict.fromkeys(names, names)
