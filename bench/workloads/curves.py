"""The workloads that make curves: over the length, and over the batch."""

from dataclasses import replace

from bench.harness import Workload
from bench.results import Target
from bench.workloads import blocks
from bench.workloads.attention import Shape, workload

LENGTHS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
BATCHES = [1, 4, 16, 64, 256, 1024]
# From here on NumPy's scores alone are a gigabyte.
NUMPY_UNTIL = 4096
HEADS, DIM = 4, 64


def over_length() -> list[Workload]:
    found = []
    for length in LENGTHS:
        rivals = ("fastmha", "torch") + (("numpy",) if length <= NUMPY_UNTIL else ())
        one = workload(Shape(1, HEADS, length, DIM), Target())
        found.append(
            replace(one, suite="scaling", axis=("attention, by length", length), rivals=rivals)
        )
    return found


def over_batch() -> list[Workload]:
    found = []
    rivals = ("fastmha", "torch", "numpy")
    for batch in BATCHES:
        attention = workload(Shape(batch, 8, 32, 64), Target())
        encoder = blocks.block("encoder", blocks.Size(512, 8, 2048), batch, 5, Target())
        for one, axis in (
            (attention, "attention 8 x 32 x 64, by batch"),
            (encoder, "EncoderBlock 512/8/2048 of 5 tokens, by batch"),
        ):
            found.append(replace(one, suite="scaling", axis=(axis, batch), rivals=rivals))
    return sorted(found, key=lambda w: w.axis or ("", 0))


def workloads() -> list[Workload]:
    return over_length() + over_batch()
