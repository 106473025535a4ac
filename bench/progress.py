"""Shows where a run is: a bar on a terminal (with rich), a line for each workload otherwise."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bench.report import table
from bench.results import Result


class Progress(Protocol):
    def start(self, name: str) -> None: ...
    def done(self, result: Result) -> None: ...


class Lines:
    """On stderr, so that stdout has the table alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0

    def start(self, name: str) -> None:
        self.number += 1
        print(f"[{self.number}/{self.total}] {name} ...", file=sys.stderr, flush=True)

    def done(self, result: Result) -> None:
        width = len(str(self.total)) * 2 + 3
        print(f"{' ' * width} {table.one_line(result)}", file=sys.stderr, flush=True)


@contextmanager
def shown(total: int) -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar
    except ImportError:
        yield Lines(total)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(total)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        class OnTerminal:
            def start(self, name: str) -> None:
                bar.update(task, description=name)

            def done(self, result: Result) -> None:
                bar.console.print(f"{result.name}: {table.one_line(result)}", highlight=False)
                bar.advance(task)

        yield OnTerminal()
