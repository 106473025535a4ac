"""Decoding over tables of random logits: batches, streams, samples, scores, settings, errors."""

import doctest
import functools
import importlib
import itertools
import json

import fastmha as fm
import numpy as np
import pytest
from decoders import EOS, PAD, START, VOCABULARY, Table
from fastmha.decoding import GenerationSettings, generate, score, stream
from fastmha.decoding.draw import draw
from fastmha.decoding.rules import Rules, Targets, rules_for
from fastmha.decoding.scheduler import AHEAD, WINDOW
from fastmha.decoding.settings import HARMLESS, NEUTRAL
from hypothesis import given
from hypothesis import strategies as st


def settings(**options):
    return GenerationSettings(
        decoder_start_token_id=START, eos_token_id=EOS, pad_token_id=PAD, **options
    )


def some_sources(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 50, rng.integers(1, 12)) for _ in range(count)]


def targets(network, sources, how, **options):
    """Ids and the bits of the scores."""
    found = generate(network, sources, how, with_scores=True, **options)
    return [[(h.ids.tolist(), h.score.hex()) for h in hypotheses] for hypotheses in found]


SEARCHES = {
    "greedy": {},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam, rules": {
        **{"num_beams": 4, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [6, 7]]},
        **{"min_length": 4, "forced_bos_token_id": 9, "forced_eos_token_id": EOS},
    },
    "beam, bans": {"num_beams": 4, "bad_words_ids": [[5], [7]], "renormalize_logits": True},
    "beam, all rules": {"num_beams": 2, "repetition_penalty": 1.4, "renormalize_logits": True},
    "greedy, rules": {"repetition_penalty": 1.4, "min_new_tokens": 3, "suppress_tokens": [4]},
    "sample": {"do_sample": True, "seed": 3, "top_k": 5, "temperature": 0.8},
    "samples": {"do_sample": True, "seed": 3, "top_k": 0, "num_return_sequences": 3},
    "sample, top-p": {"do_sample": True, "seed": 3, "top_k": 0, "top_p": 0.8, "min_p": 0.02},
}


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
def test_a_target_does_not_depend_on_the_batch(search):
    """Bit for bit, whatever runs beside it, joins or leaves; with prefixes of some sources, too."""
    sources = some_sources(40)
    prefixes = [[8, 9, 10][: n % 4] for n in range(40)]
    how = settings(max_new_tokens=12, **SEARCHES[search])
    expected = targets(Table(), sources, how, prefixes=prefixes, batch_size=1)
    assert len({len(ids) for hypotheses in expected for ids, _ in hypotheses}) > 3
    for batch_size in (2, 5, 16, 64):
        network = Table()
        assert targets(network, sources, how, prefixes=prefixes, batch_size=batch_size) == expected
    if not how.do_sample:
        backwards = targets(Table(), sources[::-1], how, prefixes=prefixes[::-1], batch_size=7)
        assert backwards[::-1] == expected


@given(
    lengths=st.lists(st.integers(1, 9), max_size=30),
    batch_size=st.integers(1, 9),
    beams=st.integers(1, 4),
    seed=st.integers(0, 3),
    limit=st.integers(1, 9),
)
def test_targets_come_in_order_whatever_the_batch(lengths, batch_size, beams, seed, limit):
    rng = np.random.default_rng(seed)
    sources = [rng.integers(3, 50, length) for length in lengths]
    how = settings(num_beams=beams, max_new_tokens=limit)
    network = Table(seed=seed)
    found = targets(network, iter(sources), how, batch_size=batch_size)
    assert found == [targets(network, [source], how)[0] for source in sources]


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_the_batch_stays_full(search):
    """New sources join while others run, several at once; finished ones cost nothing more."""
    sources = some_sources(200)
    how = settings(max_new_tokens=20, **SEARCHES[search])
    network, alone = Table(), Table()
    targets(network, sources, how, batch_size=8)
    targets(alone, sources, how, batch_size=1)
    assert sum(network.encoded) == 200
    assert network.encoded[0] == 8
    assert all(joined >= 2 for joined in network.encoded[:-3]), "a quarter of the batch at least"
    assert network.rows == alone.rows, "no row runs on behind its end"
    assert network.rows / (network.steps * 8 * how.num_beams) > 0.85, "how full the batch was"


