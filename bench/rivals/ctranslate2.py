"""CTranslate2, its model converted from transformers' by its own loader for MarianMTModel."""

import tempfile
from functools import lru_cache
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.converters.transformers import MarianMTLoader

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


@lru_cache(maxsize=2)
def translator_of(network: Marian, compute_type: str) -> Any:
    """TransformersConverter wants a tokenizer on the disk; what it does with a model is here."""
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
