"""Threads, instruction sets and the facts of this build."""

from pathlib import Path
from typing import Any

from fastmha import _core

__all__ = [
    "available_isas",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "info",
    "isa",
    "release_memory",
    "set_num_threads",
]


def set_num_threads(n: int) -> None:
    """Let every operation use up to `n` threads. Results never depend on it.

    Without this call the count comes from ``FASTMHA_NUM_THREADS``, else ``OMP_NUM_THREADS``, else
    it is the number of CPUs that this process may use (affinity mask and cgroup quota).

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        `n` is not an integer.
    ValueError
        `n` is smaller than 1 or larger than the larger of 64 and four times the machine's CPUs.

    Examples
    --------
    >>> import fastmha as fm
    >>> before = fm.get_num_threads()
    >>> fm.set_num_threads(1)
    >>> fm.get_num_threads()
    1
    >>> fm.set_num_threads(before)
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads that an operation may use; see :func:`set_num_threads`.

    Examples
    --------
    >>> import fastmha as fm
    >>> fm.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def isa() -> str:
    """The instruction set in use: the best one of this CPU, or what ``FASTMHA_ISA`` names.

    Examples
    --------
    >>> import fastmha as fm
    >>> fm.isa() in fm.available_isas()
    True
    """
    return _core.isa()


def available_isas() -> list[str]:
    """The instruction sets that this build has and this CPU can run, best first.

    Examples
    --------
    >>> import fastmha as fm
    >>> fm.available_isas()[-1]
    'generic'
    """
    return _core.available_isas()


def info() -> dict[str, Any]:
    """Facts for a bug report or a benchmark: version, compiler, build type, CPU, ISAs, threads,
    OpenMP, and the bytes that :func:`release_memory` would return to the system.

    Examples
    --------
    >>> import fastmha as fm
    >>> fm.info()["version"] == fm.__version__
    True
    """
    return dict(_core.build_info())


def release_memory() -> int:
    """Return the memory of past results and calls to the system; the number of bytes that it was.

    Results of 1 MiB and more come from a pool: when the last view of one is gone, its memory is
    kept for the next result of that size, because the system takes longer to hand out fresh pages
    than most operations take to fill them. At most 256 MiB are kept idle, of what was used last;
    anything beyond is returned at once. Arrays that are alive are not touched.

    Operations also keep their scratch memory for the next call of the same Python thread (some MiB;
    at most 32 for each thread that computes). That of the calling thread is returned as well; other
    threads' goes when they end.

    Examples
    --------
    >>> import fastmha as fm, numpy as np
    >>> del_me = fm.relu(np.ones((512, 1024), np.float32))
    >>> del del_me
    >>> fm.release_memory() >= 2 << 20
    True
    >>> fm.info()["idle_memory"]
    0
    """
    return _core.release_memory()


def get_include() -> str:
    """The directory that holds ``fastmha/fastmha.h``: the C++ headers that the installed package
    carries.

    Raises
    ------
    FileNotFoundError
        The package runs from a place without them, such as a source tree.

    Examples
    --------
    >>> import fastmha as fm
    >>> from pathlib import Path
    >>> (Path(fm.get_include()) / "fastmha" / "fastmha.h").is_file()
    True
    """
    return _installed("include", "fastmha/fastmha.h")


def get_cmake_dir() -> str:
    """The directory to pass as ``-Dfastmha_DIR=...`` so that ``find_package(fastmha)`` finds this
    installation.

    Raises
    ------
    FileNotFoundError
        The package runs from a place without it, such as a source tree.

    Examples
    --------
    >>> import fastmha as fm
    >>> from pathlib import Path
    >>> (Path(fm.get_cmake_dir()) / "fastmhaConfig.cmake").is_file()
    True
    """
    return _installed("lib/cmake/fastmha", "fastmhaConfig.cmake")


def _installed(folder: str, witness: str) -> str:
    path = Path(__file__).resolve().parent / folder
    if not (path / witness).is_file():
        raise FileNotFoundError(
            f"{path} has no {witness}: the C++ files come with an installed fastmha "
            "(pip install fastmha), or build them with cmake --install"
        )
    return str(path)