def test_sources_are_read_a_little_ahead():
    """Neither all at once, nor without bound when one target is much longer than all others."""
    taken = 0

    class Long(Table):
        def row(self, source, prefix):
            row = np.zeros(VOCABULARY, np.float32)
            row[4 if source.ravel()[0] == 40 else EOS] = 20.0
            return row

    def endless():
        nonlocal taken
        for n in itertools.count():
            taken += 1
            yield np.array([40 if n == 0 else 5])

    found = generate(Long(), endless(), settings(max_new_tokens=500), batch_size=4)
    assert taken == 0
    assert len(next(found)[0].ids) == 500
    assert taken <= (AHEAD + 1) * WINDOW * 4
    before = taken
    for _ in range(WINDOW * 4):
        assert len(next(found)[0].ids) == 0
    assert taken <= before + (AHEAD + 1) * WINDOW * 4


def test_no_sources():
    assert list(generate(Table(), [], settings())) == []
    assert list(generate(Table(), [], settings(num_beams=2), batch_size=3)) == []
    assert list(score(Table(), [], settings())) == []


def test_longer_prefixes_that_come_later():
    """The room of a batch is that of the sources at hand; a longer target waits for a new one."""
    sources = some_sources(60)
    prefixes = [[8] * (0 if n < 40 else n - 39) for n in range(60)]
    how = settings(max_new_tokens=6)
    expected = targets(Table(), sources, how, prefixes=prefixes, batch_size=1)
    assert targets(Table(), iter(sources), how, prefixes=iter(prefixes), batch_size=4) == expected


@functools.cache
def transformer():
    """A network of this package whose targets end at all lengths."""
    network = fm.Transformer(
        50,
        VOCABULARY,
        d_model=32,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        d_ff=48,
        max_positions=40,
        seed=2,
    )
    state = network.state_dict()
    state["output.weight"] = state["output.weight"] * 9
    state["tgt_embedding.weight"] = state["tgt_embedding.weight"] * 3
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("search", SEARCHES)
def test_a_networks_target_does_not_depend_on_batch_and_threads(search, num_threads):
    """Bit for bit: through encoder, caches that sources join and leave, and search."""
    sources = some_sources(30)
    prefixes = [[8, 9, 10][: n % 4] for n in range(30)]
    how = settings(max_new_tokens=12, **SEARCHES[search])
    num_threads(1)
    expected = targets(transformer(), sources, how, prefixes=prefixes, batch_size=1)
    assert len({len(ids) for hypotheses in expected for ids, _ in hypotheses}) > 3
    for batch_size, threads in ((3, 1), (8, 2), (64, 2)):
        num_threads(threads)
        found = targets(transformer(), sources, how, prefixes=prefixes, batch_size=batch_size)
        assert found == expected
    if not how.do_sample:
        found = targets(transformer(), sources[::-1], how, prefixes=prefixes[::-1], batch_size=5)
        assert found[::-1] == expected


def test_a_networks_stream_is_its_target():
    how = settings(max_new_tokens=9)
    for source in some_sources(5):
        ((expected,),) = generate(transformer(), [source], how)
        assert list(stream(transformer(), source, how)) == expected.ids.tolist()


def test_a_networks_scores_do_not_depend_on_the_batch():
    """Bit for bit, empty targets and targets of one token, too."""
    rng = np.random.default_rng(0)
    pairs = [(s, rng.integers(3, VOCABULARY, n % 5)) for n, s in enumerate(some_sources(20))]
    together = list(score(transformer(), pairs, settings()))
    for chosen in ([0], [5, 10], [3, 1], list(range(0, 20, 5)), list(range(19, -1, -1))):
        again = score(transformer(), [pairs[n] for n in chosen], settings())
        for n, found in zip(chosen, again, strict=True):
            assert found.log_probs.tobytes() == together[n].log_probs.tobytes()
            assert found.total == together[n].total


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_networks_targets_score_what_they_were_given(search):
    """Step by step with caches, and teacher forced at once."""
    how = settings(max_new_tokens=30, **SEARCHES[search])
    sources = some_sources(40)
    best = [found[0] for found in generate(transformer(), sources, how, with_scores=True)]
    best = [(s, h) for s, h in zip(sources, best, strict=True) if len(h.ids) < 30]
    assert len(best) > 3
    found = score(transformer(), [(source, h.ids) for source, h in best], how)
    for (_, hypothesis), given_score in zip(best, found, strict=True):
        count = len(given_score.log_probs)
        assert hypothesis.score * count == pytest.approx(given_score.total, abs=1e-4)


