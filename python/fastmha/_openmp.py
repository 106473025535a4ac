"""Keeps OpenMP's threads from spinning for long.

A thread of GCC's OpenMP that waits for the next piece of work, or for a slower thread, spins
300,000 times before it sleeps: up to 15 ms of a core. That is harmless on an idle machine. Where
two processes share the cores, the one that spins keeps the other from finishing: an encoder block
that takes 0.6 ms alone took 37 ms, and 1.3 ms with 1,000 spins, which (10 to 50 us, by CPU) still
bridge the gap between two operations of a model.

More spins bridge longer gaps (after 50 us of serial work a fork and join takes 28 us with 1,000,
0.5 with 10,000), but after some idle time the system may wake both threads of a team
on one CPU, and then the one that spins keeps the one it waits for from running, for as long as it
spins. Six operations of 10 us after 10 ms idle, on 2 CPUs (and six of 100 us in each of two
processes that share them; medians of one run, the last one's p90 is 23,000 to 60,000):

    spins      300    1,000    3,000    5,000   10,000   30,000  300,000
    us         180       63       63    1,449    2,741    6,950       89
    shared     530      720    1,310    1,910    3,300    9,000   215

OpenMP reads the setting once, when its library is loaded with the compiled core. It is put back
right after, so that child processes do not inherit it, and not touched when the user made a choice.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPINS = "1000"
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@contextmanager
def short_spins() -> Iterator[None]:
    """While this lasts, an OpenMP library that is loaded takes the short setting."""
    if any(name in os.environ for name in CHOICES):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


def _is_command() -> bool:
    """Whether this process is the command: `fastmha`, or `python -m fastmha`."""
    by_name = Path(sys.argv[0]).name == "fastmha" if sys.argv else False
    return by_name or "-m fastmha" in " ".join(sys.orig_argv[1:])


with short_spins():
    try:
        import fastmha._core  # noqa: F401
    except ImportError as error:
        # The command's own code comes later: this is the place where its user gets a line.
        if not (str(error).startswith(("FASTMHA_ISA", "FASTMHA_NUM_THREADS")) and _is_command()):
            raise
        sys.exit(f"fastmha: {error}")
