"""Results as a table to read and as JSON to keep."""

import importlib.metadata
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastmha as fm

from bench.harness import OURS, Result

HEADER = [
    "workload",
    "by",
    "median",
    "quartiles",
    "min",
    "GFLOP/s",
    "GB/s",
    "of limit",
    "max error",
    "time / ours",
    "min / min",
]


def duration(seconds: float) -> str:
    """Three digits with the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def rows_of(result: Result) -> list[list[str]]:
    """One row per rival, ours first."""
    rows = []
    for position, (name, timing) in enumerate(result.timings.items()):
        share, limit = result.share(name)
        ratio, ratio_of_minima = result.ratios(name)
        rows.append(
            [
                "" if position else result.workload.name,
                name,
                duration(timing.median),
                f"{duration(timing.lower_quartile)} .. {duration(timing.upper_quartile)}",
                duration(timing.minimum),
                f"{result.gflops(name):.3g}",
                f"{result.gbps(name):.3g}",
                f"{share:.0%} {limit}",
                f"{result.errors[name]:.1e}",
                "" if name == OURS else f"{ratio:.2f}",
                "" if name == OURS else f"{ratio_of_minima:.2f}",
            ]
        )
    return rows


def print_table(results: list[Result]) -> None:
    """With rich when it is there and somebody looks, as plain columns otherwise."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        print_plain(results)
        return
    if not sys.stdout.isatty():
        print_plain(results)
        return
    table = Table(*HEADER)
    for result in results:
        for name, row in zip(result.timings, rows_of(result), strict=True):
            lost = name in result.slower_than
            table.add_row(*row, style="bold" if name == OURS else "red" if lost else None)
        table.add_section()
    Console().print(table)


def print_plain(results: list[Result]) -> None:
    rows = [HEADER, *(row for result in results for row in rows_of(result))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def print_summary(results: list[Result]) -> None:
    peaks = [result.peak_gflops_then for result in results]
    print(f"FMA peak {max(peaks):.0f} GFLOP/s; lowest around a workload {min(peaks):.0f}")
    if min(peaks) < 0.9 * max(peaks):
        print("the machine was disturbed: measure again before believing a number")
    lost = [
        f"{result.workload.name} (to {', '.join(result.slower_than)})"
        for result in results
        if result.slower_than
    ]
    print("slower than a rival: " + ("; ".join(lost) if lost else "nowhere"))


def machine(threads: int) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    versions = {"python": platform.python_version()}
    for package in ("numpy", "torch"):
        versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "threads": threads,
        "fastmha": fm.info(),
        "versions": versions,
    }


def write_json(path: Path, results: list[Result], facts: dict[str, Any]) -> None:
    document = {"machine": facts, "results": [as_record(result) for result in results]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def as_record(result: Result) -> dict[str, Any]:
    rivals = {}
    for name, timing in result.timings.items():
        share, limit = result.share(name)
        rivals[name] = {
            **asdict(timing),
            "gflops": result.gflops(name),
            "gbps": result.gbps(name),
            "share_of_limit": share,
            "limit": limit,
            "max_error": result.errors[name],
            "ratio_of_medians": result.ratios(name)[0],
            "ratio_of_minima": result.ratios(name)[1],
        }
    return {
        "suite": result.workload.suite,
        "workload": result.workload.name,
        "flops": result.workload.flops,
        "bytes": result.workload.bytes,
        "peak_gflops": result.peak_gflops,
        "peak_gflops_then": result.peak_gflops_then,
        "peak_gbps": result.peak_gbps,
        "rivals": rivals,
    }
