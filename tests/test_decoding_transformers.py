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
ENDS = {"marian": 3, "bart": -4, "t5": -2}
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
        # so that the end is often the greatest or the least of all: targets end at all lengths
        model.get_output_embeddings().weight[EOS] *= ENDS[family]
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
            lengths.add(length)
    return lengths


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("limit", [1, 2, 17])
def test_greedy(family, limit):
    lengths = assert_same(family, max_new_tokens=limit)
    assert limit < 17 or len(lengths) > 3, "targets should end at different steps"


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


RULES = {
    "min_length": {"min_length": 9},
    "min_new_tokens": {"min_new_tokens": 7, "min_length": 14},
    "no_repeat_ngram_1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_3": {"no_repeat_ngram_size": 3},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "repetition_reward": {"repetition_penalty": 0.7},
    "bad_token": {"bad_words_ids": [[7], [PAD], [EOS]]},
    "bad_words": {"bad_words_ids": [[7], [8, 9], [5, 6, 11], [9]]},
    "forced_bos": {"forced_bos_token_id": 17},
    "forced_eos": {"forced_eos_token_id": EOS},
    "forced_eos_other": {"forced_eos_token_id": [9]},
    "suppress": {"suppress_tokens": [4, 9, 13, 40]},
    "begin_suppress": {"begin_suppress_tokens": list(range(10, 30))},
    "begin_suppress_behind_forced": {
        "begin_suppress_tokens": list(range(10, 30)),
        "forced_bos_token_id": 12,
    },
    "renormalize": {"renormalize_logits": True, "suppress_tokens": [5, 6]},
    "renormalize_forced": {
        **{"renormalize_logits": True, "bad_words_ids": [[PAD], [4, 5]], "min_length": 4},
        **{"forced_bos_token_id": 17, "forced_eos_token_id": EOS},
    },
    "remove_invalid": {"remove_invalid_values": True, "suppress_tokens": [5, 6]},
    "several_ends": {"eos_token_id": [EOS, 11, 23]},
    "max_length": {"max_length": 8},
    "all_bans": {
        **{"min_length": 5, "no_repeat_ngram_size": 2, "bad_words_ids": [[7], [8, 9], [PAD]]},
        **{"forced_bos_token_id": 17, "forced_eos_token_id": EOS, "suppress_tokens": [30]},
        **{"begin_suppress_tokens": [20, 21]},
    },
    "all": {
        **{"min_length": 5, "no_repeat_ngram_size": 3, "bad_words_ids": [[7], [8, 9], [PAD]]},
        **{"forced_bos_token_id": 17, "forced_eos_token_id": EOS, "suppress_tokens": [30]},
        **{"begin_suppress_tokens": [20, 21], "repetition_penalty": 1.3},
        **{"renormalize_logits": True, "remove_invalid_values": True},
    },
}


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_rules(family, beams, name):
    options = {"max_new_tokens": 13, **RULES[name]}
    if "max_length" in options:
        del options["max_new_tokens"]
    assert_same(family, num_beams=beams, num_return_sequences=beams, **options)


@pytest.mark.parametrize("name", ["bad_words", "no_repeat_ngram_2", "min_length", "suppress"])
def test_rules_change_something(name):
    """Otherwise the comparison says nothing about them."""
    plain = [h[0].ids.tolist() for h in ours("marian", max_new_tokens=13)]
    ruled = [h[0].ids.tolist() for h in ours("marian", max_new_tokens=13, **RULES[name])]
    assert plain != ruled


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_length": 8},
        {"min_new_tokens": 4},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
        {"forced_bos_token_id": 17, "begin_suppress_tokens": [20, 21, 22, 23]},
        {"forced_eos_token_id": EOS, "bad_words_ids": [[30, 5], [6], [31, 12, 9]]},
    ],
)
def test_prefixes(family, beams, options):
    """A prefix is transformers' decoder_input_ids behind the start token."""
    prefix = (12, 30, 31)
    assert_same(family, prefix, num_beams=beams, max_new_tokens=9, **options)


# forces what another rule suppresses; has no max_new_tokens
APART = ("forced_eos_other", "max_length")


@pytest.mark.parametrize("seed", range(6))
def test_combinations_of_rules(seed):
    """Any rules together, drawn at random."""
    rng = np.random.default_rng(seed)
    for _ in range(6):
        names = rng.choice([name for name in RULES if name not in APART], 4, replace=False)
        options = {"max_new_tokens": int(rng.integers(3, 14))}
        for name in names:
            options.update(RULES[name])
        beams = int(rng.integers(1, 6))
        if beams > 1:
            options["length_penalty"] = float(rng.choice([0.0, 0.6, 1.0, 2.0]))
            options["early_stopping"] = [False, True, "never"][rng.integers(3)]
        family = list(SIZES)[rng.integers(3)]
        assert_same(family, num_beams=beams, **options)


@pytest.mark.parametrize("family", SIZES)
def test_greedy_scores_are_the_networks_log_probabilities(family):
    """Sum of the log-probabilities without rules, forced tokens at no cost, by the length."""
    options = {"max_new_tokens": 9, "suppress_tokens": [4, 9], "length_penalty": 0.5}
    out = theirs(family, output_logits=True, **options)
    logits = torch.stack(out.logits).log_softmax(-1).numpy()  # (steps, sources, vocabulary)
    for n, (hypothesis,) in enumerate(ours(family, **options)):
        ended = len(hypothesis.ids) < 9
        ids = [*hypothesis.ids.tolist(), EOS][: len(hypothesis.ids) + ended]
        expected = sum(logits[t, n, token] for t, token in enumerate(ids)) / len(ids) ** 0.5
        assert hypothesis.score == pytest.approx(expected, abs=1e-4, rel=2e-6)
