"""CTranslate2, which runs whole models alone, converted from transformers' checkpoints, in float32.

It keeps its own lengths and skips the padding in linear layers; inputs are padded arrays of its own
kind, made before the clock starts.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from bench import problems
from bench.rivals import Calls

NAME = "ctranslate2"
_threads = 1


def version() -> str:
    return str(ctranslate2.__version__)


def prepare(threads: int) -> None:
    global _threads
    _threads = threads


def calls(problem: problems.Problem) -> Calls:
    match problem:
        case problems.Sentences():
            return _sentences(problem)
    raise NotImplementedError(type(problem).__name__)


def convert(directory: Path, output: Path) -> None:
    """Its own form of a checkpoint of transformers; needs transformers and torch."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise NotImplementedError("models are converted from transformers, not here") from None
    converter = ctranslate2.converters.TransformersConverter(str(directory))
    converter.convert(str(output), force=True)


@cache
def _encoder(directory: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        convert(directory, Path(folder))
        return ctranslate2.Encoder(
            folder, device="cpu", compute_type="float32", intra_threads=_threads
        )


def pooled(states: Any, lengths: problems.Array) -> problems.Array:
    """The mean over the rows that are no padding, at length 1."""
    rows = np.asarray(states)
    if (lengths < rows.shape[1]).any():
        rows = rows * (np.arange(rows.shape[1]) < lengths[:, None])[:, :, None]
    mean = rows.sum(1) / lengths[:, None].astype(np.float32)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


def _sentences(p: problems.Sentences) -> Calls:
    encoder = _encoder(p.directory)

    def way(groups: list[problems.Group]) -> Callable[[], Any]:
        view = ctranslate2.StorageView.from_array
        kept = [(g.places, g.ids.astype(np.int32), g.lengths.astype(np.int32)) for g in groups]
        runs = [(places, view(ids), lengths, view(lengths)) for places, ids, lengths in kept]
        out = np.empty((len(p.ids), int(p.config["hidden_size"])), np.float32)

        def run(kept: Any = kept) -> Any:  # the views look at these arrays
            for places, ids, lengths, counts in runs:
                states = encoder.forward_batch(ids, counts).last_hidden_state
                out[places] = pooled(states, lengths)
            return out

        return run

    return {words: way(groups) for words, groups in p.groupings.items()}
