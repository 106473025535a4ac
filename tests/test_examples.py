"""The short examples run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name):
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", ["attention_numpy.py", "block_from_torch.py"])
def test_examples_agree_with_what_they_compare_to(name):
    out = run(name)
    differences = [float(number) for number in re.findall(r"difference to .* (\S+e-?\d+)", out)]
    assert differences, out
    assert max(differences) < 1e-5, out


def test_attention_example_never_reads_padding():
    assert "0 NaN in the result" in run("attention_numpy.py")


def test_translate_example():
    out = run("translate.py")
    assert "我想吃汉堡  ->  I want to eat a hamburger\n" in out
    assert "looks at" in out
