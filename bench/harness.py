"""Runs a workload: first the answers must be right, then the rivals take turns on the clock.

A workload names its arithmetic, the bytes that it must move at least, and its problem; a case of it
holds the rivals as calls without arguments, and what they should return, computed in float64.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.limits import Limits, Traffic
from bench.problems import Attention, Generation, Problem
from bench.results import Result, Target, Timing, Way
from bench.rivals import LESS_PRECISE, OURS, Call, label, rival_of

# Which threads a rival computes on, and for how long they spin after a call before they sleep, in
# seconds: measured as the pause after which another rival is as fast as alone. fastmha and torch
# share OpenMP's; OpenBLAS has been told to be quick (see environment.py).
POOLS = {
    "fastmha": ("OpenMP", 0.02),
    "torch": ("OpenMP", 0.02),
    "numpy": ("OpenBLAS", 0.002),
    "onnxruntime": ("ONNX Runtime", 0.05),
    "openvino": ("TBB", 0.002),
    "transformers": ("OpenMP", 0.02),
    # OpenMP's too, but a library of its own, and a pool for each translator
    "ctranslate2": ("CTranslate2", 0.02),
    "ctranslate2_int8": ("CTranslate2, int8", 0.02),
}

Answer = NDArray[Any]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """What is measured: its name, its shape in words, its size, and how to make its problem."""

    suite: str
    name: str
    flops: float  # multiply-adds twice, of what must be computed (masked pairs do not count)
    traffic: Traffic
    make: Callable[[], Problem]
    target: Target = field(default_factory=Target)
    # "at most so many times PyTorch's error": see the rule in `check_errors`
    error_factor: float = 2.0
    # the arithmetic of our own call without the restriction that the workload is about, if that
    # is compared too
    plain_flops: float | None = None
    axis: tuple[str, int] | None = None  # of the workloads that make a curve: its name and place
    bound: str = "either"  # see `Result.bound`
    rivals: tuple[str, ...] | None = None  # not all of them
    absent: str | None = None  # why it cannot be measured here: something is not installed
    work: tuple[int, str] | None = None  # so many of what a user counts by: 32 tokens


@dataclass
class Case:
    """Calls on the same inputs, and the answer. `tolerance` is absolute and relative."""

    calls: dict[str, Call]
    expected: Answer
    tolerance: float
    checked_part: Callable[[Answer], Answer] = lambda answer: answer
    left_out: dict[str, str] = field(default_factory=dict)  # and why
    unchecked: tuple[str, ...] = ()  # computes something else: our plain call
    # where no tolerance tells right from wrong: an answer's error, and a complaint or ""
    judge: Callable[[Answer], tuple[float, str]] | None = None


@dataclass(frozen=True)
class Budget:
    """How long to measure, in seconds."""

    seconds: float = 2.5  # for a workload, shared by its rivals, pauses included
    warm_up: float = 0.1  # for each of them
    round: float = 0.02  # a round repeats short calls until it is about this long
    min_rounds: int = 5
    max_rounds: int = 40
    settle: float = 0.005  # after a change of rival, see `_settle`


# a look, and a point of a curve
QUICK = Budget(seconds=0.5, warm_up=0.02, round=0.005, min_rounds=2, settle=0.003)
CURVE = Budget(seconds=1.0, warm_up=0.05, round=0.01, min_rounds=3)
# A change of rival is over after so many calls, or seconds.
SETTLE_CALLS = 4
SETTLE_SECONDS = 0.03


def make_case(workload: Workload, rivals: Iterable[ModuleType]) -> Case:
    """The problem as every rival says it."""
    problem = workload.make()
    case = Case({}, problem.expected(), problem.tolerance, problem.checked_part)
    if isinstance(problem, Generation):
        case.judge = problem.judge
    for rival in rivals:
        if workload.rivals is not None and rival.NAME not in workload.rivals:
            continue
        try:
            for way, call in rival.calls(problem).items():
                wrapped = call if isinstance(call, Call) else Call(call)
                case.calls[label(rival.NAME, way)] = wrapped
        except NotImplementedError:
            continue
        except Exception as error:  # a rival's limits must not stop the run; ours may not have any
            if rival.NAME == OURS:
                raise
            case.left_out[rival.NAME] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if rival.NAME == OURS and workload.plain_flops is not None:
            assert isinstance(problem, Attention)
            plain = label(OURS, rival.PLAIN)
            case.calls[plain] = Call(rival.plain_call(problem))
            case.unchecked = (plain,)
    return case


def as_array(answer: Any) -> Answer:
    """What a rival returned, as an array: torch tensors included, first of a tuple."""
    if isinstance(answer, tuple):
        answer = answer[0]
    return np.asarray(answer.detach() if hasattr(answer, "detach") else answer)


def error_of(case: Case, name: str) -> float:
    """The largest error of a call; an AssertionError where it is beyond the tolerance."""
    call = case.calls[name]
    answer = case.checked_part(as_array(call.read(call.run())))
    if case.judge is not None:
        error, complaint = case.judge(answer)
        if complaint and rival_of(name) not in LESS_PRECISE:
            raise AssertionError(f"{name}: {complaint}")
        return error
    if answer.shape != case.expected.shape:
        raise AssertionError(f"{name} returns {answer.shape}, expected {case.expected.shape}")
    difference = np.abs(answer - case.expected)
    allowed = case.tolerance * (1 + np.abs(case.expected))
    if not (difference <= allowed).all():  # also catches NaN
        raise AssertionError(
            f"{name} is off by {np.nanmax(difference):.3g}, "
            f"allowed {case.tolerance:.1g} (1 + |expected|)"
        )
    return float(difference.max(initial=0.0))


def check_errors(workload: Workload, case: Case) -> dict[str, float]:
    """The largest error of every way. A rival that is wrong is left out and named. We may not be
    wrong."""
    errors: dict[str, float] = {}
    for name in list(case.calls):
        if name in case.unchecked:
            continue
        try:
            errors[name] = error_of(case, name)
        except Exception as error:
            if rival_of(name) == OURS:
                raise AssertionError(f"{workload.name}: {error}") from error
            case.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            del case.calls[name]
    return errors


def check_accuracy(workload: Workload, errors: dict[str, float]) -> None:
    """Where PyTorch takes part, our largest error may be `error_factor` times that of its most
    accurate way."""
    theirs = min((errors[name] for name in errors if rival_of(name) == "torch"), default=None)
    ours = max(errors[name] for name in errors if rival_of(name) == OURS)
    if theirs is not None and ours > workload.error_factor * theirs:
        raise AssertionError(
            f"{workload.name}: the largest error is {ours:.2g}, PyTorch's is {theirs:.2g}: more "
            f"than {workload.error_factor:g} times as much"
        )


def _time(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


def _settle(run: Run, seconds: float) -> None:
    """Untimed calls: this one's own threads may be asleep, its data out of the caches."""
    start = time.perf_counter()
    calls, elapsed = 0, 0.0
    while elapsed < seconds or (calls < SETTLE_CALLS and elapsed < SETTLE_SECONDS):
        run()
        calls, elapsed = calls + 1, time.perf_counter() - start


