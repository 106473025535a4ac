"""BERT (Devlin et al., https://arxiv.org/abs/1810.04805), and MiniLM, BGE, GTE, E5, which are BERTs
of other sizes."""

from dataclasses import dataclass

from fastmha.families.family import Family, Names
from fastmha.families.networks import AbsoluteEncoder, Embeddings, encoder_blocks
from fastmha.families.settings import named_activation

__all__ = ["BERT", "BertConfig"]


@dataclass(frozen=True)
class BertConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str = "gelu"
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


def network(config: BertConfig, *, padding_id: int | None = None) -> AbsoluteEncoder:
    embeddings = Embeddings(
        config.vocab_size,
        config.hidden_size,
        config.layer_norm_eps,
        positions=config.max_position_embeddings,
        types=config.type_vocab_size,
    )
    blocks = encoder_blocks(
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        named_activation(config.hidden_act, "hidden_act"),
        config.layer_norm_eps,
    )
    return AbsoluteEncoder(embeddings, blocks, padding_id=padding_id)


EMBEDDINGS = {
    "embeddings.words": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.types": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
LAYER: Names = {
    "self_attn.in_proj": (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ),
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}

BERT = Family(
    BertConfig,
    network,
    EMBEDDINGS,
    ("encoder.layer", LAYER),
    prefix="bert.",
    ignored=("pooler.", "cls.", "classifier.", "qa_outputs."),
)
