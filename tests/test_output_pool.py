"""Memory of large results: taken over by the next result of that size, never by two at once."""

import os
import pickle
import resource
import subprocess
import sys
import textwrap
import threading

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits
from fastmha import _core
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 1 << 20
KEPT = 256 * MIB  # kIdleBytes of cpp/bindings/output_pool.h


@pytest.fixture(autouse=True)
def empty_pool():
    fm.release_memory()
    yield
    fm.release_memory()


def address(array):
    return array.__array_interface__["data"][0]


def idle():
    return fm.info()["idle_memory"]


def of_bytes(count):
    return _core.empty((count // 4,))


def test_memory_of_a_dead_result_is_taken_over():
    x = np.ones((600, 1024), np.float32)
    first = fm.relu(x)
    place = address(first)
    del first
    assert idle() >= x.nbytes
    second = fm.relu(x)
    assert address(second) == place
    assert idle() == 0
    np.testing.assert_array_equal(second, x)


def test_a_view_keeps_it():
    result = of_bytes(4 * MIB)
    result[...] = 7
    view = result.reshape(1024, -1)[1::3, ::2]
    del result
    assert idle() == 0
    for _ in range(4):
        of_bytes(4 * MIB)[...] = 0
    assert (view == 7).all()
    del view
    assert idle() >= 4 * MIB


def test_only_results_of_like_size_share():
    del_me = of_bytes(8 * MIB)
    place = address(del_me)
    del del_me
    assert address(of_bytes(4 * MIB)) != place
    assert address(of_bytes(8 * MIB - 4096)) == place


def test_small_results_are_numpys_own():
    small = fm.relu(np.ones(1000, np.float32))
    assert small.flags.owndata
    assert idle() == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (7,), (300_000,), (2, 3, 512, 512)])
def test_empty_is_an_ordinary_array(shape):
    made = _core.empty(shape)
    assert made.shape == shape
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert made.flags.writeable
    made[...] = 1
    made += 1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)), made)
    assert made.copy().flags.owndata


def test_large_results_start_on_a_huge_page():
    assert address(of_bytes(2 * MIB)) % (2 * MIB) == 0
    assert address(of_bytes(50 * MIB)) % (2 * MIB) == 0


def test_idle_memory_is_bounded():
    """The least recently used goes first."""
    arrays = [of_bytes(64 * MIB) for _ in range(6)]
    places = [address(array) for array in arrays]
    while arrays:
        del arrays[0]
        assert idle() <= KEPT
    assert idle() == KEPT
    assert {address(a) for a in [of_bytes(64 * MIB) for _ in range(4)]} == set(places[2:])


def test_memory_beyond_the_bound_is_returned():
    before = resident()
    huge = of_bytes(KEPT + MIB)
    huge[:: 4096 // 4] = 1
    assert resident() - before >= KEPT
    del huge
    assert idle() == 0
    assert resident() - before < 16 * MIB


def test_release_memory_returns_it():
    before = resident()
    arrays = [of_bytes(20 * MIB) for _ in range(5)]
    for array in arrays:
        array[:: 4096 // 4] = 1
    del arrays, array
    assert idle() == 100 * MIB
    assert fm.release_memory() == 100 * MIB
    assert idle() == 0
    assert resident() - before < 16 * MIB
    assert fm.release_memory() == 0


def test_release_memory_returns_scratch_memory(random):
    """It stayed with the thread that had called."""
    query = random.normal(1, 2, 300, 64)
    expected = fm.scaled_dot_product_attention(query, query, query)
    assert idle() > 0
    assert fm.release_memory() > 0
    assert idle() == 0
    assert_same_bits(fm.scaled_dot_product_attention(query, query, query), expected)


def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()


def test_more_than_there_is():
    with pytest.raises(MemoryError):
        _core.empty((1 << 50,))
    with pytest.raises(ValueError, match="negative"):
        _core.empty((-3, 5))
    with pytest.raises(ValueError, match="negative"):
        _core.empty((-3000, -5000))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["new", "drop", "view"]), st.integers(0, 99)), max_size=60)
)
def test_live_arrays_never_share(steps):
    """Every live array and view is filled with a number of its own, and keeps it."""
    live = []
    for number, (step, pick) in enumerate(steps):
        if step == "new":
            array = of_bytes(MIB + (pick % 4) * 100_000)
            array[...] = number
            live.append((array, number))
        elif live and step == "drop":
            del live[pick % len(live)]
        elif live:
            array, own = live[pick % len(live)]
            live[pick % len(live)] = (array[len(array) // 3 :], own)
        for array, own in live:
            assert array[0] == array[-1] == own
    for i, (a, _) in enumerate(live):
        assert not any(np.shares_memory(a, b) for b, _ in live[:i])
    assert idle() <= KEPT


def test_threads():
    """Arrays are made on one thread and dropped on another, and stay what they were."""
    failures = []
    handed = [None] * 4

    def work(me):
        random = np.random.default_rng(me)
        for turn in range(300):
            array = of_bytes(MIB + int(random.integers(3)) * 200_000)
            array[::1024] = number = me * 1000 + turn
            handed[(me + 1) % 4] = array
            if not (array[::1024] == number).all():
                failures.append(number)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_fork():
    """The child has copies: what it writes and frees is not seen by the parent."""
    live, dead = of_bytes(4 * MIB), of_bytes(8 * MIB)
    live[...] = 1
    place = address(dead)
    del dead
    child = os.fork()
    if child == 0:
        taken = of_bytes(8 * MIB)
        good = address(taken) == place and (live == 1).all()
        taken[...] = 2
        live[...] = 2
        fm.release_memory()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (live == 1).all()
    assert address(of_bytes(8 * MIB)) == place


def test_arrays_outlive_the_interpreters_modules():
    """A result that only dies when the interpreter does, with views and in a reference cycle."""
    code = """
        import sys
        import numpy as np
        import fastmha as fm
        kept = fm.relu(np.ones((1024, 1024), np.float32))
        sys.kept = kept[3:]
        cycle = [kept]
        cycle.append(cycle)
        np.kept = cycle
        class Last:
            def __init__(self, array): self.array = array
            def __del__(self): self.array = None
        sys.last = Last(fm.relu(kept))
        print("done")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


def minor_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def calls():
    rows = np.ones((4096, 3072), np.float32)  # 50 MB
    weight = np.ones(3072, np.float32)
    narrow = np.ones((4096, 256), np.float32)
    linear = fm.Linear(np.ones((3072, 256), np.float32))
    heads = np.ones((64, 12, 256, 64), np.float32)
    return {
        "layer_norm": lambda: fm.layer_norm(rows, weight),
        "softmax": lambda: fm.softmax(rows),
        "gelu": lambda: fm.gelu(rows),
        "linear": lambda: linear(narrow),
        "attention": lambda: fm.scaled_dot_product_attention(heads, heads, heads),
    }


@pytest.mark.parametrize("name", ["layer_norm", "softmax", "gelu", "linear", "attention"])
def test_repeated_calls_do_not_fault_pages(name):
    """Without the pool each call of 50 MB maps 24 huge pages or 12,288 small ones."""
    call = calls()[name]
    for _ in range(3):
        call()
    faults = []
    for _ in range(5):
        before = minor_faults()
        call()
        faults.append(minor_faults() - before)
    assert min(faults) < 10  # a kernel that moves pages about adds some now and then, not each time
