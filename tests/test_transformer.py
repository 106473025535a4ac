"""The whole model: against torch, step by step against at once, greedy and beam search against
plain searches."""

import itertools
import math

import fastmha as fm
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from fastmha.decoding import GenerationSettings, generate
from fastmha.translation_checkpoints import TranslationConfig
from fastmha.translation_model import TranslationModel
from torch import nn

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
SIZES = {
    "src_vocab_size": 23,
    "tgt_vocab_size": 19,
    "d_model": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "d_ff": 48,
    "max_positions": 16,
}
SOURCES = [[5, 6, 7, 2], [9, 2], [4, 4, 12, 22, 3, 8, 2], [11, 13, 2]]
TARGETS = [[1, 5, 6], [1, 7, 18, 4, 4], [1], [1, 3]]
BOS, EOS = 1, 2


class TorchTransformer(nn.Module):
    """The same model in torch, written from the names of its weights."""

    def __init__(self, *, norm_first=False, final_norm=True, positions="sinusoidal", scale=True):
        super().__init__()
        d_model, heads, d_ff = SIZES["d_model"], SIZES["num_heads"], SIZES["d_ff"]
        options = {"batch_first": True, "norm_first": norm_first}
        self.src_embedding = nn.Embedding(SIZES["src_vocab_size"], d_model)
        self.tgt_embedding = nn.Embedding(SIZES["tgt_vocab_size"], d_model)
        if positions == "learned":
            self.src_position = nn.Embedding(SIZES["max_positions"], d_model)
            self.tgt_position = nn.Embedding(SIZES["max_positions"], d_model)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d_model, heads, d_ff, **options),
            SIZES["num_encoder_layers"],
            nn.LayerNorm(d_model) if final_norm else None,
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(d_model, heads, d_ff, **options),
            SIZES["num_decoder_layers"],
            nn.LayerNorm(d_model) if final_norm else None,
        )
        self.output = nn.Linear(d_model, SIZES["tgt_vocab_size"])
        self.scale = math.sqrt(d_model) if scale else 1.0

    def embed(self, ids, side):
        x = getattr(self, f"{side}_embedding")(ids) * self.scale
        count, d_model = x.shape[1:]
        if hasattr(self, f"{side}_position"):
            return x + getattr(self, f"{side}_position").weight[:count]
        place = torch.arange(count, dtype=torch.float64)[:, None]
        angle = place / 10000 ** (torch.arange(0, d_model, 2) / d_model)
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
        return x + table.float()

    def forward(self, src, tgt):
        mask = torch.triu(torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool), 1)
        memory = self.encoder(self.embed(src, "src"))
        return self.output(self.decoder(self.embed(tgt, "tgt"), memory, tgt_mask=mask))


VARIANTS = {
    "post-norm": {},
    "pre-norm": {"norm_first": True},
    "no final norm": {"final_norm": False},
    "learned": {"positions": "learned"},
    "unscaled": {"scale": False},
}


def pair(**variant):
    torch.manual_seed(0)
    theirs = TorchTransformer(**variant).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = dict(variant)
    if "scale" in ours:
        ours["scale_embedding"] = ours.pop("scale")
    model = fm.Transformer(**SIZES, **ours)
    model.load_state_dict(theirs.state_dict())
    return theirs, model


def sharp(seed=0, **changes):
    """A model that looks at its source, and whose choices are so far apart that rounding cannot
    turn them."""
    model = fm.Transformer(**(SIZES | changes), scale_embedding=False, norm_first=True, seed=seed)
    state = model.state_dict()
    for name in ("src_embedding", "tgt_embedding"):
        state[f"{name}.weight"] *= 0.5
    for name in state:
        if name.endswith(("out_proj.weight", "linear2.weight", "in_proj_weight")):
            state[name] *= 2.0
    state["output.weight"] *= 6.0
    state["output.weight"][EOS] *= 2.5  # likely here, unlikely there: targets of many lengths
    model.load_state_dict(state)
    return model


def translation_model(model, **changes):
    config = TranslationConfig(**(SIZES | changes))
    return TranslationModel(config, model, None, config.generation)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_matches_torch(variant):
    theirs, ours = pair(**variant)
    logits = ours(SOURCES, TARGETS, return_logits=True)
    probabilities = ours(SOURCES, TARGETS)
    for n, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        with torch.no_grad():
            expected = theirs(torch.tensor([source]), torch.tensor([target]))[0]
        np.testing.assert_allclose(logits[n], expected.numpy(), **CLOSE)
        np.testing.assert_allclose(probabilities[n], expected.softmax(-1).numpy(), **CLOSE)


def test_names_of_the_weights_are_torchs():
    for variant in VARIANTS.values():
        theirs, ours = pair(**variant)
        shapes = {name: tuple(array.shape) for name, array in theirs.state_dict().items()}
        assert ours.state_shapes() == shapes


