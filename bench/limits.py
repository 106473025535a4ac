"""The limits of this machine: fused multiply-adds per second, and bytes read per second.

cpp/peak.cpp is compiled once per compiler and source, with the C++ compiler at hand, into a cache
folder. It runs as a process of its own, so that its threads never meet those of the rivals.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "cpp" / "peak.cpp"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp"]
# Far more than any cache that a core can call its own.
MEMORY_MEGABYTES = 1024


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
def _program() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("bench: no C++ compiler found (c++ or g++, or name one in CXX)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    recipe = "\n".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, version.stdout, _cpu()])
    program = _cache_folder() / f"peak-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            built = Path(folder) / "peak"
            subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(built)], check=True)
            built.replace(program)  # atomic: two runs at once do not see half a file
    return program


def _run(*arguments: object) -> float:
    command = [str(_program()), *map(str, arguments)]
    # Each of its threads on a CPU of its own: two on one would measure half a machine.
    environment = {**os.environ, "OMP_PROC_BIND": "spread", "OMP_PLACES": "threads"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(result.stdout)


def flops(threads: int) -> float:
    """GFLOP/s of fp32 FMA on `threads` threads, the best of a few short runs."""
    return _run("flops", threads)


def read_bandwidth(threads: int, megabytes: int = MEMORY_MEGABYTES) -> float:
    """GB/s of plain reads over a buffer of that size, the best of a few passes."""
    return _run("read", threads, max(1, megabytes))
