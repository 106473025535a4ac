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


def save(folder, **arrays):
    for name, array in arrays.items():
        assert array.dtype in (np.float32, np.int64), name
        array.tofile(folder / name)


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
    save(tmp_path, query=query, key=key, value=value, alibi_slopes=slopes, key_lengths=lengths)
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
    save(tmp_path, **arrays)
    consumer("linear", tmp_path, rows, in_features, out_features)
    linear = fm.Linear(arrays["weight"], arrays["bias"], activation="gelu")
    expected = linear(arrays["x"], residual=arrays["residual"])
    assert_same_bits(result_of(tmp_path, "y", expected.shape), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_varlen_attention(consumer, tmp_path, threads):
    heads, kv_heads, head_dim, value_dim = 4, 2, 24, 20
    cu_q, cu_k = np.array([0, 5, 6, 6, 139]), np.array([0, 9, 709, 720, 860])
    random = Random(0)
    query = random.normal(cu_q[-1], heads, head_dim)
    key = random.normal(cu_k[-1], kv_heads, head_dim)
    value = random.normal(cu_k[-1], kv_heads, value_dim)
    save(tmp_path, query=query, key=key, value=value, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    sizes = (len(cu_q) - 1, heads, kv_heads, head_dim, value_dim)
    consumer("varlen", tmp_path, *sizes, threads=threads)
    out, lse = fm.varlen_attention(
        query, key, value, cu_q, cu_k, is_causal=True, query_offset=3, return_lse=True
    )
    assert_same_bits(result_of(tmp_path, "out", out.shape), out)
    assert_same_bits(result_of(tmp_path, "lse", lse.shape), lse)


@pytest.mark.parametrize("threads", [1, 3])
def test_kv_cache(consumer, tmp_path, threads):
    batch, heads, kv_heads, capacity, prefill, steps, head_dim, value_dim = (
        3,
        4,
        2,
        90,
        70,
        5,
        24,
        20,
    )
    lengths = np.array([70, 1, 33])
    total = prefill + steps
    query, key, value = Random(0).attention(
        batch, heads, total, total, head_dim, kv_heads=kv_heads, value_dim=value_dim
    )
    save(tmp_path, query=query, key=key, value=value, lengths=lengths)
    sizes = (batch, heads, kv_heads, capacity, prefill, steps, head_dim, value_dim)
    consumer("kv_cache", tmp_path, *sizes, threads=threads)

    cache = fm.KVCache(batch, kv_heads, capacity, head_dim, value_dim)
    cache.append(key[:, :, :prefill], value[:, :, :prefill], lengths=lengths)
    out = np.empty((batch, heads, total, value_dim), np.float32)
    out[:, :, :prefill] = fm.attention_with_kvcache(query[:, :, :prefill], cache, is_causal=True)
    for at in range(prefill, total):
        one = slice(at, at + 1)
        out[:, :, one] = fm.attention_with_kvcache(
            query[:, :, one], cache, key[:, :, one], value[:, :, one],
            is_causal=True, window=(20, None),
        )  # fmt: skip
    assert_same_bits(result_of(tmp_path, "out", out.shape), out)
    for name, mine in (("cached_key", cache.key), ("cached_value", cache.value)):
        theirs = result_of(tmp_path, name, (batch, kv_heads, capacity, -1))
        for n, length in enumerate(cache.lengths):
            assert_same_bits(theirs[n, :, :length], mine[n, :, :length], f"{name} of sequence {n}")


@pytest.mark.parametrize(("rows", "features"), [(1, 7), (5, 64), (300, 513)])
def test_row_operations(consumer, tmp_path, rows, features):
    random = Random(0)
    x, residual = random.normal(rows, features, scale=3), random.normal(rows, features)
    weight, bias = random.normal(features), random.normal(features)
    save(tmp_path, x=x, residual=residual, weight=weight, bias=bias)
    consumer("rows", tmp_path, rows, features)
    expected = {
        "layer_norm": fm.layer_norm(x, weight),
        "layer_norm_with_options": fm.layer_norm(x, weight, bias, eps=1e-3, residual=residual),
        "rms_norm": fm.rms_norm(x, weight),
        "rms_norm_with_options": fm.rms_norm(x, weight, eps=1e-3, residual=residual),
        "softmax": fm.softmax(x),
        "relu": fm.relu(x),
        "gelu": fm.gelu(x),
        "gelu_tanh": fm.gelu(x, approximate="tanh"),
        "silu": fm.silu(x),
    }
    for name, result in expected.items():
        assert_same_bits(result_of(tmp_path, name, result.shape), result, name)


@pytest.mark.parametrize("threads", [1, 3])
def test_encoder_block_of_the_example(consumer, tmp_path, threads):
    """examples/cpp/encoder_block.h is fm.EncoderBlock (post-norm, relu)."""
    batch, length, d_model, heads, d_ff = 3, 70, 96, 4, 200
    block = fm.EncoderBlock(d_model, heads, d_ff, activation="relu", seed=0)
    random = Random(0)
    block.load_state_dict(  # fresh biases are 0 and norms 1, which would hide mistakes
        {k: v + random.normal(*v.shape, scale=0.1) for k, v in block.state_dict().items()}
    )
    x, lengths = random.normal(batch, length, d_model), np.array([70, 2, 33])
    save(tmp_path, **block.state_dict(), x=x, lengths=lengths)
    consumer("encoder", tmp_path, batch, length, d_model, heads, d_ff, threads=threads)
    out = result_of(tmp_path, "out", x.shape)
    expected = block(x, key_lengths=lengths)
    for n, count in enumerate(lengths):  # what C++ writes into padding is its own affair
        assert_same_bits(out[n, :count], expected[n, :count], f"sequence {n}")


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
