"""What is measured. A module has `workloads()`; problems are made when they are needed."""

from collections.abc import Iterator

from bench.harness import Workload
from bench.workloads import (
    attention,
    blocks,
    curves,
    decode,
    generate,
    linear,
    norm,
    sentences,
)

# suite -> module, in the order in which they run
SUITES = {
    "attention": attention,
    "decode": decode,
    "linear": linear,
    "norm": norm,
    "blocks": blocks,
    "encode": sentences,
    "generate": generate,
    "scaling": curves,
}


def every() -> Iterator[Workload]:
    for module in SUITES.values():
        yield from module.workloads()