def padded(sequences, fill=0):
    width = max(map(len, sequences))
    array = np.full((len(sequences), width), fill)
    for n, sequence in enumerate(sequences):
        array[n, : len(sequence)] = sequence
    return array, [len(sequence) for sequence in sequences]


@pytest.mark.parametrize("fill", [0, -1, 10**9])
def test_padded_ids_are_lists_bit_for_bit(fill):
    """Ids at and past a length are never looked at, so they may be anything."""
    _, model = pair()
    src, src_lengths = padded(SOURCES, fill)
    tgt, tgt_lengths = padded(TARGETS, fill)
    whole = model(src, tgt, src_lengths=src_lengths, tgt_lengths=tgt_lengths)
    assert whole.shape == (4, 5, 19)
    for n, rows in enumerate(model(SOURCES, TARGETS)):
        assert_same_bits(whole[n, : len(rows)], rows)
        assert not whole[n, len(rows) :].any()


def test_learned_and_sinusoidal_positions_differ():
    _, sinusoidal = pair()
    _, learned = pair(positions="learned")
    assert sinusoidal(SOURCES, TARGETS)[0].shape == learned(SOURCES, TARGETS)[0].shape
    assert "src_position.weight" in learned.state_shapes()
    assert "src_position.weight" not in sinusoidal.state_shapes()


# ---- generation ---------------------------------------------------------------------------------


def next_log_probabilities(model, source, prefix):
    """From the full prefix, without any cache, in float64."""
    logits = model([source], [prefix], return_logits=True)[0][-1].astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def plain_greedy(model, source, limit):
    prefix, score = [BOS], 0.0
    while len(prefix) <= limit:
        row = next_log_probabilities(model, source, prefix)
        prefix.append(int(row.argmax()))
        score += row.max()
        if prefix[-1] == EOS:
            return prefix[1:-1], score / (len(prefix) - 1)
    return prefix[1:], score / (len(prefix) - 1)


def plain_beam(model, source, size, limit):
    """Beam search as a list of (score, prefix), one sentence, no cache, no arrays."""
    running, finished = [(0.0, [BOS])], []
    for length in range(1, limit + 1):
        candidates = []
        for score, prefix in running:
            row = next_log_probabilities(model, source, prefix)
            candidates += [(score + row[token], [*prefix, token]) for token in range(len(row))]
        candidates.sort(key=lambda candidate: -candidate[0])
        candidates = candidates[: 2 * size]
        for score, prefix in candidates[:size]:
            if prefix[-1] == EOS or length == limit:
                finished.append((score / length, prefix[1:]))
        finished = sorted(finished, key=lambda entry: -entry[0])[:size]
        running = [c for c in candidates if c[1][-1] != EOS][:size]
        if len(finished) == size and running[0][0] / length <= finished[-1][0]:
            break
    score, ids = finished[0]
    return [i for i in ids if i != EOS], score


@pytest.mark.parametrize("seed", [0, 1, 4, 7])
def test_greedy_is_the_plain_search_without_a_cache(seed):
    model = sharp(seed)
    found, scores = translation_model(model).generate(
        SOURCES, max_new_tokens=12, return_scores=True
    )
    lengths = set()
    for source, ids, score in zip(SOURCES, found, scores, strict=True):
        expected, expected_score = plain_greedy(model, source, 12)
        assert ids.tolist() == expected
        assert ids.dtype == np.int64
        assert score == pytest.approx(expected_score, abs=1e-4)
        lengths.add(len(ids))
    assert len(lengths) > 1, "the sentences should end at different steps"


@pytest.mark.parametrize("seed", [0, 1, 4, 7])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_beam_is_the_plain_search_without_a_cache(seed, size):
    model = sharp(seed)
    found, scores = translation_model(model).generate(
        SOURCES, beam_size=size, max_new_tokens=9, return_scores=True
    )
    for source, ids, score in zip(SOURCES, found, scores, strict=True):
        expected, expected_score = plain_beam(model, source, size, 9)
        assert ids.tolist() == expected
        assert score == pytest.approx(expected_score, abs=1e-4)


