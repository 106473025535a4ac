"""The command line of the benchmarks: choose, measure, write down.

Nothing here imports NumPy or a rival before `environment.prepare` has run.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import environment, rivals

if TYPE_CHECKING:
    from bench.harness import Budget, Workload
    from bench.results import Run

# Of the modules in bench.workloads, which import NumPy.
SUITES = ("attention", "decode", "linear", "norm", "blocks", "encode", "generate", "scaling")
# Other processes: scaling over threads, beside a busy PyTorch, from the start to an embedding.
PROCESSES = ("threads", "beside", "startup")
INTERRUPTED = 130  # the exit status that shells give Ctrl-C


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="fastmha beside NumPy, PyTorch, ONNX Runtime, OpenVINO, transformers and "
        "CTranslate2: same inputs, same answers, same threads. Without options: everything, in "
        "about twenty minutes.",
    )
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        choices=(*SUITES, *PROCESSES),
        help="that suite alone; may be given several times",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="workloads with TEXT in their name; may be given several times",
    )
    parser.add_argument(
        "--rivals",
        default=",".join(n for n in rivals.SHOWN_IN_ORDER if n not in rivals.LESS_PRECISE),
        metavar="NAMES",
        help="who takes part, of those installed: %(default)s (fastmha always does); "
        f"{', '.join(rivals.LESS_PRECISE)} takes part where it is named: best in a run of its own, "
        "it slows down its float32 sister",
    )
    parser.add_argument(
        "--rivals-isa",
        choices=("same", "best"),
        default="same",
        help="with FASTMHA_ISA=avx2 or generic: rivals are held to the same instructions, and "
        "those that cannot be stay away (default), or all use the best they have",
    )
    parser.add_argument("--threads", type=int, help="for all sides (default: the CPUs at hand)")
    parser.add_argument(
        "--quick", action="store_true", help="a look in two or three minutes, not a measurement"
    )
    parser.add_argument(
        "--lenient", action="store_true", help="time answers that are not accurate enough, too"
    )
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write a page to look at there")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    options.rivals = [name.strip() for name in options.rivals.split(",")]
    unknown = sorted(set(options.rivals) - set(rivals.SHOWN_IN_ORDER))
    if unknown:
        known = ", ".join(rivals.SHOWN_IN_ORDER)
        parser.error(f"--rivals: unknown {', '.join(unknown)}; there are {known}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.quick and not options.suite and not options.only:
        options.suite = [name for name in SUITES if name != "scaling"]
    threads = environment.prepare(options.threads)
    limited = environment.limit_rivals() if options.rivals_isa == "same" else None
    if limited is not None:
        options.rivals = [name for name in options.rivals if name in limited]
        print(f"rivals are held to {os.environ['FASTMHA_ISA']} too; others stay away")
    if options.quick:
        os.environ.setdefault("FASTMHA_BENCH_FLEX", "0")
    present, missing = rivals.load({rivals.OURS, *options.rivals}, threads)
    from bench import harness, results, workloads
    from bench.report import page, table

    chosen = harness.select(workloads.every(), options.suite, options.only)
    if options.list:
        print("\n".join(f"{workload.suite:10} {workload.name}" for workload in chosen))
        return 0
    processes = [
        name
        for name in PROCESSES
        if name in options.suite or (not options.suite and not options.only)
    ]
    if not chosen and not processes:
        print("no workload matches; --list names them", file=sys.stderr)
        return 2
    for absent in dict.fromkeys(each.absent for each in chosen if each.absent):
        print(f"left out: {absent}", file=sys.stderr)
    chosen = [workload for workload in chosen if not workload.absent]
    if not chosen and not processes:
        return 2
    machine = environment.facts(threads, present, missing)
    print(environment.headline(machine))
    if missing:
        print(f"not installed, so left out: {', '.join(missing)}")
    budget = harness.QUICK if options.quick else harness.Budget()
    run = results.Run({**machine, "quick": options.quick, "rivals_limited": limited is not None})
    start = time.perf_counter()

    def keep() -> None:
        run.machine["seconds"] = round(time.perf_counter() - start)
        if options.json:
            results.write(options.json, run)

    try:
        measure_all(run, chosen, present, budget, options.lenient, keep)
        run_processes(run, processes, threads, options)
    except KeyboardInterrupt:
        run.unfinished["the run"] = "interrupted: what was measured until then is kept"
    finally:
        keep()
    table.print_all(run)
    if options.html:
        options.html.write_text(page.render(run), encoding="utf-8")
    if "the run" in run.unfinished:
        return INTERRUPTED
    return 1 if run.failures or run.unfinished else 0


def measure_all(
    run: "Run",
    chosen: list["Workload"],
    present: list[Any],
    budget: "Budget",
    lenient: bool,
    keep: Callable[[], None],
) -> None:
    """All workloads; `keep` is called after each, so that a run that is killed has lost little."""
    from bench import harness, limits, progress

    found = limits.Limits(run.machine["fastmha"]["isa"], run.machine["threads"])

    def seconds(each: "Budget") -> float:
        return each.seconds

    before = found.memory()
    run.machine["memory_gbps"] = before
    with progress.shown(len(chosen)) as shown:
        for workload in chosen:
            shown.start(workload.name)
            short = budget if workload.axis is None else min(budget, harness.CURVE, key=seconds)
            result = harness.run(workload, present, found, short, lenient=lenient)
            run.results.append(result)
            keep()
            shown.done(result)
    after = found.memory()
    run.machine["memory_gbps"] = {s: max(before[s], after[s]) for s in before}
    keep()


def run_processes(run: "Run", names: list[str], threads: int, options: argparse.Namespace) -> None:
    """One that fails is named in the run, and takes nothing else with it."""
    from bench import beside, startup, thread_scaling

    if "threads" in names:
        for count in thread_scaling.counts(threads):
            try:
                run.threads += thread_scaling.measure(count, threads, options)
            except Exception as error:
                run.unfinished[f"scaling, {count} threads"] = reason(error)
    if "beside" in names and "torch" in options.rivals:
        try:
            run.beside = beside.measure(threads, options.quick)
        except Exception as error:
            run.unfinished["beside PyTorch"] = reason(error)
    if "startup" in names:
        try:
            run.startup = startup.measure(run.machine["versions"], options.quick)
        except Exception as error:
            run.unfinished["first embedding"] = reason(error)


def reason(error: Exception) -> str:
    """The end of what a process said is what matters."""
    said = getattr(error, "stderr", None) or str(error)
    return f"{type(error).__name__}: {' '.join(said.split())[-300:]}"
