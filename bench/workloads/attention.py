"""Scaled dot-product attention: plain, causal, everything that may restrict the scores, ragged."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.results import Target

SUITE = "attention"


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    length: int
    dim: int
    kv_heads: int | None = None
    value_dim: int | None = None

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads}" if self.kv_heads else f"{self.heads}"
        dim = f"{self.dim}/{self.value_dim}" if self.value_dim else f"{self.dim}"
        return f"{self.batch} x {heads} x {self.length} x {dim}"

    @property
    def pairs(self) -> float:
        return float(self.batch * self.heads * self.length**2)

    def flops(self, pairs: float) -> float:
        """A product of E and one of Ev for each visible pair."""
        return 2.0 * pairs * (self.dim + (self.value_dim or self.dim))

    @property
    def plain_flops(self) -> float:
        """Of our own plain call: as many key/value heads as query heads, values as wide as keys."""
        return 4.0 * self.pairs * min(self.dim, self.value_dim or self.dim)

    def traffic(self, extra: float = 0.0) -> Traffic:
        rows, value_dim = self.batch * self.length, self.value_dim or self.dim
        kv = rows * (self.kv_heads or self.heads) * (self.dim + value_dim)
        return Traffic(
            4.0 * (rows * self.heads * self.dim + kv) + extra, 4.0 * rows * self.heads * value_dim
        )

    def problem(self, **options: Any) -> problems.Attention:
        rng = np.random.default_rng(0)
        kv_heads, value_dim = self.kv_heads or self.heads, self.value_dim or self.dim

        def normal(heads: int, dim: int) -> problems.Array:
            shape = (self.batch, heads, self.length, dim)
            return rng.standard_normal(shape, dtype=np.float32)

        arrays = (
            normal(self.heads, self.dim),
            normal(kv_heads, self.dim),
            normal(kv_heads, value_dim),
        )
        return problems.Attention(*arrays, **options)


TINY, TINY_CACHED, TINY_ONE = (Shape(batch, 8, 5, 64) for batch in (1024, 128, 1))
SHORT_ONE, SHORT = Shape(1, 8, 128, 64), Shape(32, 12, 128, 64)
MEDIUM, LONG, LONGEST = Shape(1, 8, 512, 64), Shape(1, 8, 2048, 64), Shape(1, 2, 8192, 64)
WIDE = Shape(1, 8, 2048, 128)


def causal_pairs(shape: Shape) -> float:
    return shape.batch * shape.heads * shape.length * (shape.length + 1) / 2


def workload(
    shape: Shape,
    target: Target,
    *,
    words: str = "",
    pairs: float | None = None,
    extra_bytes: float = 0.0,
    compare_plain: bool = False,
    change: Callable[[problems.Attention], problems.Attention] = lambda problem: problem,
    **options: Any,
) -> Workload:
    """One workload; `change` restricts the problem where the options alone cannot say it."""
    if options.get("is_causal") and pairs is None:
        pairs = causal_pairs(shape)
    return Workload(
        SUITE,
        f"attention {shape}" + (f", {words}" if words else ""),
        shape.flops(shape.pairs if pairs is None else pairs),
        shape.traffic(extra_bytes),
        lambda: change(shape.problem(**options)),
        target,
        plain_flops=shape.plain_flops if compare_plain else None,
    )


def plain() -> list[Workload]:
    causal: dict[str, Any] = {"words": "causal", "is_causal": True}
    return [
        workload(TINY, Target(torch=10, share=0.8), with_out=True),
        workload(TINY_CACHED, Target(torch=25), with_out=True),
        workload(TINY_ONE, Target(torch=10, seconds=2.5e-6)),
        workload(SHORT_ONE, Target(torch=1.8, share=0.87)),
        workload(SHORT, Target(torch=1.8, share=0.75), with_out=True),
        workload(MEDIUM, Target(torch=1.4, share=0.9)),
        workload(MEDIUM, Target(torch=2.5, share=0.83), **causal),
        workload(LONG, Target(torch=1.35, share=0.88)),
        workload(LONG, Target(torch=1.55, share=0.85), **causal),
        workload(LONGEST, Target(torch=1.4, share=0.87)),
        workload(WIDE, Target(torch=1.25, share=0.9)),
        workload(WIDE, Target(torch=1.45, share=0.87), **causal),
    ]


# ---- everything that restricts or bends the scores ----------------------------------------------


def key_lengths(shape: Shape) -> Workload:
    """Lengths spread evenly over 64..128; one sequence has the middle."""
    if shape.batch == 1:
        lengths = np.array([96])
    else:
        lengths = np.linspace(64, 128, shape.batch).round().astype(np.int64)
    return workload(
        shape,
        Target(torch=2.4, share=0.7),
        words="key_lengths 64..128" if shape.batch > 1 else "key_lengths 96",
        pairs=float(shape.heads * shape.length * lengths.sum()),
        key_lengths=lengths,
        compare_plain=True,
    )


def as_views(problem: problems.Attention) -> problems.Attention:
    """(B, L, H, D) in memory, as a projection leaves it."""

    def view(array: problems.Array) -> problems.Array:
        return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)

    return replace(
        problem, query=view(problem.query), key=view(problem.key), value=view(problem.value)
    )


def with_random_mask(problem: problems.Attention) -> problems.Attention:
    """One pair in eight is hidden at random: nobody can skip anything, and everybody looks."""
    batch, _, q_len, _ = problem.query.shape
    mask = np.random.default_rng(1).random((batch, 1, q_len, problem.key.shape[2])) < 0.875
    mask[..., 0] = True  # no query without a key
    return replace(problem, mask=mask)


def with_bias(problem: problems.Attention) -> problems.Attention:
    """A bias for each (query, key), the same for all heads."""
    shape = (1, 1, problem.query.shape[2], problem.key.shape[2])
    return replace(problem, mask=np.random.default_rng(1).standard_normal(shape, dtype=np.float32))


def slopes(heads: int) -> problems.Array:
    """Those of the ALiBi paper: 2^(-8 h / H)."""
    return (2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)).astype(np.float32)


def window_pairs(shape: Shape, left: int) -> float:
    queries = np.arange(shape.length)
    return float(shape.batch * shape.heads * (np.minimum(queries, left) + 1).sum())


def restricted() -> list[Workload]:
    own = {"target": Target(torch=1.0), "compare_plain": True}
    grouped = Shape(1, 32, 512, 128, kv_heads=8)
    uneven = Shape(1, 8, 2048, 192, value_dim=128)
    found = [key_lengths(SHORT), key_lengths(SHORT_ONE)]
    found += [
        workload(shape, words="(B, L, H, D) views", change=as_views, **own)
        for shape in (SHORT_ONE, SHORT, MEDIUM, LONG, WIDE)
    ]
    found += [
        workload(shape, words="causal, (B, L, H, D) views", change=as_views, is_causal=True, **own)
        for shape in (MEDIUM, LONG, WIDE)
    ]
    found += [
        workload(
            shape,
            words="window 256",
            window=(256, 0),
            pairs=window_pairs(shape, 256),
            **own,
        )
        for shape in (LONG, LONGEST)
    ]
    for shape in (SHORT, LONG):
        found.append(
            workload(
                shape, words="causal, ALiBi", is_causal=True, slopes=slopes(shape.heads), **own
            )
        )
        found.append(workload(shape, words="softcap 30", softcap=30.0, **own))
        found.append(
            workload(
                shape,
                words="bool mask",
                change=with_random_mask,
                pairs=0.875 * shape.pairs,
                extra_bytes=float(shape.batch * shape.length**2),
                **own,
            )
        )
        found.append(
            workload(
                shape,
                words="float mask",
                change=with_bias,
                extra_bytes=4.0 * shape.length**2,
                **own,
            )
        )
    found.append(workload(grouped, words="GQA", **own))
    found.append(workload(uneven, words="dk != dv", **own))
    return found


# ---- ragged --------------------------------------------------------------------------------------


def ragged() -> Workload:
    heads, dim = 8, 64
    lengths = tuple(int(n) for n in np.random.default_rng(1).permutation(np.linspace(8, 512, 64)))
    rows, pairs = sum(lengths), sum(n * n for n in lengths)

    def make() -> problems.Ragged:
        rng = np.random.default_rng(0)
        arrays = (rng.standard_normal((rows, heads, dim), dtype=np.float32) for _ in range(3))
        return problems.Ragged(*arrays, lengths)

    floats = rows * heads * dim
    return Workload(
        SUITE,
        f"ragged attention, 64 sequences of 8..512, {heads} x {dim}",
        4.0 * pairs * heads * dim,
        Traffic(3 * 4.0 * floats, 4.0 * floats),
        make,
        Target(torch=2, share=0.75, way="padded, mask"),
    )


def workloads() -> list[Workload]:
    return [*plain(), *restricted(), ragged()]