class _Pools:
    """Waits until the threads of the rival before sleep: while they spin for more work, whoever
    comes next has to share the cores with them and takes up to four times as long."""

    def __init__(self) -> None:
        self.last: tuple[str, float] = "", 0.0

    def change_to(self, name: str) -> None:
        pool = POOLS.get(rival_of(name), ("", 0.0))
        if pool[0] != self.last[0]:
            time.sleep(self.last[1])
        self.last = pool

    @staticmethod
    def pauses(names: Iterable[str]) -> float:
        """Seconds of all pauses in a round."""
        return sum(
            dict(POOLS[rival_of(name)] for name in names if rival_of(name) in POOLS).values()
        )


def _timing(samples: Sequence[float], calls: int) -> Timing:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, min(samples), len(samples), calls)


@dataclass(frozen=True)
class _Turns:
    """How one call takes part: so many calls a round, in so many of the rounds."""

    run: Run
    repeats: int
    seconds: float  # of a round of it, settling included


def _plan(case: Case, budget: Budget) -> tuple[dict[str, _Turns], int]:
    """The answers were checked just before: every call has run once."""
    turns = {}
    for name, call in case.calls.items():
        once = _time(call.run, 1)
        if once < budget.warm_up:
            _settle(call.run, budget.warm_up)
            once = min(_time(call.run, 1) for _ in range(3))
        repeats = max(1, math.ceil(budget.round / max(once, 1e-9)))
        settling = max(budget.settle, min(SETTLE_CALLS * once, SETTLE_SECONDS + once))
        turns[name] = _Turns(call.run, repeats, once * repeats + settling)
    everybody = sum(turn.seconds for turn in turns.values()) + _Pools.pauses(turns)
    rounds = min(budget.max_rounds, max(budget.min_rounds, int(budget.seconds / everybody)))
    return turns, rounds


