"""What a run found: what is kept as JSON, and what follows from it.

Tables, pages and the README are made from these alone, whether they come fresh from the clock or
from a file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.rivals import LESS_PRECISE, OURS, rival_of

# Raised when a field changes its meaning; a reader refuses what it does not know.
SCHEMA = 2
PLAIN = f"{OURS}: plain call"
# "never slower than 1.3x our own plain call's time per live FLOP"
PLAIN_FACTOR = 1.3
# Asked of a whole run: two threads where arithmetic is the limit, a call beside a busy PyTorch, and
# the AVX2 share of its own limit as a part of the AVX-512 share.
TWO_THREADS, BESIDE_TORCH, OTHER_ISA = 1.9, 1.10, 0.93
# From the start of a process to its first embedding by all-MiniLM-L6-v2, and the memory until then.
FIRST_EMBEDDING = "first embedding of a process"
FIRST_SECONDS, FIRST_BYTES = 0.33, 150e6
# Below this a call is mostly its own overhead, which has no part in a limit.
OVERHEAD = 20e-6


@dataclass(frozen=True)
class Target:
    """What a workload has to reach; None where nothing is asked."""

    torch: float | None = None  # times as fast as the fastest way of PyTorch
    numpy: float | None = None
    share: float | None = None  # of the limit
    seconds: float | None = None
    of_peak: float | None = None  # of the multiply-add peak, whatever the limit is
    way: str | None = None  # PyTorch's way that is meant, where it is not the fastest
    ctranslate2: float | None = None
    best: float | None = None  # times as fast as the fastest rival in float32


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
    unit: str  # "x", "<x", "%", "s", "B"


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
    # What may limit it: "either" arithmetic or bytes; "memory" alone; "algorithm": either, but the
    # arithmetic is that of the algorithm that we use, and another one may need less.
    bound: str = "either"
    ways: dict[str, Way] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failure: str | None = None  # our answer was wrong: nothing was timed
    peak_gflops: float = 0.0  # the limits: the better of those before and after
    peak_gbps: float = 0.0
    work: tuple[int, str] | None = None  # so many of what a user counts by: 32 tokens

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
    def against_best(self) -> float | None:
        """The ratio of the fastest rival, of those that compute in float32."""
        ratios = [self.against(r) for r in self.rivals if r != OURS and r not in LESS_PRECISE]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    @property
    def slower_than(self) -> list[str]:
        """Rivals whose best way is faster than our best one."""
        return [
            rival
            for rival in self.rivals
            if rival not in (OURS, *LESS_PRECISE)
            and (ratio := self.against(rival)) is not None
            and ratio < 1
        ]

    # ---- limits ----------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> float:
        return self.bytes_read + self.bytes_written

    @property
    def limit_seconds(self) -> float:
        """Nobody can be faster: the arithmetic at the FMA peak, or the bytes at full bandwidth."""
        moving = self.total_bytes / self.peak_gbps
        return (
            max(self.flops / self.peak_gflops, moving) if self.is_bound_by_fma else moving
        ) * 1e-9

    @property
    def is_bound_by_fma(self) -> bool:
        if self.bound == "memory":
            return False
        return self.flops / self.peak_gflops >= self.total_bytes / self.peak_gbps

    @property
    def limit(self) -> str:
        if self.is_bound_by_fma:
            return "FMA, this algorithm" if self.bound == "algorithm" else "FMA"
        return {"add": "read+write", "copy": "read+write"}.get(self.stream, self.stream)

    def share(self, name: str) -> float:
        return self.limit_seconds / self.median(name)

    def gflops(self, name: str) -> float:
        return self.flops / self.median(name) * 1e-9

    def gbps(self, name: str) -> float:
        return self.total_bytes / self.median(name) * 1e-9

    def rate(self, name: str) -> float:
        """Of `work`, per second."""
        assert self.work is not None, self.name
        return self.work[0] / self.median(name)

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
        """Of ours the largest of all ways, of a rival the smallest: any way of ours may be called,
        and a rival's user can choose the accurate one."""
        errors = [way.error for way in self.ways_of(rival).values() if way.error is not None]
        return (max if rival == OURS else min)(errors, default=None)

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
        for what, wanted, ratio in (
            ("ctranslate2", target.ctranslate2, self.against("ctranslate2")),
            ("the best rival", target.best, self.against_best),
        ):
            if wanted is not None and ratio is not None:
                found.append(Verdict(f"x {what}", wanted, ratio, ratio >= wanted, "x"))
        if target.of_peak is not None:
            share = self.gflops(self.ours) / self.peak_gflops
            reached = share >= target.of_peak
            found.append(Verdict("of the FMA peak", target.of_peak, share, reached, "%"))
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
    unfinished: dict[str, str] = field(default_factory=dict)  # what could not be measured, and why
    startup: list[dict[str, Any]] = field(default_factory=list)  # {rival, seconds, bytes, rounds}

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

    # ---- targets ---------------------------------------------------------------------------------

    @property
    def verdicts(self) -> list[tuple[str, Verdict]]:
        """All that was asked for, by workload: what a result says itself, and what takes a run."""
        found = [(result.name, verdict) for result in self.measured for verdict in result.verdicts]
        found += [*self.against_numpy(), *self._thread_scaling()]
        return [*found, *self._beside(), *self._startup()]

    def against_numpy(self) -> Iterator[tuple[str, Verdict]]:
        """Generic code is asked for no more than NumPy's speed with the same instructions."""
        if self.machine["fastmha"]["isa"] != "generic" or not self.machine.get("rivals_limited"):
            return
        for result in self.measured:
            ratio = result.against("numpy")
            if ratio is not None:
                yield result.name, Verdict("x NumPy, generic", 1.0, ratio, ratio >= 1, "x")

    def _thread_scaling(self) -> Iterator[tuple[str, Verdict]]:
        ours = [record for record in self.threads if record["rival"] == OURS]
        medians = {(record["name"], record["threads"]): record["median"] for record in ours}
        for name in dict.fromkeys(r["name"] for r in ours if r["limit"] == "FMA"):
            one, two = medians.get((name, 1)), medians.get((name, 2))
            if one and two:
                ratio, wanted = one / two, TWO_THREADS
                verdict = Verdict("x one thread, on two", wanted, ratio, ratio >= wanted, "x")
                yield name, verdict

    def _beside(self) -> Iterator[tuple[str, Verdict]]:
        for record in self.beside:
            ratio = record["beside"] / record["alone"]
            reached = ratio <= BESIDE_TORCH
            verdict = Verdict(
                "of the time alone, beside PyTorch", BESIDE_TORCH, ratio, reached, "<x"
            )
            yield record["name"], verdict

    def _startup(self) -> Iterator[tuple[str, Verdict]]:
        for record in self.startup:
            if record["rival"] != OURS:
                continue
            for what, wanted, found, unit in (
                ("time", FIRST_SECONDS, record["seconds"], "s"),
                ("memory", FIRST_BYTES, record["bytes"], "B"),
            ):
                yield FIRST_EMBEDDING, Verdict(what, wanted, found, found <= wanted, unit)


