"""Files of embeddings that go on after an interruption: .npy, JSON Lines, Parquet."""

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmha._extras import require
from fastmha._types import Float32
from fastmha.growing_file import GrowingFile
from fastmha.lines import chunks

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


class EmbeddingFile(GrowingFile, ABC):
    """A file of embeddings that is being written.

    Parameters
    ----------
    path, identity, restart, anew
        As for :class:`GrowingFile`.
    width : int
        Numbers in an embedding.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        identity: str,
        *,
        restart: bool = False,
        anew: str | None = None,
    ) -> None:
        self.width = width
        super().__init__(path, f"{width} {identity}", restart=restart, anew=anew)

    def append(self, texts: Sequence[str], embeddings: Float32) -> None:
        """Write rows, and return when they count."""
        self.extend(texts, self._block(texts, embeddings))

    @abstractmethod
    def _block(self, texts: Sequence[str], embeddings: Float32) -> bytes:
        """Rows as they are written."""


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

    def _block(self, texts: Sequence[str], embeddings: Float32) -> bytes:
        return json_lines(texts, embeddings)


class ParquetFile(EmbeddingFile):
    """Columns ``text`` and ``embedding`` (a list of `width` floats).

    Parquet cannot be cut off and continued, so rows are kept as a stream of Arrow messages, which
    can, and become Parquet at the end, block by block.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        identity: str,
        *,
        restart: bool = False,
        anew: str | None = None,
    ) -> None:
        self._arrow = require("pyarrow", "parquet", "writing Parquet")
        self._parquet = require("pyarrow.parquet", "parquet", "writing Parquet")
        self._schema = self._arrow.schema(
            {
                "text": self._arrow.string(),
                "embedding": self._arrow.list_(self._arrow.float32(), width),
            }
        )
        super().__init__(path, width, identity, restart=restart, anew=anew)

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
    if not isinstance(name, str) or name not in FORMATS:
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