def takes_part(number: int, rounds: int, affordable: int) -> bool:
    """In `affordable` of the rounds, evenly spread; in all where there are not more."""
    if affordable >= rounds:
        return True
    return (number + 1) * affordable // rounds > number * affordable // rounds


def measure(
    case: Case, budget: Budget, each_round: Callable[[], None] | None = None
) -> dict[str, Timing]:
    """All in turn, round after round; who starts changes from round to round. One that is so slow
    that `min_rounds` of it take longer than the budget takes part in three rounds at least, spread
    over all: what drifts along the run reaches everybody, `each_round` too, which comes right
    before our own first call of a round."""
    turns, rounds = _plan(case, budget)
    names = list(turns)
    samples: dict[str, list[float]] = {name: [] for name in names}
    pools = _Pools()
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        ours = next((name for name in order if rival_of(name) == OURS), None)
        for name in order:
            turn = turns[name]
            if each_round is not None and name == ours:
                pools.change_to("")
                each_round()
            affordable = max(3, int(budget.seconds / turn.seconds))
            if not takes_part(number, rounds, affordable):
                continue
            pools.change_to(name)
            _settle(turn.run, budget.settle)
            samples[name].append(_time(turn.run, turn.repeats) / turn.repeats)
    return {name: _timing(samples[name], turns[name].repeats) for name in names}


def run(
    workload: Workload,
    rivals: Iterable[ModuleType],
    limits: Limits,
    budget: Budget,
    *,
    lenient: bool = False,
) -> Result:
    """The answers, this moment's limits, then the clock. Wrong answers of ours are a result too,
    one without times; so are inaccurate ones, unless `lenient` asks for their times."""
    result = Result(
        suite=workload.suite,
        name=workload.name,
        flops=workload.flops,
        bytes_read=workload.traffic.read,
        bytes_written=workload.traffic.written,
        target=workload.target,
        plain_flops=workload.plain_flops,
        axis=workload.axis,
        bound=workload.bound,
        error_factor=workload.error_factor,
        stream=workload.traffic.stream,
        work=workload.work,
    )
    case = make_case(workload, rivals)
    try:
        errors = check_errors(workload, case)
        if not lenient:
            check_accuracy(workload, errors)
    except AssertionError as error:
        result.failure = str(error)
        return result
    finally:
        result.left_out = case.left_out
    before = limits.now(workload.traffic)
    result.peak_gflops, result.peak_gbps = before
    in_turns: list[float] = []
    if result.limit == "read":
        with limits.reads(workload.traffic) as read:
            timings = measure(case, budget, lambda: in_turns.append(read()))
    else:
        timings = measure(case, budget)
    after = limits.now(workload.traffic)
    result.peak_gflops, result.peak_gbps = map(max, before, after)
    if in_turns:  # a median like those of the ways
        result.peak_gbps = statistics.median(in_turns)
    result.ways = {name: Way(timings[name], errors.get(name)) for name in timings}
    return result


def select(
    workloads: Iterable[Workload], suites: Sequence[str], only: Sequence[str]
) -> list[Workload]:
    """Those of the suites (all when none is named), and with one of `only` in their name; `=name`
    is the whole name."""

    def named(name: str, text: str) -> bool:
        return name == text[1:] if text.startswith("=") else text.lower() in name.lower()

    return [
        workload
        for workload in workloads
        if (not suites or workload.suite in suites)
        and (not only or any(named(workload.name, text) for text in only))
    ]
