"""Scaled dot-product attention: NumPy as one writes it, torch's fused call, fastmha."""

import math
from functools import partial
from typing import Any

import fastmha as fm
import numpy as np
import torch
from numpy.typing import NDArray

from bench.harness import OURS, Case, Workload

Array = NDArray[np.float32]

# batch, heads, q_len, kv_len, head_dim, causal
SHAPES = [
    (1024, 8, 5, 5, 64, False),  # the worked example: tiny sequences, many of them
    (1, 8, 5, 5, 64, False),  # the cost of a call
    (32, 12, 128, 128, 64, False),
    (1, 8, 512, 512, 64, True),
    (1, 8, 2048, 2048, 64, False),
    (1, 32, 1, 4096, 128, False),  # decode: one query, as fast as memory gives the keys
]


def plain_attention(
    query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], causal: bool
) -> Any:
    """softmax(Q K^T / sqrt(E)) V in the precision of its inputs."""
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(1 / math.sqrt(query.shape[-1]))
    if causal:
        q_len, kv_len = scores.shape[-2:]
        scores = np.where(np.tri(q_len, kv_len, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights @ value


def make(batch: int, heads: int, q_len: int, kv_len: int, head_dim: int, causal: bool) -> Case:
    rng = np.random.default_rng(0)
    query = rng.standard_normal((batch, heads, q_len, head_dim), dtype=np.float32)
    key = rng.standard_normal((batch, heads, kv_len, head_dim), dtype=np.float32)
    value = rng.standard_normal((batch, heads, kv_len, head_dim), dtype=np.float32)
    q, k, v = torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(value)
    doubles = [array.astype(np.float64) for array in (query, key, value)]
    fused = torch.nn.functional.scaled_dot_product_attention
    return Case(
        {
            OURS: lambda: fm.scaled_dot_product_attention(query, key, value, is_causal=causal),
            "torch": lambda: fused(q, k, v, is_causal=causal),
            "numpy": lambda: plain_attention(query, key, value, causal),
        },
        plain_attention(doubles[0], doubles[1], doubles[2], causal),
        # Averages of numbers near 1 with scores near 1: sums of head_dim and of kv_len products.
        tolerance=2.0**-24 * (head_dim + kv_len),
    )


def workloads() -> list[Workload]:
    found = []
    for batch, heads, q_len, kv_len, head_dim, causal in SHAPES:
        pairs = q_len * (q_len + 1) / 2 if causal else q_len * kv_len
        name = f"attention {batch} x {heads} x {q_len} x {head_dim}"
        if q_len != kv_len:
            name = f"decode {batch} x {heads} heads, {q_len} query, {kv_len} keys, {head_dim} wide"
        found.append(
            Workload(
                "attention",
                name + (", causal" if causal else ""),
                flops=4.0 * batch * heads * pairs * head_dim,
                bytes=4.0 * 2 * batch * heads * (q_len + kv_len) * head_dim,
                make=partial(make, batch, heads, q_len, kv_len, head_dim, causal),
            )
        )
    return found
