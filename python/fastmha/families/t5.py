"""T5 (Raffel et al., https://arxiv.org/abs/1910.10683), T5 v1.1 and Flan-T5, mT5 (Xue et al.,
https://arxiv.org/abs/2010.11934).

No positions but a bias on every score by how far apart query and key are, the same in all layers of
a stack; scores are not scaled. RMS norms in front of the sub-layers, a feed-forward that may be
gated, no biases anywhere else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastmha._types import Float32, Int64
from fastmha.families.distances import DistanceBias
from fastmha.families.family import Family, Names
from fastmha.families.networks import Table
from fastmha.families.seq2seq import NOT_SUPPORTED, OUTPUT, SHARED, SOURCE, TARGET
from fastmha.families.settings import named_activation
from fastmha.nn.blocks import Decoder, DecoderBlock, Encoder, EncoderBlock
from fastmha.nn.encoder_decoder import EncoderDecoder
from fastmha.nn.layers import Linear, RMSNorm
from fastmha.nn.module import UNSET, Module

__all__ = ["MT5", "T5", "T5Config"]

# A table by distance ends where the last bucket begins. The distances of checkpoints are 128; more
# than this is a config gone wrong.
MOST_DISTANCE = 100_000


@dataclass(frozen=True)
class T5Config:
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    feed_forward_proj: str = "relu"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    scale_decoder_outputs: bool = True


@dataclass(frozen=True)
class MT5Config(T5Config):
    feed_forward_proj: str = "gated-gelu"


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """As many layers in the decoder as in the encoder where nothing else is said; T5 v1.1 says that
    outputs are not scaled by saying that embeddings are not tied."""
    config = dict(config)
    if config.get("num_decoder_layers") is None and "num_layers" in config:
        config["num_decoder_layers"] = config["num_layers"]
    if config.get("scale_decoder_outputs") is None:
        config["scale_decoder_outputs"] = config.get("tie_word_embeddings") is not False
    _, activation = feed_forward(config.get("feed_forward_proj", "relu"))
    given = config.get("dense_act_fn")  # transformers writes what it took from feed_forward_proj
    if given is not None and "feed_forward_proj" in config and given != activation:
        raise ValueError(
            f"dense_act_fn is {given!r}, feed_forward_proj {config['feed_forward_proj']!r} "
            f"means {activation!r}"
        )
    return config


def prepare_mt5(config: dict[str, Any]) -> dict[str, Any]:
    """mT5 never scales outputs."""
    return {**prepare(config), "scale_decoder_outputs": False}


def feed_forward(name: object) -> tuple[bool, str]:
    """Whether it is gated, and transformers' name of its activation."""
    gated, _, activation = str(name).rpartition("-")
    if not isinstance(name, str) or gated not in ("", "gated"):
        raise ValueError(
            f"feed_forward_proj must be an activation or 'gated-' and one, got {name!r}"
        )
    if name == "gated-gelu":
        activation = "gelu_new"  # what T5 v1.1 was trained with
    return bool(gated), activation


