"""x W^T + b: OpenBLAS through NumPy, torch's linear, fastmha's packed weights."""

from functools import partial

import fastmha as fm
import numpy as np
import torch

from bench.harness import OURS, Case, Workload

# rows, in_features, out_features
SHAPES = [
    (5120, 512, 512),  # the projections of the worked example
    (1, 4096, 4096),  # one row: as fast as memory gives the weights
]


def make(rows: int, in_features: int, out_features: int) -> Case:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, in_features), dtype=np.float32)
    weight = rng.standard_normal((out_features, in_features), dtype=np.float32)
    weight *= np.float32(in_features**-0.5)
    bias = rng.standard_normal(out_features, dtype=np.float32)
    tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
    ours = fm.Linear(weight, bias)
    return Case(
        {
            OURS: lambda: ours(x),
            "torch": lambda: torch.nn.functional.linear(*tensors),
            "numpy": lambda: x @ weight.T + bias,
        },
        x.astype(np.float64) @ weight.astype(np.float64).T + bias,
        tolerance=2.0**-24 * in_features,
    )


def workloads() -> list[Workload]:
    return [
        Workload(
            "linear",
            f"linear {rows} x {in_features} -> {out_features}",
            flops=2.0 * rows * in_features * out_features,
            bytes=4.0 * (rows * (in_features + out_features) + in_features * out_features),
            make=partial(make, rows, in_features, out_features),
        )
        for rows, in_features, out_features in SHAPES
    ]
