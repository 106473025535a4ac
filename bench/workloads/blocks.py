"""MultiHeadAttention, encoder and decoder blocks (norms behind the sublayers, ReLU)."""

from dataclasses import dataclass

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.results import Target

SUITE = "blocks"
SHAPES = [(1024, 5), (1, 5), (1, 128), (32, 100), (4, 512)]  # batch, length
ENCODER = dict(zip(SHAPES, (1.7, 5, 1.5, 1.7, 1.4), strict=True))  # times as fast as PyTorch
DECODER = dict(zip(SHAPES, (2, 5, 1.6, 1.8, 1.8), strict=True))


@dataclass(frozen=True)
class Size:
    d_model: int
    heads: int
    d_ff: int

    def __str__(self) -> str:
        return f"{self.d_model}/{self.heads}/{self.d_ff}"

    def attention_state(self, prefix: str, rng: np.random.Generator) -> dict[str, problems.Array]:
        d = self.d_model
        return {
            f"{prefix}in_proj_weight": matrix(rng, 3 * d, d),
            f"{prefix}in_proj_bias": vector(rng, 3 * d),
            f"{prefix}out_proj.weight": matrix(rng, d, d),
            f"{prefix}out_proj.bias": vector(rng, d),
        }

    def block_state(self, kind: str) -> dict[str, problems.Array]:
        """Weights with torch.nn's names, of the size that torch.nn draws."""
        rng = np.random.default_rng(0)
        if kind == "attention":
            return self.attention_state("", rng)
        state = self.attention_state("self_attn.", rng)
        if kind == "decoder":
            state |= self.attention_state("multihead_attn.", rng)
        for name, shape in (
            ("linear1", (self.d_ff, self.d_model)),
            ("linear2", (self.d_model, self.d_ff)),
        ):
            state |= {f"{name}.weight": matrix(rng, *shape), f"{name}.bias": vector(rng, shape[0])}
        for number in (1, 2, 3) if kind == "decoder" else (1, 2):
            ones = np.ones(self.d_model, np.float32)
            state |= {f"norm{number}.weight": ones, f"norm{number}.bias": vector(rng, self.d_model)}
        return state


def matrix(rng: np.random.Generator, rows: int, columns: int) -> problems.Array:
    return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(columns**-0.5)


def vector(rng: np.random.Generator, count: int) -> problems.Array:
    return rng.standard_normal(count, dtype=np.float32) * np.float32(0.1)


def attention_flops(size: Size, batch: int, length: int, *, causal: bool = False) -> float:
    """Four projections and the attention itself, of as many queries as keys."""
    pairs = length * (length + 1) / 2 if causal else length * length
    return 8.0 * batch * length * size.d_model**2 + 4.0 * batch * pairs * size.d_model


def block(kind: str, size: Size, batch: int, length: int, target: Target) -> Workload:
    rows = batch * length
    flops = attention_flops(size, batch, length, causal=kind == "decoder")
    weights, inputs = 4 * size.d_model**2, 1
    if kind == "decoder":
        flops += attention_flops(size, batch, length)
        weights, inputs = 2 * weights, 2
    if kind != "attention":
        flops += 4.0 * rows * size.d_model * size.d_ff
        weights += 2 * size.d_model * size.d_ff

    def make() -> problems.Block:
        shape = (inputs, batch, length, size.d_model)
        x, *memory = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        return problems.Block(
            kind, size.block_state(kind), size.heads, x, memory[0] if memory else None
        )

    if kind == "attention":
        name = f"MultiHeadAttention {batch} x {length} x {size.d_model}, {size.heads} heads"
    else:
        name = f"{kind.capitalize()}Block {size}, {batch} x {length}"
    moved = 4.0 * rows * size.d_model
    traffic = Traffic(inputs * moved + 4.0 * weights, moved)
    return Workload(SUITE, name, flops, traffic, make, target)


def workloads() -> list[Workload]:
    base, wide = Size(512, 8, 2048), Size(768, 12, 3072)
    found = [block("attention", base, 1024, 5, Target(torch=2.2, share=0.8))]
    for size in (base, wide):
        for kind, ratios in (("encoder", ENCODER), ("decoder", DECODER)):
            for (batch, length), ratio in ratios.items():
                # one short sequence reads the weights and does little else
                reads = kind == "encoder" and size == base and (batch, length) == (1, 5)
                target = Target(torch=ratio, share=0.8 if reads else 0.85)
                found.append(block(kind, size, batch, length, target))
    return found
