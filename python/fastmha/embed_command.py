"""fastmha embed: lines of text -> embeddings, in bounded memory, with a file that can be continued.

The lines are read, embedded and written in chunks; at any time one chunk is in memory.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import fastmha as fm
from fastmha._types import Float32
from fastmha.command_tools import (
    BEGIN_ANEW,
    STANDARD,
    Force,
    Restart,
    Threads,
    check_output,
    going_on,
    mistakes_as_one_line,
    progress_bar,
    set_threads,
    write_out,
)
from fastmha.embed_files import (
    CHUNK,
    FORMATS,
    EmbeddingFile,
    file_format,
    json_lines,
    write_embeddings,
)
from fastmha.encoder_model import BATCH_TOKENS, EncoderModel
from fastmha.lines import Lines, chunks

__all__ = ["embed"]


def embed(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="UTF-8 files with one text a line, - for stdin; a pipe if not given.",
            show_default=False,
        ),
    ] = None,
    *,
    model: Annotated[
        Path, typer.Option(help="Directory of an encoder checkpoint.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; - for stdout (JSON Lines).")
    ] = STANDARD,
    format: Annotated[
        str | None,
        typer.Option(
            help="npy, jsonl or parquet; what the output's name ends in if not given.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="How weights are kept; float32 is the only one so far.")
    ] = "float32",
    threads: Threads = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that run together; results do not depend on it.")
    ] = BATCH_TOKENS,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Embeddings of length 1; what the checkpoint says if not given.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Put before every text; what the checkpoint says, mostly nothing, if not given.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    restart: Restart = False,
) -> None:
    """Write the sentence embedding of every line; blank lines are texts, too.

      fastmha embed --model all-MiniLM-L6-v2 texts.txt -o embeddings.npy

      zcat texts.gz | fastmha embed --model all-MiniLM-L6-v2 -o embeddings.parquet

      fastmha embed --model all-MiniLM-L6-v2 < texts.txt > embeddings.jsonl

    Rows are in the order of the lines. An interrupted job goes on where it stopped when the same
    command is called again: what is done is in OUTPUT.partial until everything is there. At a line
    that is not UTF-8 it stops, with exit status 1; the rows before it are kept.
    """
    with mistakes_as_one_line():
        set_threads(threads)
        sources = files or [STANDARD]
        if not files and (sys.stdin is None or sys.stdin.isatty()):
            raise ValueError("nothing to embed: give a file, or a pipe")
        if output != STANDARD:  # first: a directory's name has no format at its end
            check_output(output, force, sources)
        kind = _format(output, format)
        loaded = fm.load(model, dtype)
        if not isinstance(loaded, EncoderModel):
            raise ValueError(f"{model} is not an encoder: it gives no sentence embeddings")
        job = Job(loaded, sources, batch_tokens, normalize, prompt)
        if output == STANDARD:
            job.to_stdout()
        else:
            job.to_file(output, kind, restart)


class Job:
    """What is embedded, and how."""

    def __init__(
        self,
        model: EncoderModel,
        sources: list[Path],
        batch_tokens: int,
        normalize: bool | None,
        prompt: str | None,
    ) -> None:
        self.model, self.sources = model, sources
        self.settings: dict[str, Any] = {
            "batch_tokens": batch_tokens,
            "normalize": normalize,
            "prompt": prompt,
        }

    def _encode(self, texts: list[str]) -> Float32:
        return self.model.encode(texts, **self.settings)

    def to_stdout(self) -> None:
        with progress_bar("embedding", "texts", self.sources) as (bar, task):
            for _, texts in chunks(Lines([], self.sources), CHUNK):
                write_out(json_lines(texts, self._encode(texts)).decode())
                bar.advance(task, len(texts))

    def to_file(self, path: Path, kind: type[EmbeddingFile], restart: bool) -> None:
        identity = self.model.fingerprint(self._encode)
        with kind(
            path, self.model.embedding_dim, identity, restart=restart, anew=BEGIN_ANEW
        ) as out:
            texts = Lines([], self.sources)
            with going_on(out, texts, "embedding", "texts", self.sources) as (bar, task):
                for rows in write_embeddings(out, texts, self._encode):
                    bar.advance(task, rows)


def _format(output: Path, name: str | None) -> type[EmbeddingFile]:
    if output == STANDARD:
        if name not in (None, "jsonl"):
            raise ValueError(f"stdout takes JSON Lines alone; give --output for {name}")
        return FORMATS["jsonl"]
    return file_format(output, name)