# ---- prefixes and lengths -----------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
def test_a_prefix_comes_first_and_is_not_counted(search):
    how = settings(max_new_tokens=5, **SEARCHES[search])
    for hypotheses in targets(Table(end=-9), some_sources(6), how, prefixes=[[8, 9, 10]] * 6):
        for ids, _ in hypotheses:
            assert ids[:3] == [8, 9, 10]
            assert len(ids) == 8 or how.forced_eos_token_id


def test_a_greedy_target_is_the_prefix_of_itself():
    network, how = Table(), settings(max_new_tokens=10)
    for source in some_sources(8):
        ((whole,),) = generate(network, [source], how)
        for cut in range(len(whole.ids)):
            rest = settings(max_new_tokens=10 - cut)
            ((again,),) = generate(network, [source], rest, prefixes=[whole.ids[:cut]])
            assert again.ids.tolist() == whole.ids.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_greatest_lengths(beams):
    sources = some_sources(4)

    def longest(positions=None, prefix=(), **options):
        network = Table(positions=positions, end=-9)
        how = settings(num_beams=beams, **options)
        found = targets(network, sources, how, prefixes=[prefix] * 4)
        (length,) = {len(ids) for hypotheses in found for ids, _ in hypotheses}
        return length

    assert longest(max_new_tokens=4) == 4
    assert longest(max_length=4) == 3, "with the start token"
    assert longest(max_length=4, prefix=[5]) == 3
    assert longest(max_length=4, max_new_tokens=6) == 6
    assert longest(positions=5) == 5, "the last token is never read"
    assert longest(positions=5, max_new_tokens=5) == 5
    assert longest(positions=5, max_length=60) == 5
    assert longest(positions=5, prefix=[5, 6]) == 5


@pytest.mark.parametrize("beams", [1, 2])
def test_targets_that_end_at_once_or_with_the_last_token_they_may_have(beams):
    class Ends(Table):
        def row(self, source, prefix):
            row = np.zeros(VOCABULARY, np.float32)
            row[EOS if len(prefix) == int(source[0, 0]) else 4] = 30.0
            return row

    how = settings(num_beams=beams, max_new_tokens=3)
    found = list(generate(Ends(), [[1], [2], [3], [4]], how, with_scores=True))
    assert [h[0].ids.tolist() for h in found] == [[], [4], [4, 4], [4, 4, 4]]
    # log(sum(exp)) of a row whose one token stands out is its logit, 30, to one rounding.
    assert max(abs(h[0].score) for h in found) <= 30 * np.finfo(np.float32).eps


# ---- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["greedy", "greedy, rules", "sample", "sample, top-p"])
@pytest.mark.parametrize("prefix", [(), (8, 9)])
def test_a_stream_gives_the_tokens_of_the_target(search, prefix):
    how = settings(max_new_tokens=7, **SEARCHES[search])
    for source in some_sources(12):
        ((expected,),) = generate(Table(), [source], how, prefixes=[prefix])
        tokens = list(stream(Table(), source, how, prefix=prefix))
        assert [*prefix, *tokens] == expected.ids.tolist()
        assert all(type(token) is int for token in tokens)


def test_a_stream_gives_a_token_as_soon_as_it_is_chosen():
    network = Table(end=-9)
    tokens = stream(network, [5, 6], settings(max_new_tokens=9))
    for steps in range(1, 9):
        next(tokens)
        assert network.steps == steps


def test_a_stream_of_beams_is_refused():
    with pytest.raises(ValueError, match="needs num_beams=1"):
        stream(Table(), [5], settings(num_beams=2))


# ---- samples ------------------------------------------------------------------------------------


def softmax(x):
    p = np.exp(np.asarray(x, np.float64) - np.max(x))
    return p / p.sum()


