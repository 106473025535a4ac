"""Whole generations against ``transformers.generate``, token for token, for every family.

Weights are drawn sharp, so that next tokens hardly ever tie. Where targets differ all the same, the
two must score the same to 1e-5 in float64, and there may be few of them.
"""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from fastmha.decoding import GenerationSettings, generate, score
from seq2seq_checkpoints import EOS, VOCAB, load, reference_logits, write_checkpoint

SOURCES, LONGEST = 200, 16
CASES = {
    "bart": ("bart", {}),
    "m2m_100": ("m2m_100", {}),
    "marian": ("marian", {"scale_embedding": True, "activation_function": "swish"}),
    "marian, two vocabularies": (
        "marian",
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 131},
    ),
    "mbart": ("mbart", {"scale_embedding": True}),
    "mt5": ("mt5", {}),
    "t5": ("t5", {}),
    "t5, gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
# A score of some 20 log-probabilities of logits up to 50: their roundings stay below this.
SCORES = 1e-4
TIE = 1e-5


class Case:
    """transformers' model and ours of one checkpoint, and the sources."""

    def __init__(self, directory, model_type, config):
        def ends(model):
            # the end is often the most or the least probable token: targets end at all lengths
            model.get_output_embeddings().weight[EOS] *= 3

        self.model = write_checkpoint(directory, model_type, change=ends, **config)
        self.network = load(directory)
        rng = np.random.default_rng(0)
        self.sources = [
            np.append(rng.integers(3, VOCAB, rng.integers(0, 12)), EOS) for _ in range(SOURCES)
        ]
        self.model.generation_config.forced_eos_token_id = None
        self.settings = GenerationSettings.from_fields(self.model.generation_config.to_dict())
        self.start = self.settings.decoder_start_token_id

    @functools.cached_property
    def double(self):
        return copy.deepcopy(self.model).double()

    def theirs(self, beams):
        """Ids and score of each source's target."""
        longest = max(map(len, self.sources))
        ids = np.full((SOURCES, longest), self.settings.pad_token_id)
        for row, source in zip(ids, self.sources, strict=True):
            row[: len(source)] = source
        mask = np.arange(longest) < np.array([[len(source)] for source in self.sources])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self.model.generate(
                torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask.astype(np.int64)),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=LONGEST,
                return_dict_in_generate=True,
                output_scores=True,
            )
        targets = [_until_end(row[1:]) for row in out.sequences.tolist()]
        if beams > 1:
            return targets, out.sequences_scores.numpy()
        log_probs = torch.stack(out.scores, 1).double().log_softmax(-1).numpy()
        scores = [
            rows[np.arange(len(target)), target].mean()
            for rows, target in zip(log_probs, targets, strict=True)
        ]
        return targets, np.array(scores)

    def ours(self, beams, **options):
        settings = self.settings.replace(num_beams=beams, max_new_tokens=LONGEST)
        options.setdefault("batch_size", SOURCES)
        found = generate(self.network, self.sources, settings, with_scores=True, **options)
        return [hypothesis for (hypothesis,) in found]

    def exact(self, source, target):
        """The mean log-probability of a target with its end, in float64."""
        read = np.array([self.start, *target[:-1]])
        logits = reference_logits(self.double, source, read)
        logits -= logits.max(-1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return log_probs[np.arange(len(target)), target].mean()


def _until_end(ids):
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    model_type, config = CASES[request.param]
    return Case(tmp_path_factory.mktemp("checkpoint"), model_type, config)


@pytest.mark.parametrize("beams", [1, 4])
def test_token_for_token(case, beams, record_property):
    targets, scores = case.theirs(beams)
    ties = 0
    for source, target, score_, ours in zip(
        case.sources, targets, scores, case.ours(beams), strict=True
    ):
        ended = target[-1] == EOS
        assert ours.score == pytest.approx(score_, abs=SCORES)
        if ours.ids.tolist() == target[: len(target) - ended]:
            continue
        own = [*ours.ids.tolist(), *([EOS] if len(ours.ids) < LONGEST else [])]
        exact = [case.exact(source, np.array(ids)) for ids in (own, target)]
        assert abs(exact[0] - exact[1]) < TIE, (own, target)
        ties += 1
    record_property("ties", ties)
    assert ties <= SOURCES // 100
    lengths = {len(target) for target in targets}
    assert len(lengths) > 5, lengths  # some end at once, some late, some not at all


@pytest.mark.parametrize("beams", [1, 4])
def test_batched_as_one_by_one(case, beams):
    batched = case.ours(beams)
    for n, source in enumerate(case.sources[:25]):
        settings = case.settings.replace(num_beams=beams, max_new_tokens=LONGEST)
        ((alone,),) = generate(case.network, [source], settings, with_scores=True)
        assert alone.ids.tolist() == batched[n].ids.tolist()
        assert alone.score == batched[n].score


def test_scores_of_what_was_generated(case):
    """Scoring the greedy targets gives the scores that they were generated with."""
    hypotheses = case.ours(1)
    ended = [
        (source, hypothesis)
        for source, hypothesis in zip(case.sources, hypotheses, strict=True)
        if len(hypothesis.ids) < LONGEST - 1
    ]
    pairs = [(source, hypothesis.ids) for source, hypothesis in ended]
    for (_, hypothesis), scored in zip(
        ended, score(case.network, pairs, case.settings), strict=True
    ):
        assert scored.log_probs.mean() == pytest.approx(hypothesis.score, abs=SCORES)
