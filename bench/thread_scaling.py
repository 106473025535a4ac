"""The same workloads on 1, 2, 4, ... threads, each count in a process of its own: the pools of most
libraries take their size once."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import results
from bench.rivals import OURS

# Compute-bound but for decoding, which is as fast as memory.
WORKLOADS = (
    "attention 1 x 8 x 2048 x 64",
    "attention 32 x 12 x 128 x 64",
    "decode 1 x 32 x 4096 x 128",
    "linear 5120 x 512 -> 512",
    "EncoderBlock 512/8/2048, 32 x 100",
)
RIVALS = ("fastmha", "torch")


def counts(threads: int) -> list[int]:
    """Powers of two, and all."""
    powers = [1 << n for n in range(threads.bit_length()) if 1 << n < threads]
    return [*powers, threads]


def measure(count: int, threads: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """On `count` of so many threads: one record for each workload and rival."""
    print(f"{count} of {threads} threads ...", file=sys.stderr, flush=True)
    return [
        {
            "name": result.name,
            "rival": rival,
            "threads": count,
            "median": result.median(best),
            "limit": result.limit,
        }
        for result in _run(count, options).measured
        for rival in RIVALS
        if (best := result.best(rival)) is not None
    ]


def _run(count: int, options: argparse.Namespace) -> results.Run:
    """The rivals and instructions are those of the run that this is a part of."""
    rivals = [name for name in RIVALS if name == OURS or name in options.rivals]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        command = [sys.executable, "-m", "bench", "--threads", str(count), "--json", str(path)]
        command += ["--lenient", "--rivals", ",".join(rivals), "--rivals-isa", options.rivals_isa]
        command += [
            part
            for suite in ("attention", "decode", "linear", "blocks")
            for part in ("--suite", suite)
        ]
        command += [part for name in WORKLOADS for part in ("--only", f"={name}")]
        command += ["--quick"] if options.quick else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"bench on {count} threads: {done.stderr.strip()[-500:]}")
        return results.read(path)
