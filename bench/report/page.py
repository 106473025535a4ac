"""Placeholder until the page is written."""

from bench.results import Run


def render(run: Run) -> str:
    return ""
