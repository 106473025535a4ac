"""fastmha translate: lines of text -> translations, in bounded memory, with a file that can be
continued.

Lines are read some hundreds ahead, so that the batch stays full, and written in their order.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import fastmha as fm
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
from fastmha.decoding import BATCH_SIZE
from fastmha.growing_file import GrowingFile
from fastmha.lines import Lines
from fastmha.models import demo_model_path
from fastmha.translation_model import TranslationModel
from fastmha.translation_results import Translation
from fastmha.translation_texts import TextTooLongError

__all__ = [
    "Beam",
    "MaxNewTokens",
    "Model",
    "SourceLanguage",
    "TargetLanguage",
    "name_unknown",
    "translate",
]

NAMED = 5  # unknown characters that are named for each sentence
# Lines count on disk when so many seconds have passed, or so many lines: an interruption costs no
# more than that and what is being translated.
KEEP_SECONDS, KEEP_LINES = 1.0, 4096

Model = Annotated[
    Path | None,
    typer.Option(
        help="Directory of a model; the Chinese-to-English one that comes along if not given.",
        show_default=False,
    ),
]
Beam = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Hypotheses kept per sentence, 1 is greedy search; what the model's files say, mostly "
        "1, if not given.",
        show_default=False,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Longest translation in tokens; as long as the model allows if not given.",
        show_default=False,
    ),
]
SourceLanguage = Annotated[
    str | None,
    typer.Option(
        "--src-lang", help="The language of the sentences, by the model's name.", show_default=False
    ),
]
TargetLanguage = Annotated[
    str | None,
    typer.Option("--tgt-lang", help="The language to translate into.", show_default=False),
]


def translate(
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Sentences, one per argument.", show_default=False),
    ] = None,
    *,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            help="A UTF-8 file with one sentence a line, - for stdin; may be given several times.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; - for stdout.")
    ] = STANDARD,
    src_lang: SourceLanguage = None,
    tgt_lang: TargetLanguage = None,
    beam: Beam = None,
    max_new_tokens: MaxNewTokens = None,
    n_best: Annotated[
        int, typer.Option(min=1, help="Lines of output for each sentence, the best first.")
    ] = 1,
    scores: Annotated[
        bool, typer.Option("--scores", help="Put the score and a tab in front of each line.")
    ] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut off what is longer than the model can read.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, help="Sentences that run together; results do not depend on it.")
    ] = BATCH_SIZE,
    threads: Threads = None,
    force: Force = False,
    restart: Restart = False,
) -> None:
    """Translate sentences; one line of output for each, in order.

    Sentences come from the arguments, then from the files, else from a pipe:

      fastmha translate 我想吃汉堡

      fastmha translate --model opus-mt-en-de --file sentences.txt -o translations.txt

      cat sentences.txt | fastmha translate --beam 4

    Blank lines stay blank. Characters that the model does not know are named on stderr, with their
    line; the rest of the sentence is translated all the same. At a line that is not UTF-8, or
    longer than the model can read, translation stops, with exit status 1; the lines before it are
    translated. An interrupted job with --output goes on where it stopped when the same command is
    called again: what is done is in OUTPUT.partial until everything is there.
    """
    with mistakes_as_one_line():
        set_threads(threads)
        if text == ["-"]:  # as everywhere: standard input
            text, file = None, [STANDARD, *(file or [])]
        if not text and not file and (sys.stdin is None or sys.stdin.isatty()):
            raise ValueError("nothing to translate: give a sentence, --file, or a pipe")
        _hint_at_files(text or [])
        sources = file or ([] if text else [STANDARD])
        if output != STANDARD:
            check_output(output, force, sources)
        if beam is not None and n_best > beam:
            raise ValueError(f"--n-best ({n_best}) must be at most --beam ({beam})")
        loaded = fm.load(model or demo_model_path())
        if not isinstance(loaded, TranslationModel):
            raise ValueError(f"{model} does not translate; fastmha embed is for encoders")
        options = {
            **{"beam_size": beam, "max_new_tokens": max_new_tokens, "truncate": truncate},
            **{"src_lang": src_lang, "tgt_lang": tgt_lang},
        }
        job = Job(loaded, text or [], sources, n_best, scores, options)
        if output == STANDARD:
            job.to_stdout(batch)
        else:
            job.to_file(output, batch, restart)


class Job:
    """What is translated, and how."""

    def __init__(
        self,
        model: TranslationModel,
        text: list[str],
        files: list[Path],
        n_best: int,
        scores: bool,
        options: dict[str, Any],
    ) -> None:
        self.model, self.text, self.files = model, text, files
        self.n_best, self.scores, self.options = n_best, scores, options

    def to_stdout(self, batch: int) -> None:
        # Somebody types sentences and waits for each translation.
        typed = STANDARD in self.files and sys.stdin is not None and sys.stdin.isatty()
        with self._progress() as (bar, task):
            for _, out in self._translated(self._lines(), batch, one_by_one=typed):
                write_out(out)
                bar.advance(task)

    def to_file(self, path: Path, batch: int, restart: bool) -> None:
        options = [self.n_best, self.scores, *self.options.values()]
        settings = f"{options} {self.model.settings}"
        model = self.model.fingerprint()
        with TranslationFile(
            path, model, settings=settings, restart=restart, anew=BEGIN_ANEW
        ) as out:
            source = self._lines()
            with going_on(out, source, "translating", "lines", self._counted) as (bar, task):
                try:
                    for line, text in self._translated(source, batch):
                        out.append(line, text)
                        bar.advance(task)
                finally:
                    out.keep()
            out.finish()

    def _lines(self) -> Lines:
        return Lines(self.text, self.files)

    @property
    def _counted(self) -> list[Path]:
        """Files whose lines are all there is to do; - when that is not known."""
        return [STANDARD] if self.text else self.files

    def _progress(self) -> Any:
        return progress_bar("translating", "lines", self._counted)

    def _translated(
        self, source: Lines, batch: int, *, one_by_one: bool = False
    ) -> Iterator[tuple[str, str]]:
        """Each line with what is written for it."""
        waiting: deque[tuple[str, str]] = deque()  # lines that were read ahead, and their places

        def read() -> Iterator[str]:
            for line in source:
                name_unknown(self.model, source.place, line)
                waiting.append((line, source.place))
                yield line

        parts = ([line] for line in read()) if one_by_one else iter([read()])
        try:
            for part in parts:
                for found in self._found(part, batch):
                    yield waiting.popleft()[0], self._written(found)
        except TextTooLongError as error:
            # it is raised when all lines before it are through
            raise ValueError(f"{waiting[0][1]}: {error.reason}") from None

    def _found(self, texts: Any, batch: int) -> Iterator[list[Translation] | list[str]]:
        options = {**self.options, "batch_size": batch}
        if self.n_best == 1 and not self.scores:
            return ([text] for text in self.model.translate_stream(texts, **options))
        return self.model.n_best_stream(texts, self.n_best, **options)

    def _written(self, found: list[Translation] | list[str]) -> str:
        """`n_best` lines, always."""
        rows = [self._row(translation) for translation in found]
        rows += [""] * (self.n_best - len(rows))  # fewer were to be found
        return "".join(f"{row}\n" for row in rows)

    def _row(self, translation: Translation | str) -> str:
        if isinstance(translation, str):
            return one_line(translation)
        text = one_line(translation.text)
        return f"{translation.score:.6g}\t{text}" if self.scores else text


class TranslationFile(GrowingFile):
    """Lines of translations that are being written."""

    def __init__(
        self,
        path: Path,
        identity: str,
        *,
        settings: str | None = None,
        restart: bool = False,
        anew: str | None = None,
    ) -> None:
        super().__init__(path, identity, settings=settings, restart=restart, anew=anew)
        self._waiting: list[tuple[str, str]] = []  # in pairs: an interruption parts none
        self._kept_at = time.monotonic()

    def append(self, line: str, text: str) -> None:
        """Write the row of `line`; it counts before long."""
        self._waiting.append((line, text))
        passed = time.monotonic() - self._kept_at
        if passed >= KEEP_SECONDS or len(self._waiting) >= KEEP_LINES:
            self.keep()

    def keep(self) -> None:
        """Let the rows so far count."""
        if self._waiting:
            lines, block = zip(*self._waiting, strict=True)
            rows = self.rows
            try:
                self.extend(lines, "".join(block).encode())
            finally:
                if self.rows > rows:  # interrupted behind it: they count
                    self._waiting = []
        self._kept_at = time.monotonic()


def one_line(text: str) -> str:
    """A translation is one line of output whatever it holds."""
    return text.replace("\r", " ").replace("\n", " ") if "\n" in text or "\r" in text else text


def name_unknown(model: TranslationModel, place: str, line: str) -> None:
    """One line on stderr for a sentence with characters that the model does not know."""
    pieces = model.unknown(line)
    if pieces:
        named = ", ".join(map(str, pieces[:NAMED]))
        rest = f" and {len(pieces) - NAMED} more" if len(pieces) > NAMED else ""
        print(f"fastmha: {place}: unknown to the model: {named}{rest}", file=sys.stderr)


def _hint_at_files(text: list[str]) -> None:
    for sentence in text:
        if len(sentence) < 256 and Path(sentence).is_file():
            print(
                f"fastmha: {sentence} is a file; to translate its lines: "
                f"fastmha translate --file {sentence}",
                file=sys.stderr,
            )
