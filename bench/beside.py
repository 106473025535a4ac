"""fastmha in a process where PyTorch works too, against a process where it is alone.

    python -m bench.beside THREADS SECONDS [--torch]

prints a JSON object of medians in seconds. With --torch every timed call follows a matrix product
of PyTorch's, whose threads then still wait for more.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from bench import environment

WORKLOADS = (
    "attention 32 x 12 x 128 x 64",
    "linear 5120 x 512 -> 512",
    "EncoderBlock 512/8/2048, 32 x 100",
)
PAIRS = 2  # processes of each kind, in turn


def measure(threads: int, quick: bool) -> list[dict[str, Any]]:
    """Nothing without torch."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return []
    print("beside PyTorch in one process ...", file=sys.stderr, flush=True)
    seconds = 0.3 if quick else 1.5
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(PAIRS):
        for with_torch in (False, True):
            runs[with_torch].append(_process(threads, seconds, with_torch))
    return [
        {
            "name": name,
            "alone": min(run[name] for run in runs[False]),
            "beside": min(run[name] for run in runs[True]),
        }
        for name in runs[False][0]
    ]


def _process(threads: int, seconds: float, with_torch: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.beside", str(threads), str(seconds)]
    command += ["--torch"] if with_torch else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _median(call: Callable[[], Any], before: Callable[[], Any], seconds: float) -> float:
    samples = []
    deadline = time.perf_counter() + seconds
    while len(samples) < 5 or time.perf_counter() < deadline:
        before()
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return median(samples)


def _calls() -> dict[str, Callable[[], Any]]:
    from bench.rivals import fastmha
    from bench.workloads import attention, blocks, linear

    every = [*attention.workloads(), *linear.workloads(), *blocks.workloads()]
    by_name = {workload.name: workload for workload in every}
    return {name: fastmha.calls(by_name[name].make())[""] for name in WORKLOADS}


def main() -> None:
    threads, seconds = int(sys.argv[1]), float(sys.argv[2])
    environment.prepare(threads)
    if "--torch" in sys.argv:
        import torch

        torch.set_num_threads(threads)
        matrix = torch.randn(1024, 1024)

        def before() -> Any:
            return matrix @ matrix
    else:

        def before() -> Any:
            """Alone: our own previous call is what happened last."""

    found = {}
    for name, call in _calls().items():
        for _ in range(3):
            call()
        found[name] = _median(call, before, seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
