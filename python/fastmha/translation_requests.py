"""Texts on their way to the search: read and tokenised some at a time, each with its prefix.

    texts, prefixes  ->  Reader: (text, source ids, prefix)  ->  Queue  ->  sources of the search

What is wrong with one of them comes when those before it are through; blank texts never reach the
search.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import TypeVar, cast

from fastmha._types import Int64
from fastmha.decoding.scheduler import AHEAD, WINDOW
from fastmha.lines import chunks

__all__ = ["Queue", "Reader", "Request", "paired", "then_raise"]

# Texts that are tokenised together when they come from an iterator: few enough that nobody waits
# for them, and a call of the tokenizer is nothing beside their translation.
CHUNK = 256

# A text, its source ids and what its target begins with.
Request = tuple[str, Int64, Int64 | None]
Found = TypeVar("Found")


def paired(
    operation: str, sources: Iterable[tuple[str, Int64]], prefixes: Iterator[Int64 | None]
) -> Iterator[Request]:
    """Texts and their ids, each with its prefix."""
    none_left = object()
    for text, ids in sources:
        prefix = next(prefixes, none_left)
        if prefix is none_left:
            raise ValueError(f"{operation}: there are fewer prefixes than texts")
        yield text, ids, cast(Int64 | None, prefix)
    if not isinstance(prefixes, repeat) and next(prefixes, none_left) is not none_left:
        raise ValueError(f"{operation}: there are more prefixes than texts")


class Reader:
    """Texts, their source ids and prefixes, read and tokenised some at a time.

    Whatever is wrong with a text or a prefix, or raised by the iterators, ends them and is kept in
    `mistake`.
    """

    def __init__(
        self,
        operation: str,
        texts: Iterable[str],
        encode: Callable[[list[str], int], list[Int64]],
        prefixes: Iterator[Int64 | None],
    ) -> None:
        self._operation, self._prefixes = operation, prefixes
        self._chunks = chunks(iter(texts), CHUNK)
        self._encode = encode
        self.mistake: Exception | None = None

    def __iter__(self) -> Iterator[Request]:
        try:
            yield from paired(self._operation, self._sources(), self._prefixes)
        except Exception as error:
            self.mistake = error

    def _sources(self) -> Iterator[tuple[str, Int64]]:
        for first, part in self._chunks:
            sources, mistake = self._encoded(part, first - 1)
            yield from zip(part, sources, strict=False)
            if mistake is not None:
                raise mistake

    def _encoded(self, part: list[str], first: int) -> tuple[list[Int64], Exception | None]:
        """As far as nothing is wrong, and what is."""
        try:
            return self._encode(part, first), None
        except (TypeError, ValueError):
            sources: list[Int64] = []
            try:
                for n, text in enumerate(part, first):
                    sources += self._encode([text], n)
            except (TypeError, ValueError) as error:
                return sources, error
            return sources, None


def then_raise(found: Iterator[Found], reader: Reader) -> Iterator[Found]:
    yield from found
    if reader.mistake is not None:
        raise reader.mistake


class Queue:
    """What the search reads ahead of what it gives out: blank texts are not its affair.

    As it does not see them, it does not count them either: when too many wait to be given out, its
    sources end, and it has to run again for those behind.
    """

    def __init__(self, requests: Iterable[Request], batch_size: int) -> None:
        self._requests = iter(requests)
        self._most_blank = AHEAD * WINDOW * batch_size  # as many as it reads of others
        self._prefixes: deque[Int64] = deque()  # of sources that were read, but not the prefix
        self._blank: deque[bool] = deque()  # of all texts that were read and not given out
        self._waiting = 0  # of these are blank
        self.read = 0  # sources so far
        self.exhausted = False

    def sources(self) -> Iterator[Int64]:
        for text, ids, prefix in self._requests:
            blank = not text.strip()
            self._blank.append(blank)
            if not blank:
                if prefix is not None:
                    self._prefixes.append(prefix)
                self.read += 1
                yield ids
                continue
            self._waiting += 1
            if self._waiting >= self._most_blank:
                return
        self.exhausted = True

    def prefixes(self) -> Iterator[Int64]:
        while self._prefixes:
            yield self._prefixes.popleft()

    def blanks(self) -> int:
        """How many blank texts are to be given out now, before the next one that is not."""
        count = 0
        while self._blank and self._blank.popleft():
            count += 1
        self._waiting -= count
        return count
