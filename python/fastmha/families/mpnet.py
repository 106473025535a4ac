"""MPNet (Song et al., https://arxiv.org/abs/2004.09297): RoBERTa's positions, and a bias on every
score that depends on how far key and query are apart."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastmha._types import Float32, Int64
from fastmha.families import bert
from fastmha.families.family import Family, Names
from fastmha.families.networks import AbsoluteEncoder, Embeddings, Table, encoder_blocks
from fastmha.families.settings import named_activation
from fastmha.nn.module import Module, check_size

__all__ = ["MPNET", "MPNetConfig"]

PADDING_ID = 1  # what positions are counted from, fixed in the family
BUCKETS, FURTHEST = 32, 128  # so are these; farther keys share the last bucket


@dataclass(frozen=True)
class MPNetConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12


class MPNet(AbsoluteEncoder):
    def __init__(self, config: MPNetConfig) -> None:
        check_size("MPNet", num_attention_heads=config.num_attention_heads)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
                f"({config.num_attention_heads})"
            )
        embeddings = Embeddings(
            config.vocab_size,
            config.hidden_size,
            config.layer_norm_eps,
            positions=config.max_position_embeddings,
        )
        blocks = encoder_blocks(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            named_activation(config.hidden_act, "hidden_act"),
            config.layer_norm_eps,
        )
        super().__init__(embeddings, blocks, padding_id=PADDING_ID)
        self.bias = Table(BUCKETS, config.num_attention_heads)

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield from super()._children()
        yield "bias", self.bias

    def _relative_bias(self) -> Float32:
        distances = np.arange(-FURTHEST, FURTHEST + 1)
        return np.ascontiguousarray(self.bias.weight[buckets(distances)].T)


def buckets(distances: Int64) -> Int64:
    """The row of the bias for a key that is `distances` places after its query.

    Half of the rows are for keys before the query and half for those after it; the near half of
    each for single distances, the rest for ranges that grow, up to FURTHEST.
    """
    half = BUCKETS // 2
    single = half // 2
    away = np.abs(distances)
    # float32 and in this order: where a range ends depends on the rounding
    spread = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(single))
    spread = spread / np.float32(math.log(FURTHEST / single)) * np.float32(half - single)
    ranges = np.minimum(single + spread.astype(np.int64), half - 1)
    found: Int64 = np.where(away < single, away, ranges) + np.where(distances > 0, half, 0)
    return found


LAYER: Names = {
    "self_attn.in_proj": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    "self_attn.out_proj": "attention.attn.o",
    "norm1": "attention.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}

MPNET = Family(
    MPNetConfig,
    MPNet,
    {
        **{ours: theirs for ours, theirs in bert.EMBEDDINGS.items() if ours != "embeddings.types"},
        "bias": "encoder.relative_attention_bias",
    },
    ("encoder.layer", LAYER),
    prefix="mpnet.",
    ignored=("pooler.", "lm_head.", "classifier.", "qa_outputs."),
    must_be={"relative_attention_num_buckets": (BUCKETS,), "pad_token_id": (PADDING_ID,)},
)
