"""Searches and rules against ``transformers.generate``, token for token, on small random models.

transformers' own network stands behind both sides, so that the search alone is tested.
"""

import functools
import warnings

import numpy as np
import pytest
from decoders import OfTransformers
from fastmha.decoding import GenerationSettings, generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, START, EOS, PAD = 41, 3, 2, 1
SOURCES = 12
SIZES = {
    "marian": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_position_embeddings": 64,
    },
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_position_embeddings": 64,
    },
    "t5": {"d_model": 16, "num_layers": 1, "num_decoder_layers": 1, "d_kv": 8, "num_heads": 2},
}
CLASSES = {"marian": "Marian", "bart": "Bart", "t5": "T5"}
HEADS = {"marian": "MarianMTModel", "bart": "BartForConditionalGeneration"}


@functools.cache
def network(family):
    heads = (
        {}
        if family == "t5"
        else {
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
            **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        }
    )
    config = getattr(transformers, f"{CLASSES[family]}Config")(
        vocab_size=VOCAB,
        eos_token_id=EOS,
        pad_token_id=PAD,
        bos_token_id=0,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
        **SIZES[family],
        **heads,
    )
    torch.manual_seed(1)
    model = getattr(transformers, HEADS.get(family, "T5ForConditionalGeneration"))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # sharp: next tokens that hardly tie, and depend on source and prefix
            parameter.normal_(0, 0.7 if "norm" not in name else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=EOS, pad_token_id=PAD, bos_token_id=0, decoder_start_token_id=START
    )
    return OfTransformers(model)


@functools.cache
def sources(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCAB, 6) for _ in range(SOURCES)]


def theirs(family, prefix=(), **options):
    model = network(family).model
    if prefix:
        options["decoder_input_ids"] = torch.tensor([[START, *prefix]] * SOURCES)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            torch.tensor(np.stack(sources())),
            attention_mask=torch.ones(SOURCES, 6, dtype=torch.long),
            return_dict_in_generate=True,
            output_scores=True,
            **{"do_sample": False, **options},
        )
    return out


def ours(family, prefix=(), **options):
    settings = GenerationSettings.from_fields(network(family).model.generation_config.to_dict())
    prefixes = [prefix] * SOURCES if prefix else None
    found = generate(
        network(family),
        sources(),
        settings.replace(**options),
        prefixes=prefixes,
        with_scores=True,
        batch_size=5,
    )
    return list(found)


def ids_of(sequence, eos=(EOS,)):
    """Without start token, end token and what follows it."""
    ids = sequence.tolist()[1:]
    ends = [ids.index(token) for token in eos if token in ids]
    return ids[: min(ends)] if ends else ids


def assert_same(family, prefix=(), **options):
    expected = theirs(family, prefix, **options)
    found = ours(family, prefix, **options)
    count = options.get("num_return_sequences", 1)
    eos = options.get("eos_token_id", EOS)
    eos = (eos,) if isinstance(eos, int) else tuple(eos)
    lengths = set()
    for n, hypotheses in enumerate(found):
        assert len(hypotheses) == count
        for place, hypothesis in enumerate(hypotheses):
            row = n * count + place
            sequence = ids_of(expected.sequences[row], eos)
            length = len(hypothesis.ids)
            assert hypothesis.ids.tolist() == sequence[:length], (n, place)
            assert set(sequence[length:]) <= {PAD}
            if options.get("num_beams", 1) > 1:
                score = expected.sequences_scores[row].item()
                assert hypothesis.score == pytest.approx(score, abs=1e-4, rel=2e-6)
            lengths.add(len(hypothesis.ids))
    return lengths


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("limit", [1, 2, 17])
def test_greedy(family, limit):
    assert_same(family, max_new_tokens=limit)


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.5, -1.0])
@pytest.mark.parametrize("beams", [2, 4, 7])
def test_beams(family, early_stopping, length_penalty, beams):
    assert_same(
        family,
        num_beams=beams,
        num_return_sequences=beams,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        max_new_tokens=14,
    )