def expected_distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """As transformers' warpers leave it, written down plainly."""
    p = softmax(np.asarray(logits, np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[1:][before[1:] >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 4},
        {"top_p": 0.7},
        {"top_k": 6, "top_p": 0.8, "temperature": 1.3},
        {"min_p": 0.2},
        {"top_p": 0.95, "min_p": 0.05, "temperature": 2.0},
        {"top_k": 1},
        {"top_p": 0.0},
    ],
)
@pytest.mark.parametrize("vocabulary", [13, 700])
def test_draws_follow_the_distribution(options, vocabulary, random):
    """Every point of the distribution function is asked for once: the counts are exact."""
    logits = random.normal(vocabulary, scale=2.0)
    grid = (np.arange(20000) + 0.5) / 20000
    how = settings(do_sample=True, **{"top_k": 0, **options})
    drawn = draw(np.tile(logits, (len(grid), 1)), grid, how)
    share = np.bincount(drawn, minlength=vocabulary) / len(grid)
    expected = expected_distribution(logits, **options)
    np.testing.assert_allclose(share, expected, atol=1.5 / len(grid))
    assert not share[expected == 0].any()


def test_draws_at_the_ends_of_the_unit_interval():
    logits = np.array([[-np.inf, 1.0, 2.0, -np.inf]] * 2, np.float32)
    ends = np.array([0.0, np.nextafter(1.0, 0.0)])
    for options in ({"top_k": 0}, {"top_k": 4}, {"top_k": 0, "top_p": 0.999}):
        assert set(draw(logits.copy(), ends, settings(do_sample=True, **options)).tolist()) <= {
            1,
            2,
        }


def test_warpers_of_transformers(random):
    """The distributions above are those of transformers."""
    transformers = pytest.importorskip("transformers")
    import torch

    logits = random.normal(40, scale=2.0)
    options = {"top_k": 12, "top_p": 0.8, "min_p": 0.06, "temperature": 1.4}
    scores = torch.tensor(logits[None])
    for warper in (
        transformers.TemperatureLogitsWarper(1.4),
        transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.8),
        transformers.MinPLogitsWarper(0.06),
    ):
        scores = warper(None, scores)
    np.testing.assert_allclose(
        scores.softmax(-1)[0].numpy(), expected_distribution(logits, **options), atol=1e-6
    )


def test_each_source_and_each_seed_has_its_own_stream():
    how = settings(do_sample=True, max_new_tokens=12, seed=5, num_return_sequences=2)
    network, same = Table(end=-9), [np.array([5, 6])] * 6
    found = targets(network, same, how)
    assert len({tuple(ids) for hypotheses in found for ids, _ in hypotheses}) == 12
    assert targets(network, same, how) == found
    assert targets(network, same[4:], how, first_index=4) == found[4:]
    assert targets(network, same, how.replace(seed=6)) != found
    free = GenerationSettings(decoder_start_token_id=START, do_sample=True, max_new_tokens=12)
    assert targets(network, same, free) != targets(network, same, free)
    longer = targets(network, same, how.replace(max_new_tokens=15))
    for few, many in zip(found, longer, strict=True):
        assert [ids for ids, _ in few] == [ids[:12] for ids, _ in many]


# ---- scores -------------------------------------------------------------------------------------


def test_scores_of_given_targets():
    network = Table()
    pairs = [
        (source, some_sources(1, n)[0] % VOCABULARY) for n, source in enumerate(some_sources(9))
    ]
    pairs[3] = pairs[3][0], []
    for end in (True, False):
        found = list(score(network, pairs, settings(), end=end))
        for (source, target), given_score in zip(pairs, found, strict=True):
            prefix, expected = [START], []
            for token in [*np.asarray(target, np.int64).tolist(), EOS][: len(target) + end]:
                expected.append(np.log(softmax(network.row(source, prefix))[token]))
                prefix.append(token)
            np.testing.assert_allclose(given_score.log_probs, expected, atol=1e-5)
            assert given_score.log_probs.shape == (len(target) + end,)
            assert given_score.total == pytest.approx(sum(expected), abs=1e-4)


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_generated_target_scores_what_it_was_given(search):
    network, how = Table(), settings(max_new_tokens=30, **SEARCHES[search])
    sources = some_sources(10)
    best = [found[0] for found in generate(network, sources, how, with_scores=True)]
    pairs = [(source, hypothesis.ids) for source, hypothesis in zip(sources, best, strict=True)]
    for hypothesis, given_score in zip(best, score(network, pairs, how), strict=True):
        count = len(given_score.log_probs)
        assert hypothesis.score * count == pytest.approx(given_score.total, abs=1e-4)


