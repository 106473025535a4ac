"""One query per sequence over the keys of a cache: as fast as memory gives them."""

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.results import Target


def decode(
    batch: int, heads: int, kv_heads: int, length: int, dim: int, target: Target
) -> Workload:
    def make() -> problems.Attention:
        rng = np.random.default_rng(0)
        query = rng.standard_normal((batch, heads, 1, dim), dtype=np.float32)
        key, value = (
            rng.standard_normal((batch, kv_heads, length, dim), dtype=np.float32) for _ in range(2)
        )
        return problems.Attention(query, key, value)

    named = f"{heads}" if heads == kv_heads else f"{heads}/{kv_heads}"
    rows = 4.0 * batch * heads * dim
    return Workload(
        "decode",
        f"decode {batch} x {named} x {length} x {dim}",
        4.0 * batch * heads * length * dim,
        Traffic(rows + 2 * 4.0 * batch * kv_heads * length * dim, rows),
        make,
        target,
    )


def workloads() -> list[Workload]:
    return [
        decode(1, 32, 32, 4096, 128, Target(torch=2.7, share=0.9)),
        decode(1, 32, 8, 4096, 128, Target(torch=4.5, share=0.9)),
        decode(8, 12, 12, 1024, 64, Target(torch=3, share=0.9)),
    ]
