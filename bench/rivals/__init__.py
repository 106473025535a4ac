"""Who takes part. A rival is a module with

    NAME                  as in tables
    version()             of the library
    prepare(threads)      called once, before any call
    calls(problem)        {way: call without arguments}: every way in which its users could say it
                          (a `Call` where the answer has to be read in another form)

A way is "" where there is one, else words that tell it from the others. `calls` raises
NotImplementedError for what the library cannot do. `best` of several ways is what is compared.
"""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


class Call:
    """What is timed, and, where its answer has another form, how to read that as expected."""

    def __init__(self, run: Callable[[], Any], read: Callable[[Any], Any] = lambda x: x) -> None:
        self.run = run
        self.read = read


Calls = dict[str, Callable[[], Any] | Call]

# torch before fastmha: fastmha then runs on the OpenMP pool that torch brings, and only one spins.
# CTranslate2 before both: it then runs on its own. On torch's, which it takes when that is there,
# its threads count with the others as more than there are CPUs, and nobody's spin any more: torch
# and fastmha took up to twice as long from its first call on.
LOADED_IN_ORDER = (
    "ctranslate2",
    "ctranslate2_int8",
    "torch",
    "transformers",
    "fastmha",
    "numpy",
    "onnxruntime",
    "openvino",
)
SHOWN_IN_ORDER = (
    "fastmha",
    "torch",
    "numpy",
    "onnxruntime",
    "openvino",
    "transformers",
    "ctranslate2",
    "ctranslate2_int8",
)
OURS = "fastmha"
# Shown beside the others, for information: what is asked for is asked of float32. Measured in a run
# of its own: beside it CTranslate2's float32 took twice as long (130 tokens/s instead of 285), as
# threads of both count as more than there are CPUs, and GCC's OpenMP then lets none of them spin.
LESS_PRECISE = ("ctranslate2_int8",)
OPTIONAL = tuple(name for name in SHOWN_IN_ORDER if name not in (OURS, "numpy"))


def load(names: Iterable[str], threads: int) -> tuple[list[ModuleType], list[str]]:
    """Those that are installed, in the order in which they are shown, and the names of the rest."""
    wanted = set(names)
    found, missing = {}, []
    for name in LOADED_IN_ORDER:
        if name not in wanted:
            continue
        try:
            found[name] = importlib.import_module(f"bench.rivals.{name}")
        except ImportError:
            if name == OURS:
                raise
            missing.append(name)
            continue
        found[name].prepare(threads)
    return [found[name] for name in SHOWN_IN_ORDER if name in found], missing


def label(rival: str, way: str) -> str:
    return f"{rival}: {way}" if way else rival


def rival_of(label: str) -> str:
    return label.partition(":")[0]