def test_a_beam_wide_enough_finds_the_best_of_all_targets():
    """With as many beams as there are prefixes nothing is pruned: the best of all short targets."""
    model = sharp(3, tgt_vocab_size=5)
    limit = 3
    for source in SOURCES:
        best = (-np.inf, None)
        for length in range(limit + 1):
            for body in itertools.product((0, 1, 3, 4), repeat=length):
                ids = [*body, EOS] if length < limit else list(body)
                score = sum(
                    next_log_probabilities(model, source, [BOS, *ids[:i]])[token]
                    for i, token in enumerate(ids)
                )
                best = max(best, (score / len(ids), list(body)), key=lambda entry: entry[0])
        ((found,),) = generate(
            model,
            [source],
            GenerationSettings(
                decoder_start_token_id=BOS, eos_token_id=EOS, num_beams=80, max_new_tokens=limit
            ),
        )
        assert found.ids.tolist() == best[1]
        assert found.score == pytest.approx(best[0], abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_target_does_not_depend_on_the_batch(beam_size, num_threads, random):
    model = translation_model(sharp(4))
    sources = [
        [*random.rng.integers(3, 23, random.rng.integers(1, 15)).tolist(), EOS] for _ in range(24)
    ]
    together, scores = model.generate(
        sources, beam_size=beam_size, max_new_tokens=10, return_scores=True
    )
    assert len({len(ids) for ids in together}) > 2
    for batch_size, threads in ((1, 1), (5, 2)):
        num_threads(threads)
        again, again_scores = model.generate(
            sources,
            beam_size=beam_size,
            max_new_tokens=10,
            return_scores=True,
            batch_size=batch_size,
        )
        assert [ids.tolist() for ids in again] == [ids.tolist() for ids in together]
        assert again_scores == scores, "bit for bit"
    backwards = model.generate(sources[::-1], beam_size=beam_size, max_new_tokens=10)
    assert [ids.tolist() for ids in backwards[::-1]] == [ids.tolist() for ids in together]


def test_forward_is_the_encoder_run_ragged():
    theirs, ours = pair()
    states = translation_model(ours).forward(SOURCES)
    for source, state in zip(SOURCES, states, strict=True):
        with torch.no_grad():
            expected = theirs.encoder(theirs.embed(torch.tensor([source]), "src"))[0]
        np.testing.assert_allclose(state, expected.numpy(), **CLOSE)
    assert translation_model(ours).forward([]) == []


def test_generate_nothing():
    model = translation_model(sharp())
    assert model.generate([]) == []
    assert model.generate([], beam_size=2, return_scores=True) == ([], [])


# ---- wrong calls --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "sources", "options"),
    [
        (ValueError, r"source 1 holds the id 23, .* 0 \.\. 22", [[5, 2], [4, 23]], {}),
        (ValueError, "source 0 holds the id -1", [[5, -1, 2]], {}),
        (ValueError, "source 0 is empty", [[]], {}),
        (ValueError, "source 0 has 17 tokens, the model has 16", [[5] * 17], {}),
        (ValueError, "one-dimensional", [[[5, 2]]], {}),
        (TypeError, "integers", [[5.0, 2.0]], {}),
        (ValueError, "at most 16 tokens", [[5, 2]], {"max_new_tokens": 17}),
        (ValueError, "max_new_tokens must be at least 1", [[5, 2]], {"max_new_tokens": 0}),
        (ValueError, "beam_size must be at least 1", [[5, 2]], {"beam_size": 0}),
        (TypeError, "beam_size must be an int", [[5, 2]], {"beam_size": 2.0}),
        (TypeError, "num_beams is called beam_size", [[5, 2]], {"num_beams": 2}),
        (TypeError, "there is no setting 'beams'", [[5, 2]], {"beams": 2}),
        (ValueError, "batch_size must be at least 1", [[5, 2]], {"batch_size": 0}),
    ],
)
def test_wrong_calls_of_generate(error, message, sources, options):
    with pytest.raises(error, match=message):
        translation_model(sharp()).generate(sources, **options)


def test_wrong_calls():
    _, model = pair()
    with pytest.raises(ValueError, match=r"tgt\[2\] holds the id 19"):
        model([[2]] * 3, [[1], [1], [1, 19]])
    with pytest.raises(ValueError, match="src holds 2 sequences, tgt 1"):
        model([[2], [2]], [[1]])
    with pytest.raises(ValueError, match="list of 1-D arrays"):
        model(np.array([2]), [[1]])
    with pytest.raises(ValueError, match=r"src_lengths must lie in 0 \.\. 1"):
        model(np.array([[2]]), [[1]], src_lengths=[2])
    with pytest.raises(ValueError, match="src_lengths is for an array"):
        model([[2]], [[1]], src_lengths=[1])
    with pytest.raises(ValueError, match=r"positions must be .* got 'rotary'"):
        fm.Transformer(5, 5, positions="rotary")
    with pytest.raises(ValueError, match=r"eos_token_id must lie in 0 \.\. 1"):
        fm.Transformer(5, 2, 8, 2, 1, 1, 8)
    with pytest.raises(ValueError, match=r"outside|must lie"):
        fm.Embedding(4, 8)([4])
    with pytest.raises(TypeError, match="integers"):
        fm.Embedding(4, 8)([0.5])