def test_greedy_targets_have_no_score_unless_asked():
    ((found,),) = generate(Table(), [[5]], settings())
    assert np.isnan(found.score)


# ---- settings -----------------------------------------------------------------------------------


def test_every_field_of_transformers_is_known():
    """Honoured, harmless or refused by name: exactly one of them."""
    transformers = pytest.importorskip("transformers")
    theirs = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    ours = set(GenerationSettings.__dataclass_fields__)
    for one, other in itertools.combinations((ours, HARMLESS, NEUTRAL), 2):
        assert not set(one) & set(other)
    assert theirs <= ours | HARMLESS | set(NEUTRAL)


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig._get_default_generation_params()
    ours = settings()
    for name, value in theirs.items():
        if hasattr(ours, name) and name != "max_length":
            assert getattr(ours, name) == (
                () if value is None and name != "forced_bos_token_id" else value
            ), name
        elif name in NEUTRAL:
            assert value is None or value in NEUTRAL[name], name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beam_groups", 2),
        ("constraints", [1]),
        ("force_words_ids", [[1]]),
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("diversity_penalty", 0.5),
        ("guidance_scale", 1.5),
        ("sequence_bias", [[[1], 0.5]]),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("encoder_no_repeat_ngram_size", 3),
        ("encoder_repetition_penalty", 1.2),
        ("watermarking_config", {}),
        ("max_time", 3.0),
        ("stop_strings", ["x"]),
        ("prompt_lookup_num_tokens", 3),
        ("assistant_early_exit", 2),
        ("token_healing", True),
    ],
)
def test_what_is_not_done_is_refused_by_name(name, value, tmp_path):
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 0, name: value})
    )
    with pytest.raises(ValueError, match=rf"generation_config.json: {name} is .* not done here"):
        GenerationSettings.from_checkpoint(tmp_path, {})
    with pytest.raises(ValueError, match=f"{name} is not done here"):
        settings().replace(**{name: value})


@pytest.mark.parametrize("name", ["typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"])
def test_what_is_not_done_when_sampling(name):
    """Without sampling transformers does not read these either."""
    how = settings(**{name: 0.5})
    with pytest.raises(ValueError, match=f"{name} is 0.5"):
        how.replace(do_sample=True)


def test_settings_from_files(tmp_path):
    config = {"decoder_start_token_id": 7, "eos_token_id": 2, "num_beams": 6, "max_length": 99}
    config["force_bos_token_to_be_generated"], config["bos_token_id"] = True, 0
    alone = GenerationSettings.from_checkpoint(tmp_path, config, {"forced_eos_token_id": 2})
    assert (alone.num_beams, alone.max_length, alone.forced_bos_token_id) == (6, 99, 0)
    assert alone.forced_eos_token_id == (2,)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"num_beams": 4, "eos_token_id": [2, 5], "use_cache": False, "own_field": 1})
    )
    both = GenerationSettings.from_checkpoint(tmp_path, config)
    assert both.num_beams == 4, "config.json is not read beside generation_config.json"
    assert both.max_length is None
    assert (both.eos_token_id, both.decoder_start_token_id) == ((2, 5), 7), "but for special tokens"
    assert both.replace(num_beams=None, do_sample=None) == both
    assert alone.replace(max_length=5).max_length == 5
    assert both.replace(max_new_tokens=5).replace(max_length=9).max_new_tokens is None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        GenerationSettings.from_fields({"eos_token_id": 2})
    with pytest.raises(ValueError, match=r"bad\.json: num_beams must be at least 1, got 0"):
        GenerationSettings.from_fields({"bos_token_id": 0, "num_beams": 0}, where="bad.json")


