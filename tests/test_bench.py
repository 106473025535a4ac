"""The benchmark harness: it refuses to time wrong answers; its command leaves JSON."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)  # bench runs from the checkout, it is not installed
    from bench import harness

    return harness


def case_of(harness, **rivals):
    calls = {name: (lambda answer=answer: answer) for name, answer in rivals.items()}
    return harness.Case(calls, np.zeros(3), tolerance=1e-6)


def workload_of(harness):
    return harness.Workload("linear", "a workload", 1.0, 1.0, lambda: None)


def test_wrong_answers_are_not_timed(harness):
    good = np.full(3, 5e-7, np.float32)
    errors = harness.check_agreement(workload_of(harness), case_of(harness, fastmha=good))
    assert errors == {"fastmha": pytest.approx(5e-7)}
    for wrong in (np.full(3, 1e-3), np.array([0, np.nan, 0]), np.zeros(4)):
        case = case_of(harness, fastmha=good, numpy=wrong)
        with pytest.raises(AssertionError, match="a workload: numpy"):
            harness.check_agreement(workload_of(harness), case)


def test_timing_of_rivals(harness):
    case = case_of(harness, fastmha=np.zeros(3), numpy=np.zeros(3))
    timings = harness.measure(case, harness.Budget(1e-3, 1e-2, 1e-4, 5, 1e-4))
    assert list(timings) == ["fastmha", "numpy"]
    for timing in timings.values():
        ordered = [timing.minimum, timing.lower_quartile, timing.median, timing.upper_quartile]
        assert ordered == sorted(ordered)
        assert timing.minimum > 0
        assert timing.rounds >= 5


def test_command(tmp_path):
    """One small workload from the command line to the JSON, limits included."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "attention 1 x 8 x 5 x 64"]
    result = subprocess.run(
        [*command, "--threads", "1", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "fastmha" in result.stdout
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["machine"]["threads"] == 1
    assert document["machine"]["fastmha"]["isa"]
    (record,) = document["results"]
    assert record["peak_gflops"] > 0
    assert record["peak_gbps"] > 0
    assert set(record["rivals"]) == {"fastmha", "torch", "numpy"}
    assert all(rival["gflops"] > 0 for rival in record["rivals"].values())
