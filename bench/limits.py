"""The limits of this machine: multiply-adds per second, and bytes moved per second.

cpp/peak.cpp is compiled once per compiler, source and instruction set, with the C++ compiler at
hand, into a cache folder. It runs as a process of its own, so that its threads never meet those of
the rivals.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "cpp" / "peak.cpp"
FLAGS = ("-std=c++17", "-O3", "-fopenmp")
# The peak is that of the instructions that fastmha uses: FASTMHA_ISA=avx2 is compared with AVX2's.
# `generic` multiplies and adds apart, as any x86-64 can.
ISA_FLAGS = {
    "avx512": ("-march=native", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
    "generic": (),
}
# Far more than any cache that a core can call its own.
MEMORY_MEGABYTES = 1024
# How many bytes are read for each that is written: bandwidth is measured with the nearest of these.
STREAMS = {"read": float("inf"), "add": 2.0, "copy": 1.0}


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastmha-bench"


def _cpu() -> str:
    """-march=native means another program on another CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return os.uname().machine
    return next((line for line in lines if line.startswith("flags")), os.uname().machine)


@cache
def _program(isa: str) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("bench: no C++ compiler found (c++ or g++, or name one in CXX)")
    flags = (*FLAGS, *ISA_FLAGS[isa])
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    recipe = "\n".join([SOURCE.read_text(encoding="utf-8"), *flags, version.stdout, _cpu()])
    program = _cache_folder() / f"peak-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            built = Path(folder) / "peak"
            subprocess.run([compiler, *flags, str(SOURCE), "-o", str(built)], check=True)
            built.replace(program)  # atomic: two runs at once do not see half a file
    return program


def _environment() -> dict[str, str]:
    """Each of its threads on a CPU of its own: two on one would measure half a machine."""
    return {**os.environ, "OMP_PROC_BIND": "spread", "OMP_PLACES": "threads"}


def _run(isa: str, *arguments: object) -> float:
    command = [str(_program(isa)), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    return float(result.stdout)


@dataclass(frozen=True)
class Traffic:
    """The bytes that a call must move at least: each input, weight and output once."""

    read: float
    written: float
    passes: int = 1  # so many times over the same data, of which each part is read once a pass

    @property
    def total(self) -> float:
        return self.read + self.written

    @property
    def stream(self) -> str:
        """The pattern that comes nearest: reading alone, two read for one written, as many."""
        if self.written < 0.1 * self.read:
            return "read"
        return "add" if self.read >= 1.5 * self.written else "copy"

    @property
    def megabytes(self) -> int:
        """Data that fits a cache moves at the cache's speed: compare with as many bytes."""
        return min(MEMORY_MEGABYTES, max(1, round(self.total / self.passes / 1e6)))


class Limits:
    """Measures limits with the instructions of `isa`, on `threads` threads."""

    def __init__(self, isa: str, threads: int) -> None:
        self.isa = isa
        self.threads = threads

    def now(self, traffic: Traffic) -> tuple[float, float]:
        """GFLOP/s, and GB/s of that traffic, at this moment.

        Clocks and, in a virtual machine, memory differ by a tenth and more from minute to minute: a
        workload is compared with what was measured right before and after it.
        """
        return (
            _run(self.isa, "flops", self.threads),
            _run(self.isa, traffic.stream, self.threads, traffic.megabytes),
        )

    @contextmanager
    def reads(self, traffic: Traffic) -> Iterator[Callable[[], float]]:
        """A call that gives the GB/s of plain reads right now, of as many bytes as the traffic
        reads again and again: for who takes turns with it."""
        command = [str(_program(self.isa)), "turns", str(self.threads), str(traffic.megabytes)]
        # asleep between its turns: spinning threads would be in the next one's way
        environment = {**_environment(), "OMP_WAIT_POLICY": "passive"}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, text=True, env=environment, stdin=pipe, stdout=pipe
        ) as process:
            ask, answers = process.stdin, process.stdout
            assert ask is not None
            assert answers is not None

            def now() -> float:
                print(file=ask, flush=True)
                return float(answers.readline())

            yield now  # leaving closes its input, which ends it

    def memory(self) -> dict[str, float]:
        """GB/s of every stream with data that no cache holds."""
        return {s: _run(self.isa, s, self.threads, MEMORY_MEGABYTES) for s in STREAMS}


def disturbed(peaks: Sequence[float]) -> bool:
    """Somebody else used the machine: the peak sank somewhere along the run."""
    return bool(peaks) and min(peaks) < 0.9 * max(peaks)