def test_settings_that_transformers_writes(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.GenerationConfig(
        **{"decoder_start_token_id": 3, "eos_token_id": 2, "num_beams": 5, "early_stopping": True},
        **{"bad_words_ids": [[1]], "length_penalty": 0.8, "max_length": 142, "min_length": 56},
        **{"no_repeat_ngram_size": 3, "forced_bos_token_id": 0, "forced_eos_token_id": 2},
    ).save_pretrained(tmp_path)
    how = GenerationSettings.from_checkpoint(tmp_path, {})
    assert (how.num_beams, how.early_stopping, how.length_penalty) == (5, True, 0.8)
    assert (how.bad_words_ids, how.no_repeat_ngram_size) == (((1,),), 3)
    assert (how.max_length, how.min_length) == (142, 56)
    assert (how.forced_bos_token_id, how.forced_eos_token_id) == (0, (2,))


# ---- wrong calls --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "num_beams must be at least 1, got 0", {"num_beams": 0}),
        (TypeError, "num_beams must be an int, got 2.5", {"num_beams": 2.5}),
        (TypeError, "num_beams must be an int, got True", {"num_beams": True}),
        (ValueError, "max_new_tokens must be at least 1", {"max_new_tokens": 0}),
        (ValueError, "temperature must lie in 1e-30", {"temperature": 0, "do_sample": True}),
        (ValueError, "temperature must lie in", {"temperature": 1e-42, "do_sample": True}),
        (ValueError, "top_p must lie in 0 .. 1", {"top_p": 1.5, "do_sample": True}),
        (ValueError, "repetition_penalty must lie in", {"repetition_penalty": -1}),
        (ValueError, "repetition_penalty must lie in", {"repetition_penalty": 1e-45}),
        (ValueError, "length_penalty must lie in", {"length_penalty": float("nan")}),
        (ValueError, "num_beams must be at most 10000", {"num_beams": 10**18}),
        (ValueError, "length_penalty must lie in -32", {"length_penalty": -2000.0}),
        (ValueError, "early_stopping must be", {"early_stopping": "always"}),
        (
            ValueError,
            r"num_return_sequences \(3\) must be at most num_beams",
            {"num_return_sequences": 3},
        ),
        (ValueError, "sampling with beams", {"do_sample": True, "num_beams": 2}),
        (
            ValueError,
            "among suppress_tokens",
            {"forced_bos_token_id": 4, "suppress_tokens": [4, 5]},
        ),
        (ValueError, "at least 0, got -4", {"suppress_tokens": [-4]}),
        (ValueError, "empty sequence", {"bad_words_ids": [[]]}),
        (TypeError, "must be ids", {"bad_words_ids": ["ab"]}),
        (TypeError, "must be True or False", {"do_sample": 1}),
        (TypeError, "must be a number", {"top_p": "0.5"}),
    ],
)
def test_wrong_settings(error, message, options):
    with pytest.raises(error, match=message):
        settings(**options)


def test_early_stopping_of_old_files():
    assert settings(num_beams=2, early_stopping=1).early_stopping is True
    assert settings(num_beams=2, early_stopping=0).early_stopping is False


def test_an_unknown_setting():
    with pytest.raises(TypeError, match="there is no setting 'beam_count'"):
        settings().replace(beam_count=3)
    assert settings().replace(use_cache=True, num_beam_groups=1) == settings()


