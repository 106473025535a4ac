"""MPNet (Song et al., https://arxiv.org/abs/2004.09297): RoBERTa's positions, and a bias on every
score that depends on how far key and query are apart."""

from collections.abc import Iterator
from dataclasses import dataclass

from fastmha._types import Float32
from fastmha.families import bert
from fastmha.families.distances import DistanceBias
from fastmha.families.family import Family, Names
from fastmha.families.networks import AbsoluteEncoder, Embeddings, encoder_blocks
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
        self.bias = DistanceBias(BUCKETS, config.num_attention_heads, FURTHEST, both_sides=True)

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield from super()._children()
        yield "bias", self.bias

    def _relative_bias(self) -> Float32:
        return self.bias.by_distance


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
