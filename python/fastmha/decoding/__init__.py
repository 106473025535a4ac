"""From a network's logits to targets: searches, rules, settings, batches.

settings     the fields of generation_config.json, and overrides
rules        what may come next
beam         beam search
chains       greedy search and sampling (draw: how a token is drawn)
scheduler    sources join and leave a batch: generate, stream
scoring      log-probabilities of given targets
targets      the arrays of all targets that grow, and what a finished one is
protocols    what a network offers (ids: what it is given is checked)

Everything here is NumPy over the two protocols; what is decided for one source depends on its own
logits alone.
"""

from fastmha.decoding.protocols import Hypotheses, Network
from fastmha.decoding.scheduler import BATCH_SIZE, generate, stream
from fastmha.decoding.scoring import TargetScore, score
from fastmha.decoding.settings import GenerationSettings
from fastmha.decoding.targets import Hypothesis

__all__ = [
    "BATCH_SIZE",
    "GenerationSettings",
    "Hypotheses",
    "Hypothesis",
    "Network",
    "TargetScore",
    "generate",
    "score",
    "stream",
]