@pytest.mark.parametrize(
    ("error", "message", "sources", "options"),
    [
        (ValueError, r"source 1 holds the id 50, .* 0 \.\. 49", [[5, 2], [4, 50]], {}),
        (ValueError, "source 0 holds the id -1", [[5, -1]], {}),
        (ValueError, "source 0 is empty", [[]], {}),
        (ValueError, "source 2 has 41 tokens, the model has 40", [[1], [1], [5] * 41], {}),
        (ValueError, "one-dimensional", [[[5, 2]]], {}),
        (TypeError, "integers", [[5.0, 2.0]], {}),
        (ValueError, "at most 9 tokens; got max_new_tokens=10", [[5]], {"max_new_tokens": 10}),
        (ValueError, "batch_size must be at least 1", [[5]], {"batch_size": 0}),
        (ValueError, "prefix 0 holds the id 13", [[5]], {"prefixes": [[13]]}),
        (
            ValueError,
            "at most 6 tokens behind a prefix of 3; got max_new_tokens=7",
            [[5]],
            {"prefixes": [[4] * 3], "max_new_tokens": 7},
        ),
        (ValueError, "prefix of 9 tokens .* at most 10", [[5]], {"prefixes": [[4] * 9]}),
        (
            ValueError,
            "prefix of 4 tokens .* at most 5",
            [[5]],
            {"prefixes": [[4] * 4], "max_length": 5},
        ),
        (ValueError, "more sources than prefixes", [[5], [6]], {"prefixes": [[4]]}),
        (
            ValueError,
            "eos_token_id holds 13, outside the target vocabulary",
            [[5]],
            {"eos_token_id": 13},
        ),
        (ValueError, "decoder_start_token_id holds 13", [[5]], {"decoder_start_token_id": 13}),
        (ValueError, "bad_words_ids holds 20", [[5]], {"bad_words_ids": [[4, 20]]}),
    ],
)
def test_wrong_calls_of_generate(error, message, sources, options):
    calls = {name: options[name] for name in ("batch_size", "prefixes") if name in options}
    how = settings().replace(**{k: v for k, v in options.items() if k not in calls})
    with pytest.raises(error, match=message):
        list(generate(Table(positions=9), sources, how, **calls))


def test_wrong_calls_of_score():
    network, how = Table(positions=9), settings()
    with pytest.raises(ValueError, match="target 1 holds the id 13"):
        list(score(network, [([5], [4]), ([5], [13])], how))
    with pytest.raises(ValueError, match="target 0 has 9 tokens, the model has 9 positions"):
        list(score(network, [([5], [4] * 9)], how))
    with pytest.raises(ValueError, match="source 0 is empty"):
        list(score(network, [([], [4])], how))
    with pytest.raises(ValueError, match="no eos_token_id"):
        score(network, [], GenerationSettings(decoder_start_token_id=0))


# ---- odd logits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_end_somehow(beams, value):
    class Odd(Table):
        def row(self, source, prefix):
            row = super().row(source, prefix)
            row[3:7] = value
            return np.full_like(row, value) if len(prefix) == 4 else row

    for how in (
        settings(num_beams=beams, max_new_tokens=6),
        settings(num_beams=beams, max_new_tokens=6, suppress_tokens=[8]),
        settings(num_beams=beams, max_new_tokens=6, repetition_penalty=1.2),
    ):
        found = list(generate(Odd(), some_sources(5), how))
        assert len(found) == 5
        for hypotheses in found:
            assert all(0 <= token < VOCABULARY for h in hypotheses for token in h.ids)


@pytest.mark.parametrize("rule", [{}, {"repetition_penalty": 1.2}, {"suppress_tokens": [8]}])
def test_asking_for_scores_changes_no_target(rule):
    """Not even where a logit is NaN, which NumPy takes for the greatest and top_k for the least."""

    class Odd(Table):
        def row(self, source, prefix):
            row = super().row(source, prefix)
            row[len(prefix) + 3] = np.nan
            return row

    how = settings(max_new_tokens=6, **rule)
    plain, scored = (
        [h[0].ids.tolist() for h in generate(Odd(), some_sources(5), how, with_scores=wanted)]
        for wanted in (False, True)
    )
    assert plain == scored


def test_a_forced_token_that_another_rule_takes_away_is_not_free():
    how = settings(max_new_tokens=1, forced_eos_token_id=EOS, begin_suppress_tokens=[EOS])
    ((found,),) = generate(Table(), [[5]], how, with_scores=True)
    assert found.score < 0, "what is chosen instead is no forced token"


@pytest.mark.parametrize("penalty", [-32.0, 32.0])
def test_the_steepest_length_penalties(penalty):
    how = settings(num_beams=2, max_new_tokens=20, length_penalty=penalty)
    for (found,) in generate(Table(), some_sources(4), how):
        assert len(found.ids)
        assert -np.inf < found.score < 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_came_before_a_wrong_source_is_given(batch_size):
    how = settings(max_new_tokens=5)
    sources = some_sources(7)
    given = generate(Table(), [*sources, [99], [5]], how, batch_size=batch_size)
    expected = [h[0].ids.tolist() for h in generate(Table(), sources, how)]
    assert [next(given)[0].ids.tolist() for _ in sources] == expected
    with pytest.raises(ValueError, match="source 7 holds the id 99"):
        next(given)


