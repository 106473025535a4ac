"""What a run found: what is kept as JSON, and what follows from it.

Tables, pages and the README are made from these alone, whether they come fresh from the clock or
from a file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.rivals import OURS, rival_of

# Raised when a field changes its meaning; a reader refuses what it does not know.
SCHEMA = 2
PLAIN = f"{OURS}: plain call"
# "never slower than 1.3x our own plain call's time per live FLOP"
PLAIN_FACTOR = 1.3
# Below this a call is mostly its own overhead, which has no part in a limit.
OVERHEAD = 20e-6


@dataclass(frozen=True)
class Target:
    """What a workload has to reach; None where nothing is asked."""

    torch: float | None = None  # times as fast as the fastest way of PyTorch
    numpy: float | None = None
    share: float | None = None  # of the limit
    seconds: float | None = None
    way: str | None = None  # PyTorch's way that is meant, where it is not the fastest


@dataclass(frozen=True)
class Timing:
    """Seconds per call, over the rounds of one way."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    rounds: int
    calls_per_round: int


@dataclass(frozen=True)
class Way:
    """One way of one rival: its times and its largest error against float64."""

    timing: Timing
    error: float | None  # None: it computes something else (our own plain call)


@dataclass(frozen=True)
class Verdict:
    """One thing that a target asks for, and what came out."""

    what: str
    wanted: float
    found: float
    reached: bool
    unit: str  # "x", "%", "s"


@dataclass
class Result:
    """One workload measured."""

    suite: str
    name: str
    flops: float
    bytes_read: float
    bytes_written: float
    stream: str  # how the limit's bandwidth was measured: read, add or copy
    target: Target = field(default_factory=Target)
    plain_flops: float | None = None
    axis: tuple[str, int] | None = None
    error_factor: float = 2.0  # our largest error may be so many times PyTorch's
    ways: dict[str, Way] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failure: str | None = None  # our answer was wrong: nothing was timed
    peak_gflops: float = 0.0  # the limits: the better of those before and after
    peak_gbps: float = 0.0

    # ---- ways and rivals -------------------------------------------------------------------------

    def ways_of(self, rival: str) -> dict[str, Way]:
        return {n: w for n, w in self.ways.items() if rival_of(n) == rival and n != PLAIN}

    def best(self, rival: str) -> str | None:
        """The way of a rival with the smallest median."""
        ways = self.ways_of(rival)
        return min(ways, key=lambda name: ways[name].timing.median, default=None)

    @property
    def rivals(self) -> list[str]:
        """In the order of the table, ours first, each once."""
        return list(dict.fromkeys(rival_of(name) for name in self.ways))

    def median(self, name: str) -> float:
        return self.ways[name].timing.median

    @property
    def ours(self) -> str:
        name = self.best(OURS)
        assert name is not None, self.name
        return name

    def ratio(self, name: str) -> float:
        """How many times as long this way takes as our best one: medians."""
        return self.median(name) / self.median(self.ours)

    def ratio_of_minima(self, name: str) -> float:
        return self.ways[name].timing.minimum / self.ways[self.ours].timing.minimum

    def against(self, rival: str) -> float | None:
        """The ratio of a rival's best way."""
        best = self.best(rival)
        return None if best is None else self.ratio(best)

    @property
    def slower_than(self) -> list[str]:
        """Rivals whose best way is faster than our best one."""
        return [
            rival
            for rival in self.rivals
            if rival != OURS and (ratio := self.against(rival)) is not None and ratio < 1
        ]

    # ---- limits ----------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> float:
        return self.bytes_read + self.bytes_written

    @property
    def limit_seconds(self) -> float:
        """Nobody can be faster: the arithmetic at the FMA peak, or the bytes at full bandwidth."""
        return max(self.flops / self.peak_gflops, self.total_bytes / self.peak_gbps) * 1e-9

    @property
    def limit(self) -> str:
        bound_by_fma = self.flops / self.peak_gflops >= self.total_bytes / self.peak_gbps
        return (
            "FMA"
            if bound_by_fma
            else {"add": "read+write", "copy": "read+write"}.get(self.stream, self.stream)
        )

    def share(self, name: str) -> float:
        return self.limit_seconds / self.median(name)

    def gflops(self, name: str) -> float:
        return self.flops / self.median(name) * 1e-9

    def gbps(self, name: str) -> float:
        return self.total_bytes / self.median(name) * 1e-9

    @property
    def is_overhead(self) -> bool:
        """The limit would take less than the call from Python does."""
        return self.limit_seconds < OVERHEAD / 10

    @property
    def plain_ratio(self) -> float | None:
        """Our time per live FLOP as a multiple of our own plain call's."""
        if self.plain_flops is None or PLAIN not in self.ways:
            return None
        plain = self.median(PLAIN) / self.plain_flops
        return self.median(self.ours) / self.flops / plain

    # ---- accuracy --------------------------------------------------------------------------------

    def error(self, rival: str) -> float | None:
        """The largest of its ways."""
        errors = [way.error for way in self.ways_of(rival).values() if way.error is not None]
        return max(errors, default=None)

    @property
    def error_ratio(self) -> float | None:
        """Our largest error as a multiple of PyTorch's."""
        ours, theirs = self.error(OURS), self.error("torch")
        return ours / theirs if ours is not None and theirs else None

    # ---- targets ---------------------------------------------------------------------------------

    @property
    def verdicts(self) -> list[Verdict]:
        target, found = self.target, []
        for rival, wanted in (("torch", target.torch), ("numpy", target.numpy)):
            named = f"{rival}: {target.way}" if rival == "torch" and target.way else None
            ratio = self.ratio(named) if named in self.ways else self.against(rival)
            if wanted is not None and ratio is not None:
                found.append(Verdict(f"x {rival}", wanted, ratio, ratio >= wanted, "x"))
        if target.share is not None:
            share = self.share(self.ours)
            reached = share >= target.share
            found.append(Verdict(f"of {self.limit}", target.share, share, reached, "%"))
        if target.seconds is not None:
            median = self.median(self.ours)
            found.append(Verdict("time", target.seconds, median, median <= target.seconds, "s"))
        if self.error_ratio is not None and self.error_ratio > self.error_factor:
            found.append(
                Verdict("of PyTorch's error", self.error_factor, self.error_ratio, False, "<x")
            )
        if self.plain_ratio is not None:
            ratio = self.plain_ratio
            within = ratio <= PLAIN_FACTOR
            found.append(Verdict("of plain call / FLOP", PLAIN_FACTOR, ratio, within, "<x"))
        return found


