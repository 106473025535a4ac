"""Runs a workload: first the answers must agree, then the rivals take turns on the clock.

A workload names its arithmetic and the bytes that it must move at least; a case of it holds the
rivals as calls without arguments, and what they should return, computed in float64.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import limits

Answer = NDArray[Any]

OURS = "fastmha"


@dataclass(frozen=True)
class Case:
    """Rivals on the same inputs. `expected` is float64; `tolerance` is absolute and relative."""

    rivals: dict[str, Callable[[], Any]]
    expected: Answer
    tolerance: float


@dataclass(frozen=True)
class Workload:
    """What is measured: its name, its shape in words, its size, and how to make a case of it."""

    suite: str
    name: str
    flops: float  # multiply-adds twice, of what must be computed (masked pairs do not count)
    bytes: float  # inputs, weights and outputs once each
    make: Callable[[], Case]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, over the rounds of one rival."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    rounds: int
    calls_per_round: int


@dataclass
class Result:
    """One workload measured: timings and errors by rival, and the limits around that moment."""

    workload: Workload
    timings: dict[str, Timing]
    errors: dict[str, float]
    peak_gflops: float  # of the whole run, once `share_limits` has seen all results
    peak_gbps: float
    peak_gflops_then: float
    slower_than: list[str] = field(default_factory=list)

    def ratios(self, rival: str) -> tuple[float, float]:
        """How many times as long the rival takes: of medians, of minima."""
        ours, other = self.timings[OURS], self.timings[rival]
        return other.median / ours.median, other.minimum / ours.minimum

    def gflops(self, rival: str) -> float:
        return self.workload.flops / self.timings[rival].median * 1e-9

    def gbps(self, rival: str) -> float:
        return self.workload.bytes / self.timings[rival].median * 1e-9

    def share(self, rival: str) -> tuple[float, str]:
        """Share of the limit that this workload meets first: arithmetic or memory."""
        arithmetic = self.workload.flops / (self.peak_gflops * 1e9)
        memory = self.workload.bytes / (self.peak_gbps * 1e9)
        name = "FMA" if arithmetic >= memory else "read"
        return max(arithmetic, memory) / self.timings[rival].median, name


@dataclass(frozen=True)
class Budget:
    """How long to measure."""

    warm_up: float = 0.3  # seconds per rival
    seconds: float = 3.0  # per rival
    round: float = 0.02  # a round repeats short calls until it is about this long
    min_rounds: int = 9
    settle: float = 0.004  # after a change of rival, see `_settle`


QUICK = Budget(warm_up=0.05, seconds=0.3, round=0.005, min_rounds=5)


def as_array(answer: Any) -> Answer:
    """What a rival returned, as an array: torch tensors included, first of a tuple."""
    if isinstance(answer, tuple):
        answer = answer[0]
    return np.asarray(answer.detach() if hasattr(answer, "detach") else answer)


def check_agreement(workload: Workload, case: Case) -> dict[str, float]:
    """The largest error of every rival; an AssertionError where one is beyond the tolerance."""
    errors = {}
    for name, call in case.rivals.items():
        answer = as_array(call())
        if answer.shape != case.expected.shape:
            raise AssertionError(
                f"{workload.name}: {name} returns {answer.shape}, expected {case.expected.shape}"
            )
        difference = np.abs(answer - case.expected)
        allowed = case.tolerance * (1 + np.abs(case.expected))
        if not (difference <= allowed).all():  # also catches NaN
            raise AssertionError(
                f"{workload.name}: {name} is off by {np.nanmax(difference):.3g}, "
                f"allowed {case.tolerance:.1g} (1 + |expected|)"
            )
        errors[name] = float(difference.max(initial=0.0))
    return errors


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def _settle(call: Callable[[], Any], seconds: float) -> None:
    """Untimed calls after a change of rival: the pool of the one before may still spin on the cores
    for some milliseconds, and this one's own threads may be asleep."""
    deadline = time.perf_counter() + seconds
    call()
    while time.perf_counter() < deadline:
        call()


def _timing(samples: Sequence[float], calls: int) -> Timing:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, min(samples), len(samples), calls)


def measure(case: Case, budget: Budget) -> dict[str, Timing]:
    """All rivals in turn, round after round; who starts changes from round to round."""
    names = list(case.rivals)
    calls = {}
    slowest_round = 0.0
    for name in names:
        call = case.rivals[name]
        _settle(call, budget.warm_up)
        once = min(_time(call, 1) for _ in range(3))
        calls[name] = max(1, math.ceil(budget.round / max(once, 1e-9)))
        slowest_round = max(slowest_round, once * calls[name] + budget.settle)
    rounds = max(budget.min_rounds, int(budget.seconds / slowest_round))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _settle(case.rivals[name], budget.settle)
            samples[name].append(_time(case.rivals[name], calls[name]) / calls[name])
    return {name: _timing(samples[name], calls[name]) for name in names}


def run(workload: Workload, threads: int, budget: Budget) -> Result:
    """Agreement, this moment's limits, then the clock."""
    case = workload.make()
    errors = check_agreement(workload, case)
    # Data that fits a cache is read at the cache's speed: compare with reads of as many bytes.
    megabytes = min(limits.MEMORY_MEGABYTES, max(1, round(workload.bytes / 1e6)))

    def limits_now() -> tuple[float, float]:
        return limits.flops(threads), limits.read_bandwidth(threads, megabytes)

    before = limits_now()
    timings = measure(case, budget)
    peak_gflops, peak_gbps = map(max, before, limits_now())
    result = Result(workload, timings, errors, peak_gflops, peak_gbps, peak_gflops)
    rivals = [name for name in timings if name != OURS]
    result.slower_than = [name for name in rivals if result.ratios(name)[0] < 1]
    return result


def share_limits(results: Sequence[Result]) -> None:
    """Neighbours on the host can only lower a measured peak: the highest of the run is the limit.
    What it was around each workload stays in `peak_gflops_then`, to tell a disturbed minute."""
    peak = max((result.peak_gflops_then for result in results), default=0.0)
    for result in results:
        result.peak_gflops = peak


def select(workloads: Iterable[Workload], suite: str | None, only: str | None) -> list[Workload]:
    """Those of a suite, and with `only` in their name."""
    return [
        workload
        for workload in workloads
        if suite in (None, workload.suite)
        and (only is None or only.lower() in workload.name.lower())
    ]
