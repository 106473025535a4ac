"""Translation with a Transformer-base: encode, then token by token, greedily or by beam search."""

from functools import lru_cache

import numpy as np

from bench import problems
from bench.harness import Workload
from bench.limits import Traffic
from bench.marian import EOS, Marian
from bench.results import Target

SUITE = "generate"
RIVALS = ("fastmha", "transformers", "ctranslate2", "ctranslate2_int8")
SOURCE, TARGET = 20, 32  # tokens
# batch, hypotheses per source, what is asked for
SEARCHES = (
    (1, 1, Target(ctranslate2=3.0, share=0.7)),
    (1, 4, Target(ctranslate2=3.0)),
    (16, 1, Target(best=2.5)),
    (16, 4, Target(best=2.5)),
)


@lru_cache(maxsize=1)
def base() -> Marian:
    """One set of weights for all workloads: 60 million numbers."""
    return Marian()


def step_weights(size: Marian) -> int:
    """Numbers that a step must read whoever computes it: the decoder's layers but for the maps of
    the memory's keys and values, and the output map."""
    attention, key_value, feed_forward = size.layer_weights
    layer = 2 * attention - key_value + feed_forward
    return size.layers * layer + size.vocab_size * size.d_model


def start_weights(size: Marian) -> int:
    """Numbers that are read once: the encoder's, and the decoder's maps of memory."""
    attention, key_value, feed_forward = size.layer_weights
    return size.layers * (attention + feed_forward + key_value)


def flops(size: Marian, batch: int, beam_size: int) -> float:
    """Multiply-adds twice: of the maps, and of attention over positions that exist."""
    rows, width = batch * beam_size, size.layers * size.d_model
    start = 2.0 * batch * SOURCE * start_weights(size) + 4.0 * batch * SOURCE**2 * width
    maps = 2.0 * rows * TARGET * step_weights(size)
    pairs = TARGET * (TARGET + 1) / 2 + TARGET * SOURCE
    return start + maps + 4.0 * rows * pairs * width


def workload(size: Marian, batch: int, beam_size: int, target: Target) -> Workload:
    def make() -> problems.Generation:
        rng = np.random.default_rng(1)
        sources = rng.integers(EOS + 2, size.pad, (batch, SOURCE))  # 1 is CTranslate2's <unk>
        sources[:, -1] = EOS
        return problems.Generation(size, sources, TARGET, beam_size)

    how = "greedy" if beam_size == 1 else f"beam {beam_size}"
    # each step reads its weights anew: they are more than any cache holds
    read = 4.0 * (TARGET * step_weights(size) + start_weights(size))
    return Workload(
        SUITE,
        f"generate {batch} x {SOURCE} -> {TARGET}, {how}",
        flops(size, batch, beam_size),
        Traffic(read, 0.0, passes=TARGET),
        make,
        target,
        rivals=RIVALS,
        work=(batch * TARGET, "tokens"),
    )


def workloads() -> list[Workload]:
    return [workload(base(), *search) for search in SEARCHES]