@dataclass
class Run:
    """All that one run of the benchmark found."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    threads: list[dict[str, Any]] = field(default_factory=list)  # {name, threads, way: median}
    beside: list[dict[str, Any]] = field(default_factory=list)  # {name, alone, beside}

    @property
    def measured(self) -> list[Result]:
        """Those with times, without the curves."""
        return [r for r in self.results if r.failure is None and r.axis is None]

    @property
    def curves(self) -> list[Result]:
        return [r for r in self.results if r.failure is None and r.axis is not None]

    @property
    def failures(self) -> list[Result]:
        return [r for r in self.results if r.failure is not None]


def write(path: Path, run: Run) -> None:
    document = {"schema": SCHEMA, **asdict(run)}
    for record, result in zip(document["results"], run.results, strict=True):
        record["derived"] = derived(result)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def derived(result: Result) -> dict[str, Any]:
    """What other readers of the file need not compute again; not read back."""
    if result.failure is not None:
        return {}
    return {
        "limit": result.limit,
        "share_of_limit": {name: result.share(name) for name in result.ways},
        "ratio_of_medians": {rival: result.against(rival) for rival in result.rivals},
        "slower_than": result.slower_than,
        "reached": {verdict.what: verdict.reached for verdict in result.verdicts},
    }


def read(path: Path) -> Run:
    document = json.loads(path.read_text(encoding="utf-8"))
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: schema {SCHEMA} expected, got {schema}: measure again")
    return Run(
        document["machine"],
        [_result(record) for record in document["results"]],
        document["threads"],
        document["beside"],
    )


def _result(record: dict[str, Any]) -> Result:
    fields = {name: value for name, value in record.items() if name != "derived"}
    fields["target"] = Target(**fields["target"])
    fields["axis"] = tuple(fields["axis"]) if fields["axis"] else None
    fields["ways"] = {
        name: Way(Timing(**way["timing"]), way["error"]) for name, way in fields["ways"].items()
    }
    return Result(**fields)


def merged(runs: Iterable[Run]) -> Run:
    """Several runs of parts as one: the machine of the first, results in order, later ones in place
    of earlier ones with the same name."""
    runs = list(runs)
    together = Run(dict(runs[0].machine))
    by_name: dict[tuple[str, str], Result] = {}
    for run in runs:
        by_name.update({(result.suite, result.name): result for result in run.results})
        together.threads = run.threads or together.threads
        together.beside = run.beside or together.beside
    together.results = list(by_name.values())
    return together