def test_settings_of_a_checkpoint_need_its_directory_and_config(tmp_path):
    config = {"decoder_start_token_id": START}
    assert GenerationSettings.from_checkpoint(str(tmp_path), config).decoder_start_token_id == START
    with pytest.raises(FileNotFoundError, match="nope is not a directory"):
        GenerationSettings.from_checkpoint(tmp_path / "nope", config)
    with pytest.raises(TypeError, match="config must be what"):
        GenerationSettings.from_checkpoint(tmp_path, object())


def test_fewer_targets_than_beams():
    """What transformers fills with repetitions is left out."""
    how = settings(num_beams=4, num_return_sequences=4, max_new_tokens=1)
    only = how.replace(suppress_tokens=[t for t in range(VOCABULARY) if t not in (5, 6)])
    (found,) = generate(Table(), [[5]], only)
    assert sorted(h.ids.tolist() for h in found) == [[5], [6]]
    none = how.replace(suppress_tokens=list(range(VOCABULARY)))
    (found,) = generate(Table(), [[5]], none)
    assert [h.ids.tolist() for h in found] == [[]]
    assert found[0].score == -np.inf


# ---- rules alone --------------------------------------------------------------------------------


def test_rules_look_at_their_own_row_alone(random):
    """Rows of different lengths together give what they give alone, and junk past a length is not
    read."""
    how = settings(
        **{"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_length": 5},
        **{"bad_words_ids": [[5], [6, 7], [8, 9, 10]], "forced_bos_token_id": 4},
        **{"forced_eos_token_id": EOS, "suppress_tokens": [11], "begin_suppress_tokens": [6]},
    )
    rules = rules_for(how, VOCABULARY)
    lengths = np.arange(1, 9)
    ids = random.rng.integers(4, 9, (8, 8))
    scores = random.normal(8, VOCABULARY)

    def applied(rows, junk):
        held = ids[rows].copy()
        held[np.arange(8) >= lengths[rows, None]] = junk
        changed = scores[rows].copy()
        one = np.ones(len(rows), np.int64)
        rules(changed, Targets(held, lengths[rows], one, 8 * one))
        return changed

    together = applied(np.arange(8), 5)
    assert (together != scores).any(axis=1).all()
    for row in range(8):
        np.testing.assert_array_equal(applied(np.array([row]), 7)[0], together[row])


def test_no_rules_are_false():
    assert not Rules([])
    assert not rules_for(settings(), VOCABULARY)
    assert rules_for(settings(bad_words_ids=[[PAD]]), VOCABULARY).only_bans
    assert not rules_for(settings(bad_words_ids=[[EOS]]), VOCABULARY), "the end is no bad word"


def test_bans_are_taken_out_as_if_by_themselves(random):
    """All of them at once, and the weight of what went."""
    how = settings(
        **{"no_repeat_ngram_size": 2, "min_length": 5, "bad_words_ids": [[5], [6, 7], [8, 9, 10]]},
        **{"suppress_tokens": [5, 11], "begin_suppress_tokens": [6, 5]},
    )
    rules = rules_for(how, VOCABULARY)
    one, lengths = np.ones(8, np.int64), np.arange(1, 9)
    held = Targets(random.rng.integers(4, 9, (8, 8)), lengths, one, 8 * one)
    scores = random.normal(8, VOCABULARY)
    expected, taken = scores.copy(), scores.copy()
    rules(expected, held)
    gone = rules.take_out(taken, held)
    np.testing.assert_array_equal(taken, expected)
    weight = np.where(np.isinf(expected), np.exp(scores.astype(np.float64)), 0).sum(axis=1)
    np.testing.assert_allclose(gone, np.log(weight))


@pytest.mark.parametrize("module", ["scheduler", "scoring", "settings"])
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"fastmha.decoding.{module}"))
    assert found.attempted
    assert not found.failed
