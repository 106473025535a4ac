"""DistilBERT (Sanh et al., https://arxiv.org/abs/1910.01108): BERT without token types."""

from dataclasses import dataclass

from fastmha.families.family import Family, Names
from fastmha.families.networks import AbsoluteEncoder, Embeddings, encoder_blocks
from fastmha.families.settings import named_activation

__all__ = ["DISTILBERT", "DistilBertConfig"]

EPS = 1e-12  # fixed in the family, no field of its config


@dataclass(frozen=True)
class DistilBertConfig:
    # sinusoidal_pos_embds says how positions were initialised; they are stored either way
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    max_position_embeddings: int
    activation: str = "gelu"


def network(config: DistilBertConfig) -> AbsoluteEncoder:
    activation = named_activation(config.activation, "activation")
    return AbsoluteEncoder(
        Embeddings(config.vocab_size, config.dim, EPS, positions=config.max_position_embeddings),
        encoder_blocks(
            config.n_layers, config.dim, config.n_heads, config.hidden_dim, activation, EPS
        ),
    )


EMBEDDINGS = {
    "embeddings.words": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
LAYER: Names = {
    "self_attn.in_proj": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "self_attn.out_proj": "attention.out_lin",
    "norm1": "sa_layer_norm",
    "linear1": "ffn.lin1",
    "linear2": "ffn.lin2",
    "norm2": "output_layer_norm",
}

DISTILBERT = Family(
    DistilBertConfig,
    network,
    EMBEDDINGS,
    ("transformer.layer", LAYER),
    prefix="distilbert.",
    ignored=("pre_classifier.", "classifier.", "qa_outputs.", "vocab_"),
)
