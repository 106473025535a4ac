"""``python -m bench``: fastmha beside NumPy and PyTorch, same answers, same threads."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

SUITES = ("attention", "linear", "blocks")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, help="one suite alone")
    parser.add_argument("--only", metavar="TEXT", help="workloads with TEXT in their name")
    parser.add_argument("--threads", type=int, help="for all sides (default: the CPUs at hand)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def set_threads(threads: int | None) -> int:
    """The same number for every library. Their pools read it once, before they are imported."""
    count = threads or len(os.sched_getaffinity(0))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ["FASTMHA_NUM_THREADS"] = str(count)
    return count


def all_workloads() -> list[Any]:
    from bench.workloads import attention, blocks, linear

    return [*attention.workloads(), *linear.workloads(), *blocks.workloads()]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    threads = set_threads(options.threads)
    # torch first: fastmha then runs on the OpenMP pool that torch brings, and only one pool spins.
    import torch

    torch.set_num_threads(threads)
    from bench import harness, report

    chosen = harness.select(all_workloads(), options.suite, options.only)
    if options.list:
        print("\n".join(f"{workload.suite:10} {workload.name}" for workload in chosen))
        return 0
    if not chosen:
        print("no workload matches; --list names them", file=sys.stderr)
        return 2
    facts = report.machine(threads)
    core = facts["fastmha"]
    print(
        f"{core['cpu']}, {threads} threads, {core['isa']}, {core['compiler']}, {facts['versions']}"
    )
    results = []
    with torch.inference_mode():
        for workload in chosen:
            print(f"  {workload.name} ...", file=sys.stderr, flush=True)
            budget = harness.QUICK if options.quick else harness.Budget()
            results.append(harness.run(workload, threads, budget))
    harness.share_limits(results)
    report.print_table(results)
    report.print_summary(results)
    if options.json:
        report.write_json(options.json, results, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
