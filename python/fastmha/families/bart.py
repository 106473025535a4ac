"""BART (Lewis et al., https://arxiv.org/abs/1910.13461): learnt positions that begin in row 2, a
norm on the embeddings. mBART (Liu et al., https://arxiv.org/abs/2001.08210): BART with its norms in
front of the sub-layers."""

from functools import partial

from fastmha.families.family import Family
from fastmha.families.networks import Table
from fastmha.families.seq2seq import (
    DECODER_LAYER,
    ENCODER_LAYER,
    EPS,
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

__all__ = ["BART", "MBART"]

FIRST = 2  # rows that padding and start once took; fixed in the family


def network(config: Seq2SeqConfig, *, norm_first: bool) -> AbsoluteEncoderDecoder:
    scale = config.d_model**0.5 if config.scale_embedding else None
    source, target = (
        TokenEmbedding(
            Table(config.vocab_size, config.d_model),
            scale=scale,
            positions=config.max_position_embeddings + FIRST,
            first=FIRST,
            eps=EPS,
        )
        for _ in range(2)
    )
    return AbsoluteEncoderDecoder(
        config,
        source,
        target,
        norm_first=norm_first,
        output_bias=True,
        tied=tied(config, SHARED, SOURCE, TARGET),
    )


BART_NAMES = {
    **NAMES,
    "source.positions": "encoder.embed_positions",
    "source.norm": "encoder.layernorm_embedding",
    "target.positions": "decoder.embed_positions",
    "target.norm": "decoder.layernorm_embedding",
}
IGNORED = ("encoder.version", "decoder.version")  # of fairseq

BART = Family(
    Seq2SeqConfig,
    partial(network, norm_first=False),
    BART_NAMES,
    ("encoder.layers", ENCODER_LAYER),
    prefix="model.",
    decoder_layers=("decoder.layers", DECODER_LAYER),
    optional=("final_logits_bias",),
    ignored=IGNORED,
    must_be={**NOT_SUPPORTED, "normalize_before": (False,)},
)

MBART = Family(
    Seq2SeqConfig,
    partial(network, norm_first=True),
    {**BART_NAMES, "encoder.norm": "encoder.layer_norm", "decoder.norm": "decoder.layer_norm"},
    ("encoder.layers", ENCODER_LAYER),
    prefix="model.",
    decoder_layers=("decoder.layers", DECODER_LAYER),
    optional=("final_logits_bias",),
    ignored=IGNORED,
    must_be={**NOT_SUPPORTED, "normalize_before": (True,)},
)
