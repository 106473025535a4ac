"""Threads, instruction sets, environment variables, fork: how the library behaves as it is loaded
and run.
"""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits

TESTS = Path(__file__).parent


def run(code, *, timeout=120, **environment):
    """Python in a process of its own, with FASTMHA_* and OMP_* as given here and nothing else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FASTMHA_", "OMP_"))}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def value_of(code, **environment):
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def assert_refused(result, *words):
    """A Python exception that says why, not a signal."""
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    last_line = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last_line, result.stderr


# ---- instruction sets ----


def test_isa_is_one_of_the_available():
    assert fm.isa() in fm.available_isas()
    assert fm.available_isas()[-1] == "generic"
    assert len(set(fm.available_isas())) == len(fm.available_isas())


def test_best_isa_is_the_default():
    code = "import fastmha as fm; print(fm.isa(), fm.available_isas()[0])"
    chosen, best = value_of(code).split()
    assert chosen == best


@pytest.mark.parametrize("isa", fm.available_isas())
def test_every_isa_agrees_with_the_oracle(isa):
    """A short look at each instruction set, so that no run of the suite leaves one out."""
    code = """
        import numpy as np, fastmha as fm, reference
        from conftest import Random
        from tolerance import assert_attention, assert_close, linear_bound
        random = Random(0)
        for q_len, kv_len, dim in [(1, 700, 64), (5, 5, 64), (33, 129, 20), (70, 257, 96)]:
            arrays = random.attention(2, 4, q_len, kv_len, dim, kv_heads=2)
            options = dict(is_causal=True, query_offset=kv_len - q_len, window=(300, None))
            out = fm.scaled_dot_product_attention(*arrays, **options)
            assert_attention(out, *arrays, **options)
        for rows in (1, 3, 50):
            x, w, b = random.normal(rows, 70), random.normal(90, 70), random.normal(90)
            y = fm.Linear(w, b, activation="gelu")(x)
            assert_close(y, reference.linear(x, w, b, "gelu"), linear_bound(x, w, b, "gelu"))
        print(fm.isa())
    """
    assert value_of(code, FASTMHA_ISA=isa) == isa


@pytest.mark.parametrize("name", ["avx3", "AVX2", "generic ", "sse2,avx2", "0"])
def test_unknown_isa_is_an_import_error(name):
    result = run("import fastmha", FASTMHA_ISA=name)
    assert_refused(result, "ImportError", "FASTMHA_ISA", name, "generic")


def test_empty_isa_counts_as_unset():
    assert (
        value_of("import fastmha as fm; print(fm.isa())", FASTMHA_ISA="") == fm.available_isas()[0]
    )


# ---- threads ----


def test_set_and_get(num_threads):
    for threads in (1, 2, 7, 3):
        num_threads(threads)
        assert fm.get_num_threads() == threads
        assert fm.info()["num_threads"] == threads
    with pytest.raises(ValueError, match="num_threads"):
        fm.set_num_threads(0)
    assert fm.get_num_threads() == 3


THREADS = "import fastmha as fm; print(fm.get_num_threads())"


def test_environment_sets_the_threads():
    assert value_of(THREADS, FASTMHA_NUM_THREADS="3") == "3"
    assert value_of(THREADS, OMP_NUM_THREADS="5") == "5"
    assert value_of(THREADS, FASTMHA_NUM_THREADS="3", OMP_NUM_THREADS="5") == "3"
    explicit = "import fastmha as fm; fm.set_num_threads(6); print(fm.get_num_threads())"
    assert value_of(explicit, FASTMHA_NUM_THREADS="3", OMP_NUM_THREADS="5") == "6"


def test_default_is_the_cpus_of_this_process():
    cpus = len(os.sched_getaffinity(0))
    assert 1 <= int(value_of(THREADS)) <= cpus  # a cgroup may grant less
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); {THREADS}"
    assert value_of(one) == "1"


@pytest.mark.parametrize("text", ["abc", "0", "-1", "2.5", "4x", "99999999999999999999"])
def test_garbage_in_the_environment_is_refused(text):
    code = """
        import numpy as np, fastmha as fm
        fm.get_num_threads()
        x = np.ones((1, 8, 256, 64), np.float32)
        fm.scaled_dot_product_attention(x, x, x)
    """
    assert_refused(run(code, FASTMHA_NUM_THREADS=text), "FASTMHA_NUM_THREADS", text)


def test_calls_from_many_python_threads(random):
    """Concurrent calls share no scratch memory: each gets what it would get alone."""
    problems = [
        random.attention(2, 4, q, kv, 32) for q, kv in [(5, 5), (70, 130), (1, 900), (33, 257)] * 4
    ]
    linear = fm.Linear(random.normal(300, 128))
    rows = [random.normal(50, 128) for _ in problems]
    alone = [fm.scaled_dot_product_attention(*p) for p in problems], [linear(x) for x in rows]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = pool.map(lambda p: fm.scaled_dot_product_attention(*p), problems)
            products = pool.map(linear, rows)
            for got, want in zip([*together, *products], [*alone[0], *alone[1]], strict=True):
                assert_same_bits(got, want)


GIL = """
    import sys, threading
    import numpy as np, fastmha as fm
    x = np.ones((2, 4, 300, 64), np.float32)
    rows, weight = x.reshape(-1, 64), np.ones(64, np.float32)
    linear = fm.Linear(x[0, 0])
    ragged, ends = x.reshape(-1, 4, 64), [0, 300, 600]
    cache = fm.KVCache(2, 4, 300, 64)
    cache.append(x, x)
    go, done = threading.Event(), []
    other = threading.Thread(target=lambda: (go.wait(), done.append(True)))
    other.start()
    # From here on no thread is asked for the GIL: whoever has it keeps it until it gives it up.
    sys.setswitchinterval(1e6)
    go.set()
    for _ in range(20):
        sorted(range(100_000))  # time enough for the other thread, but it keeps the GIL
    assert not done
    while not done:
        {call}
    print("done")
