"""The table on the terminal: plain columns, with colours where rich is and somebody looks."""

import sys

from bench import limits
from bench.report import words
from bench.results import OURS, PLAIN, Result, Run
from bench.rivals import rival_of

HEADER = [
    "workload",
    "by",
    "median",
    "quartiles",
    "min",
    "rate",
    "GFLOP/s",
    "GB/s",
    "of limit",
    "max error",
    "time / ours",
    "min / min",
]


def one_line(result: Result) -> str:
    """What a workload came to, while the next one runs."""
    if result.failure is not None:
        return f"FAILED: {result.failure}"
    parts = [f"fastmha {words.speed(result, result.ours)}"]
    parts.append(f"{words.percent(result.share(result.ours))} of {result.limit}")
    for rival in result.rivals[1:]:
        parts.append(f"{rival} {words.times(result.against(rival))}")
    missed = [words.verdict(verdict) for verdict in result.verdicts if not verdict.reached]
    return ", ".join(parts) + (f"; MISSED {'; '.join(missed)}" if missed else "")


def rows_of(result: Result) -> list[list[str]]:
    """One row for each way, ours first."""
    rows = []
    for position, (name, way) in enumerate(result.ways.items()):
        timing = way.timing
        plain, is_ours = name == PLAIN, rival_of(name) == OURS
        lower, upper = timing.lower_quartile, timing.upper_quartile
        rows.append(
            [
                "" if position else result.name,
                name,
                words.duration(timing.median),
                f"{words.duration(lower)} .. {words.duration(upper)}",
                words.duration(timing.minimum),
                words.rate(result, name),
                "" if plain else words.three(result.gflops(name)),
                "" if plain else words.three(result.gbps(name)),
                "" if plain else f"{words.percent(result.share(name))} {result.limit}",
                words.error(way.error),
                "" if is_ours else f"{result.ratio(name):.2f}",
                "" if is_ours else f"{result.ratio_of_minima(name):.2f}",
            ]
        )
    return rows


def print_all(run: Run) -> None:
    if run.results:
        _print_rows(run)
    _print_targets(run)
    _print_processes(run)
    _print_startup(run)
    _print_summary(run)


def _print_rows(run: Run) -> None:
    timed = [result for result in run.results if result.failure is None]
    if sys.stdout.isatty() and _print_rich(timed):
        return
    rows = _without_empty_columns([HEADER, *(row for r in timed for row in rows_of(r))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def _without_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    """Not every run has rates."""
    kept = [n for n in range(len(HEADER)) if any(row[n] for row in rows[1:])]
    return [[row[n] for n in kept] for row in rows]


def _print_rich(timed: list[Result]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    header, *rows = _without_empty_columns([HEADER, *(row for r in timed for row in rows_of(r))])
    table, following = Table(*header), iter(rows)
    for result in timed:
        for name, row in zip(result.ways, following, strict=False):
            lost = rival_of(name) in result.slower_than and result.ratio(name) < 1
            style = "red" if lost else "bold" if name == result.ours else None
            table.add_row(*row, style=style)
        table.add_section()
    Console().print(table)
    return True


def _print_targets(run: Run) -> None:
    if not run.verdicts:
        return
    reached = sum(verdict.reached for _, verdict in run.verdicts)
    print(f"\ntargets reached: {reached} of {len(run.verdicts)}; missed:")
    for name, missed in words.missed(run.verdicts).items():
        print(f"  {name}: {'; '.join(missed)}")


def _print_processes(run: Run) -> None:
    by_name: dict[str, list[str]] = {}
    for record in run.threads:
        if record["rival"] == OURS:
            text = f"{record['threads']}: {words.duration(record['median'])}"
            by_name.setdefault(record["name"], []).append(text)
    for name, parts in by_name.items():
        print(f"threads  {name}  {', '.join(parts)}")
    for record in run.beside:
        cost = record["beside"] / record["alone"] - 1
        alone, beside = words.duration(record["alone"]), words.duration(record["beside"])
        print(f"beside PyTorch  {record['name']}  alone {alone}, beside {beside} ({cost:+.0%})")


def _print_startup(run: Run) -> None:
    for record in run.startup:
        print(
            f"first embedding  {words.STARTS[record['rival']]}  "
            f"{words.duration(record['seconds'])}, {words.megabytes(record['bytes'])}"
        )


def _print_summary(run: Run) -> None:
    for what, why in run.unfinished.items():
        print(f"NOT MEASURED: {what}: {why}")
    peaks = [result.peak_gflops for result in run.results if result.failure is None]
    if peaks:
        print(f"the run took {run.machine.get('seconds', 0)} s")
        print(f"FMA peak {max(peaks):.0f} GFLOP/s; lowest around a workload {min(peaks):.0f}")
        if limits.disturbed(peaks):
            print("the machine was disturbed: measure again before believing a number")
    for result in run.results:
        for name, reason in result.left_out.items():
            print(f"left out of {result.name}: {name}: {reason}")
        if result.failure is not None:
            print(f"WRONG, so not timed: {result.failure}")
    lost = [
        f"{result.name} (to {', '.join(result.slower_than)})"
        for result in run.measured
        if result.slower_than
    ]
    if run.measured:
        print("slower than a rival: " + ("; ".join(lost) if lost else "nowhere"))
