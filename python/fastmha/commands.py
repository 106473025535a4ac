"""The commands: translate, attend, info, bench; embed has a file of its own.

Results go to stdout and everything else to stderr, so that a pipe carries translations alone.
Mistakes of the user come back as one line and exit status 1 (2 for wrong options), never as a
traceback.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import fastmha as fm
from fastmha.attend_page import MOST_WEIGHTS, attend_page, encoder_page
from fastmha.command_tools import Threads, fail, mistakes_as_one_line, set_threads
from fastmha.embed_command import embed
from fastmha.encoder_model import EncoderModel
from fastmha.lines import chunks, lines
from fastmha.models import demo_model_path
from fastmha.translation_model import TranslationModel, UnknownCharacterWarning

# Lines that are read, translated and written before the next are read: the memory that any number
# of them needs.
CHUNK = 1024
NAMED = 5  # unknown characters that are named for each sentence

app = typer.Typer(
    name="fastmha",
    help="Transformers on CPUs: translate, embed, look at the attention, inspect this build.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Model = Annotated[
    Path | None,
    typer.Option(
        help="Directory of a model; the Chinese-to-English one that comes along if not given.",
        show_default=False,
    ),
]
Beam = Annotated[int, typer.Option(min=1, help="Hypotheses kept per sentence; 1 is greedy search.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Longest translation in tokens; as long as the model allows if not given."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastmha {fm.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def translate(
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Sentences, one per argument.", show_default=False),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            help="A UTF-8 file with one sentence a line, - for stdin; may be given several times.",
            show_default=False,
        ),
    ] = None,
    beam: Beam = 1,
    threads: Threads = None,
    max_new_tokens: MaxNewTokens = None,
    model: Model = None,
) -> None:
    """Translate sentences; one line of output for each, in order.

    Sentences come from the arguments, then from the files, else from a pipe:

      fastmha translate 我想吃汉堡

      fastmha translate --file sentences.txt > translations.txt

      cat sentences.txt | fastmha translate --beam 4

    Blank lines stay blank. Characters that the model does not know are named on stderr, with their
    line; the rest of the sentence is translated all the same. At a line that is not UTF-8, or
    longer than the model can read, translation stops, with exit status 1; the lines before it are
    translated.
    """
    with mistakes_as_one_line():
        set_threads(threads)
        if text == ["-"]:  # as everywhere: standard input
            text, file = None, [Path("-"), *(file or [])]
        if not text and not file and (sys.stdin is None or sys.stdin.isatty()):
            raise ValueError("nothing to translate: give a sentence, --file, or a pipe")
        _hint_at_files(text or [])
        loaded = fm.load(model or demo_model_path())
        if not isinstance(loaded, TranslationModel):
            raise ValueError(f"{model} does not translate; fastmha embed is for encoders")
        source = lines(text or [], file or ([] if text else [Path("-")]))
        with _progress() as bar:
            task = bar.add_task("translating", total=None)
            for first, chunk in chunks(source, 1 if _interactive(text, file) else CHUNK):
                _name_unknown(loaded, first, chunk)
                with warnings.catch_warnings():  # _name_unknown has said it, with line numbers
                    warnings.simplefilter("ignore", UnknownCharacterWarning)
                    for part in _translate(loaded, first, chunk, beam, max_new_tokens):
                        sys.stdout.write("".join(f"{line}\n" for line in part))
                        sys.stdout.flush()
                        bar.advance(task, len(part))


@app.command()
def attend(
    text: Annotated[
        str, typer.Argument(help="The sentence to translate or encode.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "attention.html"
    ),
    beam: Beam = 1,
    threads: Threads = None,
    max_new_tokens: MaxNewTokens = None,
    model: Model = None,
) -> None:
    """Write the attention of every head of every layer as one self-contained page.

      fastmha attend 我想吃汉堡 -o page.html

      fastmha attend --model all-MiniLM-L6-v2 "A cat sleeps." -o page.html

    The page needs no network: open it in any browser. Hover a cell to read its weight.
    """
    with mistakes_as_one_line():
        set_threads(threads)
        loaded = fm.load(model or demo_model_path())
        if isinstance(loaded, EncoderModel):
            if beam != 1 or max_new_tokens is not None:
                raise ValueError("--beam and --max-new-tokens are for models that translate")
            encoded = loaded.attention(text, most_weights=MOST_WEIGHTS)
            output.write_text(encoder_page(text, encoded), "utf-8")
            print(output)
            return
        _name_unknown(loaded, 1, [text])
        maps = loaded.attention(text, beam_size=beam, max_new_tokens=max_new_tokens)
        output.write_text(attend_page(text, maps), "utf-8")
        print(f"{maps.translation}\n{output}")


app.command()(embed)


@app.command()
def info() -> None:
    """Print the facts of this build: version, compiler, instruction sets, threads, OpenMP."""
    with mistakes_as_one_line():
        facts = fm.info()
        openmp = facts["openmp_version"] if facts["openmp"] else "no"
        lines = {
            "version": facts["version"],
            "compiler": f"{facts['compiler']}, {facts['build_type']}",
            "CPU": facts["cpu"],
            "ISA in use": facts["isa"],
            "ISAs available": ", ".join(facts["available_isas"]),
            "threads": facts["num_threads"],
            "OpenMP": openmp,
        }
        for name, value in lines.items():
            print(f"{name:<15}{value}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure fastmha beside NumPy, PyTorch, ONNX Runtime and OpenVINO: what is installed of them.

      fastmha bench --suite attention --quick

      fastmha bench --json results.json --html report.html

    All its options: fastmha bench -- --help. The benchmarks are the folder bench/ of the source
    tree, not of the installed package: call this anywhere in a checkout.
    """
    here = Path.cwd()
    tops = [top for top in (here, *here.parents) if (top / "bench" / "__main__.py").is_file()]
    if not tops:
        fail(
            "the benchmarks are part of the source tree, not of the installed package: "
            "call this in a checkout, where bench/ is (git clone, then cd fastmha)"
        )
    # A process of its own: benchmarks set threads and import rivals.
    path = os.pathsep.join([str(tops[0]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench", *context.args]
    raise typer.Exit(subprocess.call(command, env={**os.environ, "PYTHONPATH": path}))


def _translate(
    model: TranslationModel, first: int, chunk: list[str], beam: int, max_new_tokens: int | None
) -> Iterator[list[str]]:
    """Translate a chunk. At a sentence that the model cannot take: what is before it, then the
    error, with its line.
    """

    def translated(lines: list[str]) -> list[str]:
        return model.translate(lines, beam_size=beam, max_new_tokens=max_new_tokens)

    limit = model.config.max_positions
    try:
        whole = translated(chunk)
    except ValueError:
        for index, line in enumerate(chunk):
            # one end token goes behind each sentence
            count = len(model.tokenize(line)) + 1
            if count > limit:
                if index:
                    yield translated(chunk[:index])
                raise ValueError(
                    f"line {first + index}: {count} tokens, the model has {limit} positions; "
                    "split it"
                ) from None
        raise
    yield whole


def _name_unknown(model: TranslationModel, first: int, chunk: list[str]) -> None:
    """One line on stderr for each sentence with characters that the model does not know."""
    for number, line in enumerate(chunk, first):
        pieces = model.unknown(line)
        if pieces:
            named = ", ".join(map(str, pieces[:NAMED]))
            rest = f" and {len(pieces) - NAMED} more" if len(pieces) > NAMED else ""
            print(f"fastmha: line {number}: unknown to the model: {named}{rest}", file=sys.stderr)


def _hint_at_files(text: list[str]) -> None:
    for sentence in text:
        if len(sentence) < 256 and Path(sentence).is_file():
            print(
                f"fastmha: {sentence} is a file; to translate its lines: "
                f"fastmha translate --file {sentence}",
                file=sys.stderr,
            )


def _interactive(text: list[str] | None, file: list[Path] | None) -> bool:
    """Somebody types sentences and waits for each translation."""
    stdin = (not text and not file) or Path("-") in (file or [])
    return stdin and sys.stdin is not None and sys.stdin.isatty()


def _progress() -> Progress:
    """A progress bar on stderr, when that is a terminal."""
    console = Console(stderr=True)
    # With translations appearing on the same terminal a bar would only be in their way.
    shown = console.is_terminal and not sys.stdout.isatty()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TextColumn("lines"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # what is translated is no part of the bar
        redirect_stderr=False,
        disable=not shown,
    )
