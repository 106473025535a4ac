"""Texts as the command line takes them: arguments, files and pipes, one text a line, in UTF-8."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Lines", "check_utf8", "chunks", "utf8"]

# How bytes that are not UTF-8 are read: as surrogates, so that they do not stop the reading before
# the lines in front of them are through. Arguments come decoded in the same way.
UNDECODED = "surrogateescape"


class Lines:
    """The lines of the arguments in `text`, then those of `files`; - is standard input.

    Raises
    ------
    OSError
        A file that cannot be read, when it is its turn.
    ValueError
        A line that is not UTF-8, when it is its turn; the message names its place.
    """

    def __init__(self, text: list[str], files: list[Path]) -> None:
        self._name, self._number = "", 0
        # Alone, arguments and standard input need no name: who typed one line knows it.
        self._several = bool(text) + len(files) > 1
        self._lines = self._read(text, files)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    @property
    def place(self) -> str:
        """Where the line came from that was the last one so far, for messages: "a.txt: line 3"."""
        return f"{self._name}line {self._number}"

    def _read(self, text: list[str], files: list[Path]) -> Iterator[str]:
        self._name, self._number = "arguments: " if self._several else "", 0
        for number, sentence in enumerate(text, 1):
            check_utf8(f"argument {number}", sentence)
            for line in sentence.split("\n"):
                self._number += 1
                yield line
        for path in files:
            if str(path) == "-":
                self._name = "stdin: " if self._several else ""
                yield from self._stripped(utf8(sys.stdin, UNDECODED, newline="\n"), "stdin")
            else:
                self._name = f"{path}: "
                with path.open(encoding="utf-8", errors=UNDECODED, newline="\n") as stream:
                    yield from self._stripped(stream, str(path))

    def _stripped(self, stream: Iterable[str], name: str) -> Iterator[str]:
        """Lines end at a line feed, as for wc: a carriage return within one belongs to the text."""
        for self._number, line in enumerate(stream, 1):
            check_utf8(f"{name}: line {self._number}", line)
            if self._number == 1:
                line = line.removeprefix("\ufeff")  # a byte order mark is no character
            yield line.removesuffix("\n").removesuffix("\r")


def check_utf8(where: str, line: str) -> None:
    """`line` was decoded with surrogates in place of the bytes that are not UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = line[error.start].encode(errors=UNDECODED)[0]
        place = len(line[: error.start].encode()) + 1
        raise ValueError(
            f"{where}: not UTF-8: byte 0x{byte:02x} at byte {place}; convert it first, for example "
            "with iconv -f GB18030 -t UTF-8"
        ) from None


def chunks(texts: Iterator[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Lists of up to `size` lines, with the number of the first.

    What is wrong with a line or a file is raised when the lines before it are through.
    """
    first = 1
    mistake: Exception | None = None
    while mistake is None:
        chunk = []
        try:
            for line in itertools.islice(texts, size):
                chunk.append(line)  # one by one: what came before a mistake stays
        except Exception as error:
            mistake = error
        if chunk:
            yield first, chunk
        elif mistake is None:
            return
        first += len(chunk)
    raise mistake


def utf8(stream: TextIO, errors: str = "strict", newline: str | None = None) -> TextIO:
    """Sentences are UTF-8 whatever the locale says."""
    reconfigure: Any = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        options = {} if newline is None else {"newline": newline}
        reconfigure(encoding="utf-8", errors=errors, **options)
    return stream
