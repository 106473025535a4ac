"""A C++ project outside of the tree, built against the installed package: Python's results bit for
bit.
"""

import os
import subprocess
from pathlib import Path

import fastmha as fm
import numpy as np
import pytest
from conftest import Random, assert_same_bits

PROJECT = Path(__file__).parent / "cpp" / "consumer"


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    """The built program, as a function of its arguments that returns what it prints."""
    build = tmp_path_factory.mktemp("consumer")
    configure = [
        "cmake",
        "-S",
        PROJECT,
        "-B",
        build,
        # The wheel's own, or what `cmake --install` made elsewhere.
        f"-Dfastmha_DIR={os.environ.get('FASTMHA_CMAKE_DIR') or fm.get_cmake_dir()}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    for command in (configure, ["cmake", "--build", build]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    def run(*arguments, threads=2):
        environment = {**os.environ, "FASTMHA_ISA": fm.isa(), "FASTMHA_NUM_THREADS": str(threads)}
        result = subprocess.run(
            [build / "consumer", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[-1] == fm.isa()
        return lines[:-1]

    return run


def result_of(folder, name, shape):
    return np.fromfile(folder / name, np.float32).reshape(shape)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 5), (1, 700), (33, 130)])
def test_attention(consumer, tmp_path, q_len, kv_len, threads):
    batch, heads, kv_heads, head_dim, value_dim = 2, 4, 2, 24, 20
    query, key, value = Random(0).attention(
        batch, heads, q_len, kv_len, head_dim, kv_heads=kv_heads, value_dim=value_dim
    )
    query = np.ascontiguousarray(query.transpose(0, 2, 1, 3))  # (B, L, H, E)
    slopes, lengths = (
        np.array([0.5, 0.25, 0.1, 0.0], np.float32),
        np.array([kv_len, kv_len - 1], np.int64),
    )
    arrays = {
        "query": query,
        "key": key,
        "value": value,
        "alibi_slopes": slopes,
        "key_lengths": lengths,
    }
    for name, array in arrays.items():
        array.tofile(tmp_path / name)
    consumer(
        "attention",
        tmp_path,
        batch,
        heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        value_dim,
        threads=threads,
    )

    shape = (batch, heads, q_len, value_dim)
    inputs = query.transpose(0, 2, 1, 3), key, value
    assert_same_bits(result_of(tmp_path, "plain", shape), fm.scaled_dot_product_attention(*inputs))
    out, lse = fm.scaled_dot_product_attention(
        *inputs, is_causal=True, query_offset=kv_len - q_len, window=(40, None), softcap=5.0,
        scale=0.25,
        key_lengths=lengths, alibi_slopes=slopes, return_lse=True,
    )  # fmt: skip
    assert_same_bits(result_of(tmp_path, "with_options", shape), out)
    assert_same_bits(result_of(tmp_path, "lse", shape[:3]), lse)


@pytest.mark.parametrize(
    ("rows", "in_features", "out_features"), [(1, 700, 300), (5, 64, 48), (200, 513, 129)]
)
def test_linear(consumer, tmp_path, rows, in_features, out_features):
    random = Random(0)
    arrays = {
        "x": random.normal(rows, in_features),
        "weight": random.normal(out_features, in_features),
        "bias": random.normal(out_features),
        "residual": random.normal(rows, out_features),
    }
    for name, array in arrays.items():
        array.tofile(tmp_path / name)
    consumer("linear", tmp_path, rows, in_features, out_features)
    linear = fm.Linear(arrays["weight"], arrays["bias"], activation="gelu")
    expected = linear(arrays["x"], residual=arrays["residual"])
    assert_same_bits(result_of(tmp_path, "y", expected.shape), expected)


def test_errors_are_the_same_as_in_python(consumer):
    q, k, same = (
        np.zeros(shape, np.float32) for shape in ((1, 3, 5, 8), (1, 2, 7, 8), (1, 3, 7, 8))
    )
    weight, bias = np.zeros((6, 8), np.float32), np.zeros(5, np.float32)
    calls = [
        lambda: fm.scaled_dot_product_attention(q, k, k),
        lambda: fm.scaled_dot_product_attention(q, same, same, key_lengths=[8]),
        lambda: fm.scaled_dot_product_attention(q, same, same, softcap=-1.0),
        lambda: fm.Linear(weight, bias),
        lambda: fm.set_num_threads(0),
    ]
    messages = consumer("errors")
    assert len(messages) == len(calls)
    for message, call in zip(messages, calls, strict=True):
        with pytest.raises(ValueError, match=":") as caught:
            call()
        assert message == str(caught.value)
