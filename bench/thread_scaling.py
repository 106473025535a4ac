"""The same workloads on 1, 2, 4, ... threads, each count in a process of its own: the pools of most
libraries take their size once."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import results

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


def measure(threads: int, quick: bool) -> list[dict[str, Any]]:
    """One record for each workload, rival and number of threads."""
    found = []
    for count in counts(threads):
        print(f"{count} of {threads} threads ...", file=sys.stderr, flush=True)
        for result in _run(count, quick).measured:
            if result.name not in WORKLOADS:
                continue
            for rival in RIVALS:
                best = result.best(rival)
                if best is not None:
                    found.append(
                        {
                            "name": result.name,
                            "rival": rival,
                            "threads": count,
                            "median": result.median(best),
                            "limit": result.limit,
                        }
                    )
    return found


def _run(count: int, quick: bool) -> results.Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        command = [sys.executable, "-m", "bench", "--threads", str(count), "--json", str(path)]
        command += ["--lenient", "--rivals", ",".join(RIVALS)]
        command += [
            part
            for suite in ("attention", "decode", "linear", "blocks")
            for part in ("--suite", suite)
        ]
        command += [part for name in WORKLOADS for part in ("--only", f"={name}")]
        command += ["--quick"] if quick else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"bench on {count} threads: {done.stderr.strip()[-500:]}")
        return results.read(path)
