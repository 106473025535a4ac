"""CTranslate2, its models converted from transformers' by its own loaders."""

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.converters.transformers import MarianMTLoader, TransformersConverter

from bench import problems
from bench.marian import EOS, Marian
from bench.rivals import Call, Calls
from bench.rivals import transformers as origin

NAME = "ctranslate2"
UNKNOWN = 1  # the source never holds it

_threads = 1


def version() -> str:
    return ctranslate2.__version__


def prepare(threads: int) -> None:
    global _threads
    _threads = threads
    origin.prepare(threads)


def words(network: Marian) -> list[str]:
    """A vocabulary, which there must be: padding has no place in it."""
    tokens = [str(number) for number in range(network.pad)]
    tokens[EOS], tokens[UNKNOWN] = "</s>", "<unk>"
    return tokens


# A model has a pool of threads of its own, and two pools are more threads than CPUs: with another
# one alive, either took up to twice as long. So there is one model at a time.
@lru_cache(maxsize=1)
def translator_of(network: Marian, compute_type: str) -> Any:
    """TransformersConverter wants a tokenizer on the disk; what it does with a model is here."""
    _encoder.cache_clear()
    loader = MarianMTLoader()
    spec = loader.get_model_spec(origin.model_of(network))
    loader.set_vocabulary(spec, words(network))
    spec.config.eos_token = spec.config.decoder_start_token = "</s>"
    spec.config.unk_token, spec.config.add_source_eos = "<unk>", False
    spec.validate()
    spec.optimize(quantization=None)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        return ctranslate2.Translator(
            folder, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=_threads
        )


def calls(problem: problems.Problem, compute_type: str = "float32") -> Calls:
    if isinstance(problem, problems.Sentences):
        return _sentences(problem, compute_type)
    if not isinstance(problem, problems.Generation):
        raise NotImplementedError
    p = problem
    translator, vocabulary = translator_of(p.network, compute_type), words(p.network)
    ids = {word: number for number, word in enumerate(vocabulary)}
    sources = [[vocabulary[token] for token in source] for source in p.sources]
    # the end token never wins, so it is not forbidden: that would cost a step more
    options = {"beam_size": p.beam_size, "max_decoding_length": p.count}

    def as_ids(results: Any) -> Any:
        return np.array([[ids[word] for word in result.hypotheses[0]] for result in results])

    return {"": Call(lambda: translator.translate_batch(sources, **options), as_ids)}


# ---- texts ---------------------------------------------------------------------------------------


def convert(directory: Path, output: Path) -> None:
    """Write its own form of a checkpoint of transformers."""
    TransformersConverter(str(directory)).convert(str(output), force=True)


@lru_cache(maxsize=1)
def _encoder(directory: Path, compute_type: str) -> Any:
    translator_of.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        convert(directory, Path(folder))
        return ctranslate2.Encoder(
            folder, device="cpu", compute_type=compute_type, intra_threads=_threads
        )


def pooled(states: Any, lengths: problems.Array) -> problems.Array:
    """The mean over the rows that are no padding, at length 1."""
    rows = np.asarray(states)
    if (lengths < rows.shape[1]).any():
        rows = rows * (np.arange(rows.shape[1]) < lengths[:, None])[:, :, None]
    mean = rows.sum(1) / lengths[:, None].astype(np.float32)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


def _sentences(p: problems.Sentences, compute_type: str) -> Calls:
    """Padded arrays of its own kind, made before the clock starts; with their lengths it skips the
    padding in linear maps."""
    encoder = _encoder(p.directory, compute_type)

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
