"""M2M100 (Fan et al., https://arxiv.org/abs/2010.11125) and NLLB-200 without experts (NLLB Team,
https://arxiv.org/abs/2207.04672): sinusoidal positions that are counted from `pad_token_id` + 1,
norms first."""

from dataclasses import dataclass

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

__all__ = ["M2M_100", "M2M100Config"]


@dataclass(frozen=True)
class M2M100Config(Seq2SeqConfig):
    activation_function: str = "relu"
    scale_embedding: bool = True
    pad_token_id: int = 1


def network(config: M2M100Config) -> AbsoluteEncoderDecoder:
    if config.d_model < 4:
        raise ValueError(f"d_model must be at least 4, got {config.d_model}")
    rows = config.pad_token_id + 1 + config.max_position_embeddings
    positions = m2m_positions(rows, config.d_model)
    positions[config.pad_token_id] = 0
    scale = config.d_model**0.5 if config.scale_embedding else None
    source, target = (
        TokenEmbedding(Table(config.vocab_size, config.d_model), scale=scale, positions=positions)
        for _ in range(2)
    )
    return AbsoluteEncoderDecoder(
        config,
        source,
        target,
        norm_first=True,
        output_bias=False,
        tied=tied(config, SHARED, SOURCE, TARGET),
        padding_id=config.pad_token_id,
    )


def m2m_positions(count: int, dim: int) -> Float32:
    """(count, dim): sin(p / 10000^(i / (half - 1))) at i < half = dim // 2, the cosines behind.

    Speeds and angles are float32, as in transformers: at position 1,000 their rounding shows.
    """
    half = dim // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-np.log(10_000) / (half - 1))
    speeds = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(count, dtype=np.float32)[:, None] * speeds).astype(np.float64)
    table = np.zeros((count, dim), np.float32)
    table[:, :half], table[:, half : 2 * half] = np.sin(angles), np.cos(angles)
    return table


M2M_100 = Family(
    M2M100Config,
    network,
    {
        **{ours: theirs for ours, theirs in NAMES.items() if ours != "output.bias"},
        "encoder.norm": "encoder.layer_norm",
        "decoder.norm": "decoder.layer_norm",
    },
    ("encoder.layers", ENCODER_LAYER),
    prefix="model.",
    decoder_layers=("decoder.layers", DECODER_LAYER),
    # sines and cosines that older versions stored, and a mark of fairseq's
    ignored=(
        *("encoder.embed_positions.", "decoder.embed_positions."),
        *("encoder.version", "decoder.version"),
    ),
    must_be=NOT_SUPPORTED,
)
