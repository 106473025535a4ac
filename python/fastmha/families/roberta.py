"""RoBERTa (Liu et al., https://arxiv.org/abs/1907.11692), XLM-RoBERTa and CamemBERT: BERT whose
positions are counted from the padding token's id + 1."""

from dataclasses import dataclass

from fastmha.families import bert
from fastmha.families.family import Family
from fastmha.families.networks import AbsoluteEncoder

__all__ = ["ROBERTA", "RobertaConfig"]


@dataclass(frozen=True)
class RobertaConfig(bert.BertConfig):
    pad_token_id: int = 1


def network(config: RobertaConfig) -> AbsoluteEncoder:
    if config.max_position_embeddings <= config.pad_token_id + 1:
        raise ValueError(
            f"max_position_embeddings ({config.max_position_embeddings}) leaves no position after "
            f"pad_token_id ({config.pad_token_id})"
        )
    return bert.network(config, padding_id=config.pad_token_id)


ROBERTA = Family(
    RobertaConfig,
    network,
    bert.EMBEDDINGS,
    ("encoder.layer", bert.LAYER),
    prefix="roberta.",
    ignored=("pooler.", "lm_head.", "classifier.", "qa_outputs."),
)
