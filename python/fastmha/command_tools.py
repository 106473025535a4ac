"""What the commands share: options, progress, files that go on after an interruption, and mistakes
that come back as one line."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

import fastmha as fm
from fastmha.growing_file import GrowingFile
from fastmha.lines import utf8
from fastmha.translation_texts import LanguageError, TextTooLongError

__all__ = [
    "BEGIN_ANEW",
    "STANDARD",
    "Command",
    "Force",
    "Group",
    "Restart",
    "Threads",
    "check_output",
    "check_place",
    "fail",
    "going_on",
    "mistakes_as_one_line",
    "progress_bar",
    "set_threads",
    "write_out",
]

STANDARD = Path("-")
NAMED_LANGUAGES = 10  # in a message: NLLB knows 202
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; all that this process may use if not given."),
]

Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew after an interruption.")]
BEGIN_ANEW = "--restart begins anew"  # what messages about an interrupted job advise


class _WithoutTypes:
    """Help in which flags stand without a type: some versions of typer write <bool> behind them."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_WithoutTypes, TyperCommand):
    """One of the commands."""


class Group(_WithoutTypes, TyperGroup):
    """All of them."""


def set_threads(threads: int | None) -> None:
    if threads is not None:
        fm.set_num_threads(threads)


class Terminated(KeyboardInterrupt):
    """SIGTERM: what timeout, docker stop and batch systems send in place of Ctrl-C."""


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
    except OSError as error:
        fail(_in_words(error))
    except LanguageError as error:
        fail(error.words(f"--{error.argument.replace('_', '-')}", NAMED_LANGUAGES))
    except TextTooLongError as error:  # of one text; translate names the line of its own
        fail(f"the text has {error.reason}")
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        fail(str(error))
    except MemoryError as error:
        fail(f"not enough memory: {error}")
    except Terminated:
        raise typer.Exit(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


def write_out(text: str) -> None:
    """To standard output, at once."""
    if sys.stdout is None:
        raise OSError("standard output is closed")
    sys.stdout.write(text)
    sys.stdout.flush()


def _in_words(error: OSError) -> str:
    """The file and what is wrong with it, without the number that str(error) begins with."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def fail(message: str) -> None:
    print(f"fastmha: {message}", file=sys.stderr)
    raise typer.Exit(1)


def check_output(output: Path, force: bool, sources: list[Path]) -> None:
    """A file that can be written, and that nothing is read from, is named."""
    check_place(output)
    # The finished file takes the place of what is there: of a pipe, or of /dev/null.
    if output.exists() and not output.is_file():
        raise ValueError(
            f"{output} is no regular file and cannot be replaced by one; leave --output out and "
            f"write > {output}"
        )
    if any(_is_same_file(output, source) for source in sources):
        raise ValueError(f"{output} is read and would be replaced; name another file")
    if output.exists() and not force:
        raise FileExistsError(f"{output} exists; --force replaces it")


def check_place(output: Path) -> None:
    """A name for a file in a directory that is there."""
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a directory; name a file")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent} is not a directory")


def _is_same_file(output: Path, source: Path) -> bool:
    try:
        read = os.fstat(0) if source == STANDARD else source.stat()
        return os.path.samestat(read, output.stat())
    except OSError:  # one of them is not there, or stdin is closed
        return False


@contextmanager
def going_on(
    out: GrowingFile, texts: Iterator[str], what: str, unit: str, sources: list[Path]
) -> Iterator[tuple[Progress, TaskID]]:
    """Pass over the texts of the rows that are there, and say how the job goes on when it is
    stopped."""
    try:
        out.check_kept(texts)
        if out.rows:
            print(f"fastmha: going on after {out.rows} rows", file=sys.stderr)
        with (
            _sigterm_interrupts(),
            progress_bar(what, unit, sources, out.rows, to_file=True) as bar,
        ):
            yield bar
    except KeyboardInterrupt:
        print(
            f"fastmha: stopped; {out.rows} rows are kept in {out.partial}, the same command goes "
            "on from there",
            file=sys.stderr,
        )
        raise


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While this lasts, SIGTERM stops a job where Ctrl-C would, so that its rows are kept."""

    def interrupt(number: int, frame: object) -> None:
        raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:  # ignored: whoever started this process wants that
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class RateColumn(ProgressColumn):
    """Texts per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        return Text(f"{speed:,.{0 if speed >= 10 else 1}f} {self._unit}/s")


@contextmanager
def progress_bar(
    what: str, unit: str, sources: list[Path], done: int = 0, *, to_file: bool = False
) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr with rate and time left, when that is a terminal and results do not appear
    on the same one."""
    console = Console(stderr=True)
    shown = console.is_terminal and (to_file or not sys.stdout.isatty())
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=120,  # seconds: chunks of long texts take a while
        disable=not shown,
    ) as bar:
        total = count_lines(sources) if shown else None
        yield bar, bar.add_task(what, total=total, completed=done)


def count_lines(sources: list[Path]) -> int | None:
    """Lines of all files; None when one is a pipe, which can be read but once."""
    return sum(map(_count, sources)) if all(path.is_file() for path in sources) else None


def _count(path: Path) -> int:
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")
