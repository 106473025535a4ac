"""Norms, softmax and activations of rows: as fast as memory takes and gives them."""

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.results import Target

# What an element costs in multiplications and multiply-adds, counted twice as everywhere: of the
# algorithm that fastmha uses. Additions, maxima and roundings are left out: newer CPUs have units
# of their own for them.
FLOPS = {
    "layer_norm": 2.0 * 3,  # square, scale, shift
    "add_norm": 2.0 * 3,
    "softmax": 2.0 * (10 + 1),  # exponential, scale
    "gelu": 2.0 * (3 + 9 + 7 + 3),  # reciprocal, polynomial, exponential, join
}
SHAPES = [(4096, 768), (4096, 3072)]
TARGET = Target(torch=1.5, numpy=1.5, share=0.85)


def rows(name: str, count: int, features: int) -> Workload:
    def make() -> problems.RowOperation:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((count, features), dtype=np.float32)
        if name in ("softmax", "gelu"):
            return problems.RowOperation(name, x)
        weight, bias = rng.standard_normal((2, features), dtype=np.float32)
        residual = None
        if name == "add_norm":
            residual = rng.standard_normal((count, features), dtype=np.float32)
        return problems.RowOperation(name, x, residual, weight, bias)

    floats = 4.0 * count * features
    inputs = 2 if name == "add_norm" else 1
    words = "add + norm" if name == "add_norm" else name
    return Workload(
        "norm",
        f"{words} {count} x {features}",
        FLOPS[name] * count * features,
        Traffic(inputs * floats, floats),
        make,
        TARGET,
        # the exponential of gelu's erf is long: its arithmetic may take longer than its bytes
        bound="algorithm" if name == "gelu" else "memory",
    )


def workloads() -> list[Workload]:
    return [rows(name, *shape) for shape in SHAPES for name in FLOPS]
