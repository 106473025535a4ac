"""MPNet (Song et al., https://arxiv.org/abs/2004.09297): RoBERTa's positions, and a bias on every
score that depends on how far key and query are apart.

The kernels know no such bias as a parameter, so it goes in as a mask, which needs sequences of one
length: sequences that follow each other and are equally long share a call (they come sorted). The
mask of a length is a view of one row per head: no (L, L) array is built.

    row of a head   b[-3] b[-2] b[-1] b[0] b[1] b[2] b[3]      b[d]: key d places after the query
    query 0                           b[0] b[1] b[2] b[3]
    query 1                     b[-1] b[0] b[1] b[2]           each query one place further left
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmha._types import Float32, Int64
from fastmha.families import bert
from fastmha.families.family import Family, Names
from fastmha.families.networks import Embeddings, Network, Table, positions_within
from fastmha.families.settings import named_activation
from fastmha.functional import scaled_dot_product_attention
from fastmha.nn.blocks import FeedForward
from fastmha.nn.layers import LayerNorm, Linear
from fastmha.nn.module import UNSET, Module, check_size

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


@dataclass(frozen=True)
class Group:
    """Sequences of one length that lie next to each other, and their mask."""

    rows: slice
    count: int
    length: int
    mask: Float32  # (1, heads, length, length)


class MPNetBlock(Module):
    """Self-attention with a mask per group, add & norm, feed-forward, add & norm."""

    def __init__(self, d_model: int, num_heads: int, d_ff: int, activation: str, eps: float):
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.in_proj = Linear.of_size(d_model, 3 * d_model, seed=UNSET)
        self.out_proj = Linear.of_size(d_model, d_model, seed=UNSET)
        self.norm1, self.norm2 = LayerNorm(d_model, eps), LayerNorm(d_model, eps)
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, seed=UNSET)

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "in_proj", self.in_proj
        yield "out_proj", self.out_proj
        yield "norm1", self.norm1
        yield "", self.feed_forward
        yield "norm2", self.norm2

    def __call__(self, x: Float32, groups: list[Group], weights: list[Float32] | None) -> Float32:
        qkv = self.in_proj(x).reshape(len(x), 3, self.num_heads, self.head_dim)
        out = np.empty((len(x), self.num_heads, self.head_dim), np.float32)
        for group in groups:
            shape = (group.count, group.length, self.num_heads, self.head_dim)
            q, k, v = (
                qkv[group.rows, part].reshape(shape).transpose(0, 2, 1, 3) for part in range(3)
            )
            attended: Any = scaled_dot_product_attention(
                q, k, v, group.mask,
                return_weights=weights is not None,
                out=out[group.rows].reshape(shape).transpose(0, 2, 1, 3),
            )  # fmt: skip
            if weights is not None:
                weights.extend(attended[1])
        x = self.norm1(self.out_proj(out.reshape(x.shape), residual=x))
        return self.norm2(self.feed_forward(x, residual=x))


class MPNet(Network):
    def __init__(self, config: MPNetConfig) -> None:
        check_size("MPNet", num_attention_heads=config.num_attention_heads)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
                f"({config.num_attention_heads})"
            )
        self.vocab_size, self.d_model = config.vocab_size, config.hidden_size
        self.max_length = config.max_position_embeddings - (PADDING_ID + 1)
        self.embeddings = Embeddings(
            config.vocab_size,
            config.hidden_size,
            config.layer_norm_eps,
            positions=config.max_position_embeddings,
        )
        activation = named_activation(config.hidden_act, "hidden_act")
        self.layers = [
            MPNetBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                activation,
                config.layer_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.bias = Table(BUCKETS, config.num_attention_heads)

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "embeddings", self.embeddings
        for index, block in enumerate(self.layers):
            yield f"layers.{index}", block
        yield "bias", self.bias

    def _forward(
        self, ids: Int64, cu_seqlens: Int64, weights: list[Sequence[Float32]] | None
    ) -> Float32:
        x = self.embeddings(ids, positions_within(ids, cu_seqlens, PADDING_ID))
        groups = list(self._groups(cu_seqlens))
        for block in self.layers:
            own: list[Float32] | None = None if weights is None else []
            x = block(x, groups, own)
            if weights is not None and own is not None:
                weights.append(own)
        return x

    def _groups(self, cu_seqlens: Int64) -> Iterator[Group]:
        lengths = np.diff(cu_seqlens)
        longest = int(lengths.max(initial=1))
        distances = np.arange(1 - longest, longest)
        by_distance = np.ascontiguousarray(self.bias.weight[buckets(distances)].T)
        changes = np.flatnonzero(np.diff(lengths)) + 1
        for first, end in zip([0, *changes], [*changes, len(lengths)], strict=True):
            length = int(lengths[first]) if len(lengths) else 0
            if length == 0:
                continue
            rows = by_distance[:, longest - length : longest + length - 1]
            views = np.lib.stride_tricks.sliding_window_view(rows, length, axis=1)
            mask = views[None, :, ::-1]  # (1, heads, length, length): query 0 begins at distance 0
            yield Group(
                slice(int(cu_seqlens[first]), int(cu_seqlens[end])),
                int(end - first), length, mask,
            )  # fmt: skip


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
    "in_proj": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    "out_proj": "attention.attn.o",
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
