"""What the commands share: threads, and mistakes that come back as one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

import fastmha as fm
from fastmha.lines import utf8

__all__ = ["Threads", "fail", "mistakes_as_one_line", "set_threads"]

Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; all that this process may use if not given."),
]


def set_threads(threads: int | None) -> None:
    if threads is not None:
        fm.set_num_threads(threads)


@contextmanager
def mistakes_as_one_line() -> Iterator[None]:
    """Turn what a user can get wrong into a line on stderr, and a reader that left into silence."""
    try:
        utf8(sys.stdout)
        yield
    except BrokenPipeError:
        # `| head` has what it wanted. Nothing may be flushed at exit, or Python complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (OSError, ValueError, TypeError, ModuleNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def fail(message: str) -> None:
    print(f"fastmha: {message}", file=sys.stderr)
    raise typer.Exit(1)
