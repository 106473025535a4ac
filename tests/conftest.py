"""Shared by all tests: which ISA runs, reproducible hypothesis, a generator of random arrays.

The instruction set is chosen when the library loads, so one process tests one of them: run the
suite once per name with ``FASTMHA_ISA=generic``, ``avx2``, ``avx512``.
"""

import os

import fastmha as fm
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# derandomize: the same cases on every run and machine, so that a failure in CI is a failure here.
settings.register_profile(
    "fastmha",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fastmha")


def pytest_report_header():
    return f"fastmha: isa {fm.isa()} of {fm.available_isas()}, {fm.get_num_threads()} threads"


def pytest_sessionstart():
    asked = os.environ.get("FASTMHA_ISA")
    if asked and fm.isa() != asked:
        raise pytest.UsageError(f"FASTMHA_ISA={asked}, but fastmha runs {fm.isa()}")


def pytest_sessionfinish(session):
    """Nothing is skipped in CI: a check that stopped running there would go unnoticed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        os.environ.get("CI") == "true"
        and reporter.stats.get("skipped")
        and session.exitstatus == pytest.ExitCode.OK
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") == "true" and skipped:
        terminalreporter.write_line(
            f"CI=true, but {len(skipped)} tests or modules were skipped: install "
            "what they need; a run in CI must leave out nothing",
            red=True,
        )
    _report_near_ties(terminalreporter)


def _report_near_ties(terminalreporter):
    """Targets that are not those of transformers, by less than the tests allow, are not silent."""
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    found = {
        report.nodeid.rpartition("::")[2]: dict(report.user_properties)["near ties"]
        for report in reports
        if "near ties" in dict(getattr(report, "user_properties", ()))
    }
    if found:
        ties, compared = (sum(counts) for counts in zip(*found.values(), strict=True))
        where = ", ".join(f"{ties} in {name}" for name, (ties, _) in found.items() if ties)
        terminalreporter.write_line(
            f"near ties: {ties} of {compared} targets differ from transformers' by less than the "
            f"scores' rounding{': ' if where else ''}{where}"
        )


class Random:
    """Float32 arrays from a fixed seed."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape, scale=1.0):
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def attention(self, batch, heads, q_len, kv_len, head_dim, *, kv_heads=None, value_dim=None):
        kv_heads = heads if kv_heads is None else kv_heads
        value_dim = head_dim if value_dim is None else value_dim
        return (
            self.normal(batch, heads, q_len, head_dim),
            self.normal(batch, kv_heads, kv_len, head_dim),
            self.normal(batch, kv_heads, kv_len, value_dim),
        )


@pytest.fixture
def random():
    return Random(0)


@pytest.fixture
def num_threads():
    """fm.set_num_threads, undone after the test."""
    before = fm.get_num_threads()
    yield fm.set_num_threads
    fm.set_num_threads(before)


def assert_same_bits(actual, expected, what="result"):
    """Equal bit for bit, NaN payloads and signs of zero included."""
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} and {expected.shape}"
    assert actual.dtype == expected.dtype == np.float32, f"{what}: {actual.dtype}, {expected.dtype}"
    same = actual.view(np.uint32) == expected.view(np.uint32)
    if not same.all():
        first = tuple(map(int, np.argwhere(~same)[0]))
        raise AssertionError(
            f"{what}: {(~same).sum()} of {same.size} entries differ, first at {first}: "
            f"{actual[first]!r} and {expected[first]!r}"
        )
