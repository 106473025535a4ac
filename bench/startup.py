"""From the start of a process to its first embedding: how long, and how much memory.

`first_embedding.py` is what runs; here the rivals' forms of the checkpoint are made, and the
processes take turns. Files come from the page cache: a round that nobody times reads them all.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import problems
from bench.first_embedding import TEXT
from bench.rivals import OURS
from bench.workloads import sentences

PROGRAM = Path(__file__).with_name("first_embedding.py")
ROUNDS = 7  # an odd number: the median is one of them
ERROR = 1e-5  # an embedding has numbers near 0.05
FLOOR = "numpy"  # without a model


def measure(rivals: Iterable[str], quick: bool) -> list[dict[str, Any]]:
    """One record for each of `rivals`; nothing without the checkpoint."""
    checkpoint = sentences.checkpoint()
    if checkpoint is None:
        print(f"startup: {sentences.ABSENT}", file=sys.stderr)
        return []
    print("first embeddings of new processes ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(rivals, checkpoint, Path(folder))
        expected = _expected(checkpoint)
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in prepared}
        for number in range((2 if quick else ROUNDS) + 1):
            for who in list(found):
                one = _process(who, checkpoint, prepared[who])
                _check(who, one, expected)
                if number > 0:
                    found[who].append(one)
    return [
        {
            "rival": who,
            "seconds": median(one["seconds"] for one in each),
            "bytes": median(one["bytes"] for one in each),
            "rounds": len(each),
        }
        for who, each in found.items()
    ]


def _process(who: str, checkpoint: Path, prepared: str) -> dict[str, Any]:
    start = time.monotonic()
    # -P: modules of this folder must not stand for those of the same name
    command = [sys.executable, "-P", str(PROGRAM), who, str(checkpoint), prepared]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return one | {"seconds": one["at"] - start}


def _expected(checkpoint: Path) -> problems.Array:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids.no_padding()
    problem = problems.Sentences(checkpoint, (np.array(ids.encode(TEXT).ids),))
    answer: problems.Array = problem.expected()[0]
    return answer


def _check(who: str, one: dict[str, Any], expected: problems.Array) -> None:
    if one["embedding"] is None:
        return
    error = float(np.abs(np.array(one["embedding"]) - expected).max())
    if not error <= ERROR:
        raise AssertionError(f"startup: {who} is off by {error:.2g}, allowed {ERROR:g}")


# ---- the rivals' forms of the checkpoint ---------------------------------------------------------


def _onnxruntime(checkpoint: Path, folder: Path) -> Path:
    from bench.rivals.onnxruntime import sentence_model

    file = folder / "model.onnx"
    problem = problems.Sentences(checkpoint, ())
    file.write_bytes(sentence_model(problem, fused=True, padded=False))
    return file


def _openvino(checkpoint: Path, folder: Path) -> Path:
    import openvino

    from bench.rivals.openvino import sentence_model

    file = folder / "model.xml"
    openvino.save_model(sentence_model(checkpoint, padded=False), file, compress_to_fp16=False)
    return file


def _ctranslate2(checkpoint: Path, folder: Path) -> Path:
    from bench.rivals.ctranslate2 import convert

    convert(checkpoint, folder / "ctranslate2")
    return folder / "ctranslate2"


def _as_it_is(checkpoint: Path, folder: Path) -> Path:
    return checkpoint


def _with_transformers(checkpoint: Path, folder: Path) -> Path:
    import transformers  # noqa: F401

    return checkpoint


PREPARED: dict[str, Callable[[Path, Path], Path]] = {
    OURS: _as_it_is,
    "torch": _with_transformers,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "ctranslate2": _ctranslate2,
    FLOOR: _as_it_is,
}


def _prepared(rivals: Iterable[str], checkpoint: Path, folder: Path) -> dict[str, str]:
    """Who takes part, with what they load; who cannot is named."""
    found = {}
    for who in PREPARED:
        if who not in rivals:
            continue
        try:
            found[who] = str(PREPARED[who](checkpoint, folder))
        except (ImportError, NotImplementedError) as error:
            print(f"startup: without {who}: {error}", file=sys.stderr)
    return found