class T5Network(EncoderDecoder):
    def __init__(self, config: T5Config) -> None:
        count, furthest = (
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        if count < 4:
            raise ValueError(f"relative_attention_num_buckets must be at least 4, got {count}")
        if not count // 2 < furthest <= MOST_DISTANCE:
            raise ValueError(
                f"relative_attention_max_distance must lie in {count // 2 + 1} .. {MOST_DISTANCE} "
                f"with {count} buckets, got {furthest}"
            )
        self.source_vocab_size = self.vocab_size = config.vocab_size
        self.d_model = config.d_model
        self.max_source_length = self.max_target_length = None
        self._scale = np.float32(config.d_model**-0.5) if config.scale_decoder_outputs else None
        gated, activation = feed_forward(config.feed_forward_proj)
        options = {
            **{"activation": named_activation(activation, "feed_forward_proj"), "gated": gated},
            **{"norm": "rms_norm", "norm_first": True, "norm_eps": config.layer_norm_epsilon},
            **{"head_dim": config.d_kv, "scale": 1.0, "bias": False, "seed": UNSET},
        }

        def stack(kind: Any, block: Any, layers: int) -> Any:
            sizes = (config.d_model, config.num_heads, config.d_ff)
            return kind(
                [block(*sizes, **options) for _ in range(layers)],
                RMSNorm(config.d_model, config.layer_norm_epsilon),
            )

        self.source = Table(config.vocab_size, config.d_model)
        self.target = Table(config.vocab_size, config.d_model)
        self.encoder = stack(Encoder, EncoderBlock, config.num_layers)
        self.decoder = stack(Decoder, DecoderBlock, config.num_decoder_layers)
        self.encoder_bias, self.decoder_bias = (
            DistanceBias(count, config.num_heads, furthest, both_sides=both_sides)
            for both_sides in (True, False)
        )
        self.output = Linear.of_size(config.d_model, config.vocab_size, bias=False, seed=UNSET)
        names = tuple(f"{module}.weight" for module in (SHARED, SOURCE, TARGET, OUTPUT))
        self.tied = dict.fromkeys(names, names)
        self.renamed = {name: f"{name}_0" for name in PLAIN} if gated else {}

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "source", self.source
        yield "target", self.target
        yield "encoder_bias", self.encoder_bias
        yield "decoder_bias", self.decoder_bias
        yield from self._blocks()
        yield "output", self.output

    def _biases(self) -> tuple[Float32, Float32]:
        return self.encoder_bias.by_distance, self.decoder_bias.by_distance

    def _embed_source(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        return self.source.weight.take(ids, axis=0)

    def _embed_target(self, ids: Int64, positions: Int64) -> Float32:
        return self.target.weight.take(ids, axis=0)

    def _logits(self, x: Float32) -> Float32:
        if self._scale is not None:
            x *= self._scale
        return self.output(x)


PLAIN = ("layer.1.DenseReluDense.wi", "layer.2.DenseReluDense.wi")


def layer(attentions: tuple[tuple[str, str], ...]) -> Names:
    """The names within a layer of these attentions, (ours, theirs), and a feed-forward."""
    names: dict[str, str | tuple[str, ...]] = {}
    for place, (ours, theirs) in enumerate(attentions):
        module = f"layer.{place}.{theirs}"
        names[f"{ours}.in_proj"] = tuple(f"{module}.{letter}" for letter in "qkv")
        names[f"{ours}.out_proj"] = f"{module}.o"
        names[f"norm{place + 1}"] = f"layer.{place}.layer_norm"
    last = len(attentions)
    module = f"layer.{last}.DenseReluDense"
    return {
        **names,
        "linear1": f"{module}.wi",
        "gate": f"{module}.wi_1",
        "linear2": f"{module}.wo",
        f"norm{last + 1}": f"layer.{last}.layer_norm",
    }


SELF, CROSS = ("self_attn", "SelfAttention"), ("multihead_attn", "EncDecAttention")
BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias"
family = partial(
    Family[T5Network],
    network=T5Network,
    names={
        **{"source": SOURCE, "target": TARGET, "output": OUTPUT},
        **{"encoder_bias": f"encoder.{BIAS}", "decoder_bias": f"decoder.{BIAS}"},
        **{"encoder.norm": "encoder.final_layer_norm", "decoder.norm": "decoder.final_layer_norm"},
    },
    layers=("encoder.block", layer((SELF,))),
    decoder_layers=("decoder.block", layer((SELF, CROSS))),
    prefix="",
    # a bias of attention to the source, which early versions stored and nothing reads
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",),
    must_be=NOT_SUPPORTED,
)
T5 = family(T5Config, prepare=prepare)
MT5 = family(MT5Config, prepare=prepare_mt5)
