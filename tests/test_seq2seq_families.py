"""Every encoder-decoder family and every switch of its config against transformers, which wrote the
checkpoints."""

import copy

import numpy as np
import pytest
from conftest import assert_same_bits
from seq2seq_checkpoints import (
    EOS,
    load,
    packed,
    reference_logits,
    sequences,
    write_checkpoint,
)
from tolerance import U

SOURCES = (17, 1, 40, 2, 64, 17, 3)
TARGETS = (9, 30, 1, 64, 12, 2, 17)
CASES = {
    "marian": ("marian", {"scale_embedding": True, "activation_function": "swish"}),
    "marian, unscaled, gelu": ("marian", {}),
    "marian, relu": ("marian", {"activation_function": "relu"}),
    "marian, two vocabularies": (
        "marian",
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 131},
    ),
}


def assert_as_exact(ours, theirs, exact, what=""):
    """Against float64: at most four times as far off as PyTorch, which sums in other orders.

    The factor is that of the project for linear maps; below a few roundings of the largest number
    neither order is the better one.
    """
    allowed = 4 * np.abs(theirs - exact).max() + 16 * U * np.abs(exact).max()
    error = np.abs(ours - exact).max()
    assert error <= allowed, f"{what}: off by {error:.2e}, allowed {allowed:.2e}"


def check(directory, reference, lengths=(SOURCES, TARGETS)):
    """Logits are transformers', at once and step by step, with the same bits in any company."""
    network = load(directory)
    sources = sequences(*lengths[0])
    targets = sequences(*lengths[1], first=EOS, seed=1)
    double = copy.deepcopy(reference).double()
    ids, bounds = packed(sources)
    target_ids, target_bounds = packed(targets)
    memory = network.encode(ids, bounds)
    logits = network.target_logits(memory, bounds, target_ids, target_bounds)
    for n, (source, target) in enumerate(zip(sources, targets, strict=True)):
        own = logits[target_bounds[n] : target_bounds[n + 1]]
        assert own.shape == (len(target), network.vocab_size)
        exact = reference_logits(double, source, target)
        theirs = reference_logits(reference, source, target)
        assert_as_exact(own, theirs, exact, f"pair {n}")
        alone = network.encode(source, [0, len(source)])
        assert_same_bits(alone, memory[bounds[n] : bounds[n + 1]], f"source {n} alone")
        assert_same_bits(
            network.target_logits(alone, [0, len(alone)], target, [0, len(target)]),
            own,
            f"target {n} alone",
        )
        steps = stepwise(network, alone, [0, len(alone)], [target])[0]
        assert_as_exact(steps, theirs, exact, f"pair {n}, step by step")
    together = stepwise(network, memory, bounds, targets)
    for n, target in enumerate(targets):
        alone = network.encode(sources[n], [0, len(sources[n])])
        assert_same_bits(
            stepwise(network, alone, [0, len(alone)], [target])[0], together[n], f"steps of {n}"
        )
    return network


def stepwise(network, memory, bounds, targets):
    """The logits of each target, one token at a time; a target that ends leaves the batch."""
    hypotheses = network.start(len(targets), max(map(len, targets)))
    hypotheses.join(memory, np.asarray(bounds))
    present = list(range(len(targets)))
    found = [[] for _ in targets]
    position = 0
    while present:
        rows = hypotheses.logits(np.array([targets[n][position] for n in present]))
        position += 1
        for n, row in zip(present, rows, strict=True):
            found[n].append(row.copy())
        stay = [place for place, n in enumerate(present) if len(targets[n]) > position]
        if len(stay) < len(present):
            hypotheses.select(stay)
            present = [present[place] for place in stay]
    return [np.array(rows) for rows in found]


@pytest.mark.parametrize(("model_type", "config"), CASES.values(), ids=CASES)
def test_as_transformers(tmp_path, model_type, config):
    reference = write_checkpoint(tmp_path, model_type, **config)
    check(tmp_path, reference)
