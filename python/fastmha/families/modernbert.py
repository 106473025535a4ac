"""ModernBERT (Warner et al., https://arxiv.org/abs/2412.13663).

Norms first (none before the first attention, the embeddings have just been normalised), rotary
positions, a gated feed-forward, few biases; in most layers a token sees its neighbours alone, in
every third one all tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastmha._types import Float32, Int64
from fastmha.families.family import Family, Names
from fastmha.families.networks import Embeddings, Network, positions_within
from fastmha.families.settings import named_activation
from fastmha.functional import varlen_attention
from fastmha.nn.blocks import FeedForward
from fastmha.nn.layers import LayerNorm, Linear
from fastmha.nn.module import UNSET, Module, Shape, check_size

__all__ = ["MODERNBERT", "ModernBertConfig"]

GLOBAL, LOCAL = "full_attention", "sliding_attention"
MOST_LAYERS = 10_000  # no list of kinds is made for more: a config may say anything
THETA = {GLOBAL: 160_000.0, LOCAL: 10_000.0}


@dataclass(frozen=True)
class ModernBertConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_types: list  # type: ignore[type-arg]
    rope_parameters: dict = field(default_factory=dict)  # type: ignore[type-arg]
    local_attention: int = 128
    hidden_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """Older configs say how often a layer is global, and one theta per kind of layer."""
    config = dict(config)
    if config.get("layer_types") is None:
        every = config.get("global_attn_every_n_layers", 3)
        layers = config.get("num_hidden_layers", 0)
        for name, value in (("global_attn_every_n_layers", every), ("num_hidden_layers", layers)):
            if type(value) is not int or not 1 <= value <= MOST_LAYERS:
                raise ValueError(f"{name} must be an int in 1 .. {MOST_LAYERS}, got {value!r}")
        config["layer_types"] = [LOCAL if layer % every else GLOBAL for layer in range(layers)]
    given = config.get("rope_parameters")
    older = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}
    parameters = {}
    for kind, name in older.items():
        entry = given.get(kind) if isinstance(given, dict) else None
        parameters[kind] = {"rope_theta": config.get(name, THETA[kind]), **(entry or {})}
    config["rope_parameters"] = parameters
    return config


def check(config: ModernBertConfig) -> None:
    """What the types of the fields do not say."""
    if len(config.layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"layer_types has {len(config.layer_types)} entries, num_hidden_layers is "
            f"{config.num_hidden_layers}"
        )
    for kind in config.layer_types:
        if kind not in THETA:
            raise ValueError(f"layer_types must hold {GLOBAL!r} and {LOCAL!r}, got {kind!r}")
    check_size("ModernBert", num_attention_heads=config.num_attention_heads)
    if config.hidden_size % (2 * config.num_attention_heads):
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be an even multiple of num_attention_heads "
            f"({config.num_attention_heads})"
        )
    for kind, entry in config.rope_parameters.items():
        if entry.get("rope_type", entry.get("type", "default")) != "default":
            raise ValueError(f"rope_parameters: {kind}: rope_type must be 'default', got {entry}")
        theta = entry["rope_theta"]
        if not isinstance(theta, int | float) or isinstance(theta, bool) or theta <= 0:
            raise ValueError(f"rope_parameters: {kind}: rope_theta must be above 0, got {theta!r}")


class GatedFeedForward(FeedForward):
    """A gated feed-forward; what is activated and what gates it are one matrix in checkpoints."""

    def __init__(self, d_model: int, d_ff: int, activation: str, bias: bool) -> None:
        super().__init__(d_model, d_ff, activation=activation, bias=bias, gated=True, seed=UNSET)
        assert self.gate is not None
        self._halves = self.linear1, self.gate

    def _own_shapes(self) -> dict[str, Shape]:
        return {
            f"linear1_and_gate.{name}": (2 * shape[0], *shape[1:])
            for name, shape in self.linear1.state_shapes().items()
        }

    def _own_state(self) -> dict[str, Float32]:
        states = [half.state_dict() for half in self._halves]
        return {
            f"linear1_and_gate.{name}": np.concatenate([state[name] for state in states])
            for name in states[0]
        }

    def _set_own(self, state: dict[str, Float32]) -> None:
        for n, half in enumerate(self._halves):
            half._assign(
                {
                    name: np.split(state[f"linear1_and_gate.{name}"], 2)[n]
                    for name in half.state_shapes()
                }
            )

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "linear2", self.linear2


class ModernBertBlock(Module):
    """x + attention(norm1(x)), then x + feed_forward(norm2(x))."""

    def __init__(self, config: ModernBertConfig, layer: int) -> None:
        d_model, eps, bias = config.hidden_size, config.norm_eps, config.norm_bias
        self.kind = config.layer_types[layer]
        self.num_heads = config.num_attention_heads
        near = config.local_attention // 2  # on each side
        self.window = (near, near) if self.kind == LOCAL else None
        self.norm1 = LayerNorm(d_model, eps, bias=bias) if layer else None
        self.in_proj = Linear.of_size(d_model, 3 * d_model, bias=config.attention_bias, seed=UNSET)
        self.out_proj = Linear.of_size(d_model, d_model, bias=config.attention_bias, seed=UNSET)
        self.norm2 = LayerNorm(d_model, eps, bias=bias)
        self.feed_forward = GatedFeedForward(
            d_model,
            config.intermediate_size,
            named_activation(config.hidden_activation, "hidden_activation"),
            config.mlp_bias,
        )

    def _children(self) -> Iterator[tuple[str, Module]]:
        if self.norm1 is not None:
            yield "norm1", self.norm1
        yield "in_proj", self.in_proj
        yield "out_proj", self.out_proj
        yield "norm2", self.norm2
        yield "feed_forward", self.feed_forward

    def __call__(
        self, x: Float32, cu_seqlens: Int64, rotation: tuple[Float32, Float32], weights: bool
    ) -> tuple[Float32, Sequence[Float32]]:
        rows = self.in_proj(x if self.norm1 is None else self.norm1(x))
        heads = rows.reshape(len(x), 3, self.num_heads, -1)
        qk = rotated(heads[:, :2], *rotation)
        attended: Any = varlen_attention(
            qk[:, 0], qk[:, 1], heads[:, 2], cu_seqlens,
            window=self.window, return_weights=weights,
        )  # fmt: skip
        out, maps = attended if weights else (attended, ())
        x = self.out_proj(out.reshape(x.shape), residual=x)
        return self.feed_forward(x, residual=x, norm_before=self.norm2, out=x), maps


class ModernBert(Network):
    def __init__(self, config: ModernBertConfig) -> None:
        check(config)
        self.vocab_size, self.d_model = config.vocab_size, config.hidden_size
        self.max_length = config.max_position_embeddings
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.embeddings = Embeddings(
            config.vocab_size, config.hidden_size, config.norm_eps, norm_bias=config.norm_bias
        )
        self.layers = [ModernBertBlock(config, n) for n in range(config.num_hidden_layers)]
        self.norm = LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)
        self.thetas = {
            kind: float(config.rope_parameters[kind]["rope_theta"])
            for kind in sorted(set(config.layer_types))
        }

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "embeddings", self.embeddings
        for index, block in enumerate(self.layers):
            yield f"layers.{index}", block
        yield "norm", self.norm

    def _forward(
        self, ids: Int64, cu_seqlens: Int64, weights: list[Sequence[Float32]] | None
    ) -> Float32:
        positions = positions_within(ids, cu_seqlens)
        rotations = {
            kind: rotation(positions, self.head_dim, theta) for kind, theta in self.thetas.items()
        }
        x = self.embeddings(ids)
        for block in self.layers:
            x, maps = block(x, cu_seqlens, rotations[block.kind], weights is not None)
            if weights is not None:
                weights.append(maps)
        return self.norm(x)


def rotation(positions: Int64, head_dim: int, theta: float) -> tuple[Float32, Float32]:
    """Cosine and sine (T, 1, 1, head_dim / 2) of position * theta^(-2i / head_dim).

    Angles are float32, as in transformers: at position 8,000 their rounding shows in the result.
    """
    speeds = (1 / theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles = positions.astype(np.float32)[:, None] * speeds
    exact = angles.astype(np.float64)[:, None, None]
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)


def rotated(heads: Float32, cosine: Float32, sine: Float32) -> Float32:
    """Turn each pair (i, i + head_dim / 2) of `heads` (T, ..., head_dim) by its angle.

    References
    ----------
    Su et al., "RoFormer", https://arxiv.org/abs/2104.09864.
    """
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    out = np.empty(heads.shape, np.float32)
    out[..., :half] = first * cosine - second * sine
    out[..., half:] = second * cosine + first * sine
    return out


LAYER: Names = {
    "norm1": "attn_norm",
    "in_proj": "attn.Wqkv",
    "out_proj": "attn.Wo",
    "norm2": "mlp_norm",
    "feed_forward.linear1_and_gate": "mlp.Wi",
    "feed_forward.linear2": "mlp.Wo",
}

MODERNBERT = Family(
    ModernBertConfig,
    ModernBert,
    {
        "embeddings.words": "embeddings.tok_embeddings",
        "embeddings.norm": "embeddings.norm",
        "norm": "final_norm",
    },
    ("layers", LAYER),
    prefix="model.",
    ignored=("head.", "decoder.", "classifier."),
    must_be={"rope_scaling": ()},  # of configs that name it apart from rope_parameters
    prepare=prepare,
)