"""


@pytest.mark.parametrize(
    "call",
    [
        "fm.scaled_dot_product_attention(x, x, x)",
        "fm.varlen_attention(ragged, ragged, ragged, ends)",
        "fm.attention_with_kvcache(x, cache)",
        "linear(x)",
        "fm.layer_norm(rows, weight)",
        "fm.rms_norm(rows, weight)",
        "fm.softmax(rows)",
        "fm.gelu(rows)",
    ],
)
def test_the_gil_is_released(call):
    """While one thread computes, another one goes on: it has no other chance to finish, and the
    loop that waits for it would never end.
    """
    assert value_of(GIL.format(call=call)) == "done"


FORK = """
    import os, signal, sys, time
    import numpy as np, fastmha as fm
    fm.set_num_threads(4)
    x = np.random.default_rng(0).standard_normal((2, 8, 512, 64)).astype(np.float32)
    {before}
    child = os.fork()
    if child == 0:
        out = fm.scaled_dot_product_attention(x, x, x)
        y = fm.Linear(x[0, 0, :64])(x)
        os._exit(0 if np.isfinite(out).all() and np.isfinite(y).all() else 3)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            again = fm.scaled_dot_product_attention(x, x, x)  # the parent goes on as well
            print("exit", os.waitstatus_to_exitcode(status), np.isfinite(again).all())
            sys.exit()
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    print("the child hangs")
"""


@pytest.mark.parametrize("before", ["pass", "first = fm.scaled_dot_product_attention(x, x, x)"])
def test_fork(before):
    """A forked child has no pool of threads: it must compute serially, not wait for threads that do
    not exist.
    """
    assert value_of(FORK.format(before=before)) == "exit 0 True"


FORK_AFTER_TORCH = """
    import os, signal, sys, time
    import numpy as np
    {imports}
    torch.set_num_threads(4)
    a = torch.randn(600, 600)
    a @ a  # torch makes the pool; it may share its OpenMP library with fastmha
    fm.set_num_threads(4)
    x = np.random.default_rng(0).standard_normal((8, 8, 256, 64)).astype(np.float32)
    child = os.fork()
    if child == 0:
        out = fm.scaled_dot_product_attention(x, x, x)
        os._exit(0 if np.isfinite(out).all() else 3)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            again = fm.scaled_dot_product_attention(x, x, x)
            print("exit", os.waitstatus_to_exitcode(status), np.isfinite(again).all())
            sys.exit()
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    print("the child hangs")
"""


@pytest.mark.parametrize(
    "imports", ["import torch, fastmha as fm", "import fastmha as fm, torch"], ids=str
)
def test_fork_when_another_library_made_the_pool(imports):
    """fastmha has run nothing yet, but the OpenMP pool that the child lacks exists all the same."""
    assert value_of(FORK_AFTER_TORCH.format(imports=imports)) == "exit 0 True"


def test_fork_gives_the_same_bits():
    code = """
        import hashlib, multiprocessing as mp
        import numpy as np, fastmha as fm
        fm.set_num_threads(3)
        def digest(seed):
            x = np.random.default_rng(seed).standard_normal((2, 4, 300, 64)).astype(np.float32)
            return hashlib.sha256(fm.scaled_dot_product_attention(x, x, x).tobytes()).hexdigest()
        here = [digest(s) for s in range(4)]
        with mp.get_context("fork").Pool(2) as pool:
            print(pool.map(digest, range(4)) == here)
    """
    assert value_of(code) == "True"


# ---- facts ----


def test_info():
    info = fm.info()
    assert info["version"] == fm.__version__
    assert info["isa"] == fm.isa()
    assert info["available_isas"] == fm.available_isas()
    assert info["num_threads"] == fm.get_num_threads()
    assert any(name in info["compiler"] for name in ("GCC", "Clang"))
    assert isinstance(info["openmp"], bool)
    assert info["idle_memory"] >= 0


def test_floating_point_state_is_left_alone(random):
    """Neither loading the library nor calling it may turn on flush-to-zero for the rest of the
    process.
    """
    fm.scaled_dot_product_attention(*random.attention(2, 4, 70, 70, 32))
    fm.softmax(random.normal(8))
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_memory_does_not_grow_with_the_square_of_the_length():
    """No L x S buffer: 16,384 queries and keys would need 1 GB for one head's scores."""
    code = """
        import resource, numpy as np, fastmha as fm
        x = np.random.default_rng(0).standard_normal((1, 1, 16384, 8)).astype(np.float32)
        fm.scaled_dot_product_attention(x[:, :, :64], x[:, :, :64], x[:, :, :64])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fm.scaled_dot_product_attention(x, x, x, is_causal=True, window=(4000, 0))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    kilobytes = int(value_of(code))
    assert kilobytes < 64 * 1024


# glibc learns to keep what is freed, and memory that comes and goes would not be noticed: with a
# fixed limit every block of 4 KiB or more is mapped and unmapped.
FORGETFUL = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "131072"}


@pytest.mark.parametrize("threads", ["1", "2"])
def test_repeated_calls_do_not_fault_their_scratch(threads):
    """Scratch is kept from call to call: after the first ones the system hands out no page."""
    code = """
        import resource, numpy as np, fastmha as fm
        from fastmha.nn import FeedForward
        rng = np.random.default_rng(0)
        def normal(*shape):
            return rng.standard_normal(shape).astype(np.float32)
        def to(out, function, *args, **kwargs):
            return lambda: function(*args, out=out, **kwargs)
        attention = fm.scaled_dot_product_attention
        x, few, one = normal(2, 8, 300, 64), normal(64, 8, 5, 64), normal(2, 8, 1, 64)
        many, long = normal(1, 32, 1, 64), normal(1, 8, 6000, 64)
        rows, aliased = normal(600, 512), normal(600, 1024)
        cache = fm.KVCache(2, 8, 300, 64)
        cache.append(x, x)
        linear, wide = fm.Linear(normal(700, 512)), fm.Linear(normal(700, 1024))
        forward = FeedForward(512, 1024, seed=0)
        mha = fm.MultiHeadAttention(512, 8, seed=0)
        norm = fm.LayerNorm(512)
        batch = normal(40, 30, 512)  # shared out in slices
        block = fm.EncoderBlock(512, 8, 1024, seed=0)
        # Too few rows for slices: threads share every step. Outputs are too small to be pooled.
        single, memory = normal(1, 7, 128), normal(1, 400, 128)
        few_rows = normal(1, 28, 128)
        slim_forward = FeedForward(128, 1024, seed=0)
        slim_mha = fm.MultiHeadAttention(128, 4, seed=0)
        calls = {
            "panels": to(np.empty_like(x), attention, x, x, x),
            "causal panels": to(np.empty_like(x), attention, x, x, x, is_causal=True),
            "short": to(np.empty_like(few), attention, few, few, few),
            "decode": to(np.empty_like(one), attention, one, x, x),
            "split decode": to(np.empty_like(many), attention, many, long, long),
            "cache": to(np.empty_like(one), fm.attention_with_kvcache, one, cache),
            "linear": to(np.empty((600, 700), np.float32), linear, rows),
            "aliased linear": to(np.empty((600, 700), np.float32), wide, aliased),
            "norm": lambda: norm(rows),
            "sliced feed-forward": lambda: forward(batch),
            "shared feed-forward": to(np.empty_like(few_rows), slim_forward, few_rows),
            "sliced heads": lambda: mha(batch),
            "shared heads": lambda: slim_mha(single, memory),
            "block": lambda: block(batch),
        }
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for name, call in calls.items():
            for _ in range(20):
                call()
            before = faults()
            for _ in range(100):
                call()
            print(name, faults() - before, sep=": ")
    """
    lines = value_of(code, FASTMHA_NUM_THREADS=threads, **FORGETFUL).splitlines()
    assert len(lines) == 14
    # A page now and then is Python's own; scratch that came and went would be hundreds.
    assert not [line for line in lines if int(line.split(": ")[1]) >= 20]


def test_nothing_spins_after_a_call():
    """OpenMP's threads sleep soon after a call: by default GCC's spin for 10 ms of each core."""
    code = """
        import time, numpy as np, fastmha as fm
        x = np.random.default_rng(0).standard_normal((2, 8, 300, 64)).astype(np.float32)
        after = []
        for _ in range(11):
            fm.scaled_dot_product_attention(x, x, x)
            start = time.process_time()
            time.sleep(0.05)
            after.append(time.process_time() - start)
        print(sorted(after)[5])
    """
    assert float(value_of(code, FASTMHA_NUM_THREADS="2")) < 2e-3