def isa_verdicts(first: Run, other: Run) -> list[tuple[str, Verdict]]:
    """Of another instruction set: what AVX2 reaches of its own limit, as a part of what AVX-512
    reaches of its own; what generic code takes beside NumPy."""
    if (first.machine["fastmha"]["isa"], other.machine["fastmha"]["isa"]) != ("avx512", "avx2"):
        return list(other.against_numpy())
    by_name, found = {result.name: result for result in other.measured}, []
    for result in first.measured:
        theirs = by_name.get(result.name)
        if theirs is not None and not result.is_overhead:
            part = theirs.share(theirs.ours) / result.share(result.ours)
            reached = part >= OTHER_ISA
            verdict = Verdict("of AVX-512's share, on AVX2", OTHER_ISA, part, reached, "%")
            found.append((result.name, verdict))
    return found


def write(path: Path, run: Run) -> None:
    document = {"schema": SCHEMA, **asdict(run)}
    for record, result in zip(document["results"], run.results, strict=True):
        record["derived"] = derived(result)
    new = path.with_name(f"{path.name}.new")  # a run that is killed leaves the last whole one
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


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
        document.get("unfinished", {}),
        document.get("startup", []),
    )


def _result(record: dict[str, Any]) -> Result:
    fields = {name: value for name, value in record.items() if name != "derived"}
    fields["target"] = Target(**fields["target"])
    for name in ("axis", "work"):  # lists in JSON
        fields[name] = tuple(fields[name]) if fields.get(name) else None
    fields["ways"] = {
        name: Way(Timing(**way["timing"]), way["error"]) for name, way in fields["ways"].items()
    }
    return Result(**fields)


def merged(runs: Iterable[Run]) -> Run:
    """Several runs of parts as one: the machine of the first, results in order, later ones in place
    of earlier ones with the same name. A run of less precise rivals alone adds them."""
    runs = list(runs)
    together = Run(dict(runs[0].machine))
    versions = [run.machine.get("versions", {}) for run in reversed(runs)]
    together.machine["versions"] = {name: v for each in versions for name, v in each.items()}
    by_name: dict[tuple[str, str], Result] = {}
    for run in runs:
        for result in run.results:
            place = result.suite, result.name
            if place in by_name and {OURS} < set(result.rivals) <= {OURS, *LESS_PRECISE}:
                others = {n: w for n, w in result.ways.items() if rival_of(n) in LESS_PRECISE}
                result = replace(by_name[place], ways=by_name[place].ways | others)
            by_name[place] = result
        together.threads = run.threads or together.threads
        together.beside = run.beside or together.beside
        together.startup = run.startup or together.startup
        together.unfinished |= run.unfinished
    together.results = list(by_name.values())
    return together
