"""Files of embeddings that grow while they are written, and go on after an interruption.

    OUT.partial         the rows so far, in a form that can be cut off behind any block
    OUT.partial.json    how many of them count: rows, bytes, a digest of their texts
    OUT                 appears when everything is there

A block of rows counts once its bytes are on disk and the small file says so; what lies behind is
cut off when the job goes on. So no row is lost or there twice, whenever the job was stopped, and
the finished file is bit for bit what it would have been without a stop.
"""

import fcntl
import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastmha._extras import require
from fastmha._types import Float32
from fastmha.lines import chunks
from fastmha.texts import check_text

__all__ = ["FORMATS", "EmbeddingFile", "file_format", "json_lines", "write_embeddings"]

# Texts that are embedded and written together: enough to sort by length, and so few that an
# interruption costs seconds, not minutes, of a small model's work.
CHUNK = 1024
# Characters that JSON allows as they are, but that many a reader takes for the end of a line.
LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
# Rows that Parquet stores together: what readers take at a time. A thousand would make many small
# pieces, each with a header; these are 100 MB of embeddings 384 wide.
ROW_GROUP = 1 << 16
NPY_HEADER = 128  # bytes: room for any number of rows, so that it can be written again at the end


class EmbeddingFile(ABC):
    """A file of embeddings that is being written; use it in a with statement.

    Parameters
    ----------
    path : path
        The finished file.
    width : int
        Numbers in an embedding.
    identity : str
        What must be the same for a job to go on: model, settings.
    restart : bool, default False
        Forget the rows so far.

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

    def __init__(self, path: Path, width: int, identity: str, *, restart: bool = False) -> None:
        self.path, self.width = path, width
        self.partial = path.with_name(f"{path.name}.partial")
        self.state_file = path.with_name(f"{path.name}.partial.json")
        self._anew = f"delete {self.state_file.name} to begin anew"
        self._identity = f"{type(self).__name__} {width} {identity}"
        self._digest = hashlib.sha256()
        self.rows = 0
        # not truncated: whether it is empty is decided below, under the lock
        self._stream: BinaryIO = open(  # noqa: SIM115  __exit__ closes it
            os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b"
        )
        try:
            self._lock()
            if restart:  # under the lock: the rows may be another process's
                self.state_file.unlink(missing_ok=True)
            self._expected = self._resume()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> "EmbeddingFile":
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
            self._add_to_digest(text)
        if self.rows and self._digest.hexdigest() != self._expected:
            raise ValueError(
                f"the first {self.rows} texts are not those that {self.partial} was made from; "
                f"{self._anew}"
            )

    def append(self, texts: Sequence[str], embeddings: Float32) -> None:
        """Write rows, and return when they count."""
        self._stream.write(self._block(texts, embeddings))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        for text in texts:
            self._add_to_digest(text)
        self.rows += len(texts)
        self._write_state()

    def finish(self) -> None:
        """Make the finished file."""
        self._complete()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._publish()
        self.state_file.unlink(missing_ok=True)

    @abstractmethod
    def _start(self) -> bytes:
        """What stands before the first row."""

    @abstractmethod
    def _block(self, texts: Sequence[str], embeddings: Float32) -> bytes:
        """Rows as they are written."""

    def _complete(self) -> None:  # noqa: B027  most forms know everything before
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
            if identity != self._identity:
                raise ValueError(
                    f"{self.partial} was made by another model, with other settings, or on another "
                    f"instruction set; {self._anew}"
                )
            if os.fstat(self._stream.fileno()).st_size < size:
                raise ValueError(
                    f"{self.partial} is shorter than {self.state_file} says; {self._anew}"
                )
            self._stream.truncate(size)
            self._stream.seek(size)
            self.rows = rows
            return texts
        self._stream.truncate(0)
        self._stream.write(self._start())
        return ""

    def _add_to_digest(self, text: str) -> None:
        data = text.encode()
        self._digest.update(len(data).to_bytes(8, "little") + data)

    def _write_state(self) -> None:
        state = {
            "rows": self.rows,
            "bytes": self._stream.tell(),
            "texts": self._digest.hexdigest(),
            "identity": self._identity,
        }
        temporary = self.state_file.with_name(f"{self.state_file.name}.new")
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.state_file)


class NpyFile(EmbeddingFile):
    """One array (rows, width) of float32: np.load(path, mmap_mode="r")."""

    def _start(self) -> bytes:
        return npy_header(0, self.width)

    def _block(self, texts: Sequence[str], embeddings: Float32) -> bytes:
        return embeddings.astype("<f4", copy=False).tobytes()

    def _complete(self) -> None:
        self._stream.seek(0)
        self._stream.write(npy_header(self.rows, self.width))


class JsonLinesFile(EmbeddingFile):
    """One object a line, {"text": ..., "embedding": [...]}, as :func:`json_lines` writes it."""

    def _start(self) -> bytes:
        return b""

    def _block(self, texts: Sequence[str], embeddings: Float32) -> bytes:
        return json_lines(texts, embeddings)


class ParquetFile(EmbeddingFile):
    """Columns ``text`` and ``embedding`` (a list of `width` floats).

    Parquet cannot be cut off and continued, so rows are kept as a stream of Arrow messages, which
    can, and become Parquet at the end, block by block.
    """

    def __init__(self, path: Path, width: int, identity: str, *, restart: bool = False) -> None:
        self._arrow = require("pyarrow", "parquet", "writing Parquet")
        self._parquet = require("pyarrow.parquet", "parquet", "writing Parquet")
        self._schema = self._arrow.schema(
            {
                "text": self._arrow.string(),
                "embedding": self._arrow.list_(self._arrow.float32(), width),
            }
        )
        super().__init__(path, width, identity, restart=restart)

    def _start(self) -> bytes:
        return self._schema.serialize().to_pybytes()  # type: ignore[no-any-return]

    def _block(self, texts: Sequence[str], embeddings: Float32) -> bytes:
        flat = self._arrow.array(embeddings.reshape(-1))
        lists = self._arrow.FixedSizeListArray.from_arrays(flat, self.width)
        batch = self._arrow.record_batch(
            [self._arrow.array(texts, self._arrow.string()), lists], schema=self._schema
        )
        return batch.serialize().to_pybytes()  # type: ignore[no-any-return]

    def _row_groups(self) -> Iterator[Any]:
        """The rows as tables of ROW_GROUP; the last is shorter."""
        waiting: list[Any] = []
        rows = 0
        for batch in self._arrow.ipc.open_stream(self._stream):
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= ROW_GROUP:
                table = self._arrow.Table.from_batches(waiting)
                yield table.slice(0, ROW_GROUP)
                waiting = table.slice(ROW_GROUP).to_batches()
                rows -= ROW_GROUP
        if rows:
            yield self._arrow.Table.from_batches(waiting, self._schema)

    def _publish(self) -> None:
        self._stream.seek(0)
        temporary = self.path.with_name(f"{self.path.name}.new")
        try:
            with self._parquet.ParquetWriter(temporary, self._schema) as writer:
                for table in self._row_groups():
                    writer.write_table(table, row_group_size=ROW_GROUP)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(self.path)
            self.partial.unlink()
        finally:
            temporary.unlink(missing_ok=True)


FORMATS: dict[str, type[EmbeddingFile]] = {
    "npy": NpyFile,
    "jsonl": JsonLinesFile,
    "parquet": ParquetFile,
}


def file_format(path: Path, name: str | None) -> type[EmbeddingFile]:
    """The format called `name`, or what the path ends in."""
    name = path.suffix.removeprefix(".") if name is None else name
    if name not in FORMATS:
        raise ValueError(
            f"the format must be one of {', '.join(FORMATS)}, got {name!r}; when it is not given, "
            "the end of the file's name says it"
        )
    return FORMATS[name]


def write_embeddings(
    out: EmbeddingFile, texts: Iterator[str], encode: Callable[[list[str]], Float32]
) -> Iterator[int]:
    """Write the rows of `texts`, behind those that :meth:`EmbeddingFile.check_kept` has taken.

    Yields
    ------
    int
        Rows that count since the last time; the file is finished when there are no more.
    """
    for _, part in chunks(texts, CHUNK):
        out.append(part, encode(part))
        yield len(part)
    out.finish()


def npy_header(rows: int, width: int) -> bytes:
    """The header of a .npy file, NPY_HEADER bytes long.

    NumPy's own writer pads it to a multiple of 64 bytes, which may grow with the number of rows.
    """
    description = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    magic = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little")
    return magic + description.encode().ljust(NPY_HEADER - 11) + b"\n"


def json_lines(texts: Sequence[str], embeddings: Float32) -> bytes:
    """One line for each text; numbers have the nine digits that give the same float32 back
    (zero without its sign).

    Raises
    ------
    ValueError
        An embedding that is not finite: JSON has no such numbers.
    """
    if not np.isfinite(embeddings).all():
        raise ValueError("an embedding holds NaN or infinity, which JSON does not have; use .npy")
    form = ", ".join(["%.9g"] * embeddings.shape[1])
    out = io.StringIO()
    for text, embedding in zip(texts, embeddings, strict=True):
        quoted = json.dumps(text, ensure_ascii=False).translate(LINE_ENDS)
        out.write(f'{{"text": {quoted}, "embedding": [{form % tuple(embedding.tolist())}]}}\n')
    return out.getvalue().encode()
