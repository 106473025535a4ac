"""x W^T + bias: large products at the FMA peak, a few rows at the speed of reading the weights."""

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.results import Target

# rows, in_features, out_features, target
LARGE = [
    (5120, 512, 512, Target(torch=1.2, numpy=1.1, share=0.9)),  # projections of the worked example
    (4096, 768, 3072, Target(torch=1.2, numpy=1.1, share=0.9)),
    (4096, 3072, 768, Target(torch=1.1, numpy=1.05, share=0.87)),
    (128, 768, 768, Target(torch=1.2, numpy=1.1, share=0.94)),
]
FEW_ROWS = [
    (rows, in_features, out_features, Target(torch=ratio, share=0.9))
    for in_features, out_features in ((4096, 4096), (768, 3072))
    for rows, ratio in ((1, 2.2), (2, 4.5), (4, 4.5))
]


def linear(rows: int, in_features: int, out_features: int, target: Target) -> Workload:
    def make() -> problems.Linear:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, in_features), dtype=np.float32)
        weight = rng.standard_normal((out_features, in_features), dtype=np.float32)
        weight *= np.float32(in_features**-0.5)
        return problems.Linear(x, weight, rng.standard_normal(out_features, dtype=np.float32))

    weights = in_features * out_features + out_features
    return Workload(
        "linear",
        f"linear {rows} x {in_features} -> {out_features}",
        2.0 * rows * in_features * out_features,
        Traffic(4.0 * (rows * in_features + weights), 4.0 * rows * out_features),
        make,
        target,
        error_factor=4.0,
    )


def workloads() -> list[Workload]:
    return [linear(*shape) for shape in LARGE + FEW_ROWS]
