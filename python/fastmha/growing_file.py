"""Files that grow while a job runs over texts, and go on after an interruption.

    OUT.partial         the rows so far, in a form that can be cut off behind any block
    OUT.partial.json    how many of them count: rows, bytes, a digest of their texts
    OUT                 appears when everything is there

A block of rows counts once its bytes are on disk and the small file says so; what lies behind is
cut off when the job goes on. So no row is lost or there twice, whenever the job was stopped, and
the finished file is bit for bit what it would have been without a stop.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from fastmha.runtime import isa
from fastmha.texts import check_text

__all__ = ["GrowingFile"]


class GrowingFile:
    """A file with one row for each text that is being written; use it in a with statement.

    Parameters
    ----------
    path : path
        The finished file.
    identity : str
        What must be the same for a job to go on: the model, and the settings if they are not apart.
    settings : str, optional
        Settings that must be the same, too; apart, a message can tell what is not the same.
    restart : bool, default False
        Forget the rows so far.
    anew : str, optional
        What messages advise, to begin anew; to delete a file if not given.

    Attributes
    ----------
    rows : int
        Rows that count.

    Raises
    ------
    ValueError
        The rows so far were made by another model, or with other settings.
    BlockingIOError
        Another process is writing it, or has just finished it.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        *,
        settings: str | None = None,
        restart: bool = False,
        anew: str | None = None,
    ) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.state_file = path.with_name(f"{path.name}.partial.json")
        self._anew = anew or f"delete {self.state_file.name} to begin anew"
        self._identity, self._settings = f"{type(self).__name__} {identity}", settings
        self._digest = hashlib.sha256()
        self.rows, self._size = 0, 0  # what counts
        # not truncated: whether it is empty is decided below, under the lock
        self._stream: BinaryIO = open(  # noqa: SIM115  __exit__ closes it
            os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b"
        )
        try:
            self._lock()
            # Finished, and stopped before the small file went: there was no other partial file than
            # the empty one that was made just now.
            finished = self.path.exists() and os.fstat(self._stream.fileno()).st_size == 0
            if restart or finished:  # under the lock: the rows may be another process's
                self.state_file.unlink(missing_ok=True)
            self._expected = self._resume()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def check_kept(self, texts: Iterator[str]) -> None:
        """Take the texts of the rows that count from `texts`, and compare them with those then.

        Raises
        ------
        ValueError
            They are others, or fewer.
        """
        for number in range(self.rows):
            text = next(texts, None)
            if text is None:
                raise ValueError(
                    f"{self.partial} holds {self.rows} rows, there are only {number} texts; "
                    f"{self._anew}"
                )
            check_text(f"texts[{number}]", text)
            _add(self._digest, text)
        if self.rows and self._digest.hexdigest() != self._expected:
            raise ValueError(
                f"the first {self.rows} texts are not those that {self.partial} was made from; "
                f"{self._anew}"
            )

    def extend(self, texts: Sequence[str], block: bytes) -> None:
        """Write the rows of `texts`, and return when they count.

        Nothing here counts them before the small file does: a call that was interrupted, or that
        failed, may be repeated and writes the same rows in the same place.
        """
        self._stream.truncate(self._stream.seek(self._size))
        self._stream.write(block)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        digest = self._digest.copy()
        for text in texts:
            _add(digest, text)
        rows, size = self.rows + len(texts), self._stream.tell()
        new = self._new_state(rows, size, digest.hexdigest())
        try:
            new.replace(self.state_file)
        finally:
            if not new.exists():  # interrupted just behind it: the rows count all the same
                self.rows, self._size, self._digest = rows, size, digest

    def finish(self) -> None:
        """Make the finished file."""
        self._complete()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._publish()
        _sync_directory(self.path.parent)  # the name before the small file goes
        self.state_file.unlink(missing_ok=True)

    def _start(self) -> bytes:
        """What stands before the first row."""
        return b""

    def _complete(self) -> None:
        """Add what can only be known at the end."""

    def _publish(self) -> None:
        self.partial.replace(self.path)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is writing {self.partial}") from None
        # The owner may have renamed it between open and lock: then this is the finished file.
        try:
            same = os.path.samestat(os.fstat(self._stream.fileno()), os.stat(self.partial))
        except FileNotFoundError:
            same = False
        if not same:
            raise BlockingIOError(
                f"{self.partial} was finished or replaced by another process; try again"
            )

    def _resume(self) -> str:
        """Go to the end of what counts; the digest of the texts of those rows."""
        state: dict[str, Any] = {}
        if self.state_file.is_file():
            try:
                state = json.loads(self.state_file.read_text("utf-8"))
                rows, size, texts = int(state["rows"]), int(state["bytes"]), str(state["texts"])
                identity = str(state["identity"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.state_file} is broken: {error!r}; {self._anew}") from error
            if (identity, state.get("settings")) != (self._identity, self._settings):
                raise ValueError(
                    f"{self.partial} was made {self._what_differs(state)}; {self._anew}"
                )
            if os.fstat(self._stream.fileno()).st_size < size:
                raise ValueError(
                    f"{self.partial} is shorter than {self.state_file} says; {self._anew}"
                )
            self._stream.truncate(size)
            self._stream.seek(size)
            self.rows, self._size = rows, size
            return texts
        self._stream.truncate(0)
        self._size = self._stream.write(self._start())
        return ""

    def _what_differs(self, state: dict[str, Any]) -> str:
        if state["identity"] == self._identity:
            return "with other settings"
        if state.get("isa") != isa():  # which changes the bits that models are told apart by
            return f"on the instruction set {state.get('isa')}, not {isa()}"
        return "by another model" + (", or with other settings" if self._settings is None else "")

    def _new_state(self, rows: int, size: int, texts: str) -> Path:
        """What takes the place of the small file."""
        state = {
            **{"rows": rows, "bytes": size, "texts": texts},
            **{"identity": self._identity, "settings": self._settings, "isa": isa()},
        }
        temporary = self.state_file.with_name(f"{self.state_file.name}.new")
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary


def _sync_directory(directory: Path) -> None:
    """Return when the names in it are on disk: some file systems keep changes in no order."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _add(digest: "hashlib._Hash", text: str) -> None:
    data = text.encode()
    digest.update(len(data).to_bytes(8, "little") + data)
