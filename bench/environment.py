"""What must be settled before NumPy or a rival is imported; what a reader must know of it all."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

# Debian, containers and CI set these to have the same results everywhere; they make OpenBLAS use
# the kernels of another CPU, half as fast here.
CRIPPLING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

# With FASTMHA_ISA=avx2 or generic the question is what a CPU without more would show: there the
# rivals have no more either. Those that cannot be told so stay away. `generic` is SSE2; NumPy asks
# for SSE4.2 at least.
SAME_ISA = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
    "generic": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "CT2_FORCE_CPU_ISA": "GENERIC",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    },
}
CAN_BE_LIMITED = ("fastmha", "torch", "numpy", "transformers", "ctranslate2", "ctranslate2_int8")


def limit_rivals() -> list[str] | None:
    """Tells the rivals to use what FASTMHA_ISA names; those that can be told, or None when there is
    nothing to tell."""
    settings = SAME_ISA.get(os.environ.get("FASTMHA_ISA", ""))
    if settings is None:
        return None
    os.environ.update(settings)
    return list(CAN_BE_LIMITED)


def prepare(threads: int | None) -> int:
    """The same number of threads for every library: their pools read it once, when loaded."""
    count = threads or len(os.sched_getaffinity(0))
    for name in CRIPPLING:
        os.environ.pop(name, None)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ["FASTMHA_NUM_THREADS"] = str(count)
    # OpenBLAS's idle threads spin for some 100 ms by default, and whoever comes next in turn shares
    # the cores with them: twice the time in the median. After 2^20 cycles, 0.4 ms, they sleep: long
    # enough to be awake for NumPy's own next call.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    return count


def blas() -> str:
    """Which kernels NumPy's BLAS runs, on how many threads."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown (threadpoolctl is not installed)"
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(
        f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')} kernels, "
        f"{pool['num_threads']} threads"
        for pool in pools
        if "numpy" in pool["filepath"] or len(pools) == 1
    )


def memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def facts(threads: int, rivals: Iterable[ModuleType], missing: list[str]) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    import fastmha as fm

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "memory_gib": memory_gib(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "fastmha": fm.info(),
        "versions": {rival.NAME: rival.version() for rival in rivals},
        "missing": missing,
        "blas": blas(),
    }


def headline(machine: dict[str, Any]) -> str:
    core = machine["fastmha"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{core['cpu']}, {machine['threads']} threads, {core['isa']}, {core['compiler']}, "
        f"Python {machine['python']}\n{versions}; numpy's BLAS: {machine['blas']}"
    )
