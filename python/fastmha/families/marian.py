"""MarianMT (Junczys-Dowmunt et al., https://arxiv.org/abs/1804.00344), OPUS-MT: the Transformer of
the paper with its sines apart from its cosines and a bias on the logits."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmha._types import Float32
from fastmha.families.family import Family
from fastmha.families.networks import Table
from fastmha.families.seq2seq import (
    DECODER_LAYER,
    ENCODER_LAYER,
    NAMES,
    NOT_SUPPORTED,
    SHARED,
    SOURCE,
    TARGET,
    AbsoluteEncoderDecoder,
    Seq2SeqConfig,
    TokenEmbedding,
    tied,
)
from fastmha.nn.layers import sinusoidal_positions

__all__ = ["MARIAN", "MarianConfig"]


@dataclass(frozen=True)
class MarianConfig(Seq2SeqConfig):
    decoder_vocab_size: int = 0
    share_encoder_decoder_embeddings: bool = True


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """One vocabulary where no other is named."""
    config = dict(config)
    if not config.get("decoder_vocab_size") or config.get("share_encoder_decoder_embeddings", True):
        config["decoder_vocab_size"] = config.get("vocab_size")
    return config


def network(config: MarianConfig) -> AbsoluteEncoderDecoder:
    positions = marian_positions(config.max_position_embeddings, config.d_model)
    scale = config.d_model**0.5 if config.scale_embedding else None
    source, target = (
        TokenEmbedding(Table(size, config.d_model), scale=scale, positions=positions)
        for size in (config.vocab_size, config.decoder_vocab_size)
    )
    tables = (SHARED, SOURCE, TARGET) if config.share_encoder_decoder_embeddings else (TARGET,)
    return AbsoluteEncoderDecoder(
        config, source, target, norm_first=False, output_bias=True, tied=tied(config, *tables)
    )


def marian_positions(count: int, dim: int) -> Float32:
    """(count, dim): the sines of :func:`sinusoidal_positions` in front, the cosines behind."""
    table = sinusoidal_positions(count, dim)
    return np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)


MARIAN = Family(
    MarianConfig,
    network,
    NAMES,
    ("encoder.layers", ENCODER_LAYER),
    prefix="model.",
    decoder_layers=("decoder.layers", DECODER_LAYER),
    optional=("final_logits_bias",),
    # sines and cosines that older versions stored
    ignored=("encoder.embed_positions.", "decoder.embed_positions."),
    must_be={**NOT_SUPPORTED, "normalize_before": (False,)},
    prepare=prepare,
)
