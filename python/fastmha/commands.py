"""The commands: attend, info, bench; translate and embed have files of their own.

Results go to stdout and everything else to stderr, so that a pipe carries translations alone.
Mistakes of the user come back as one line and exit status 1 (2 for wrong options), never as a
traceback.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import fastmha as fm
from fastmha.attend_page import MOST_WEIGHTS, attend_page, encoder_page
from fastmha.command_tools import (
    Command,
    Group,
    Threads,
    check_place,
    fail,
    mistakes_as_one_line,
    set_threads,
)
from fastmha.embed_command import embed
from fastmha.encoder_model import EncoderModel
from fastmha.models import demo_model_path
from fastmha.translate_command import (
    Beam,
    MaxNewTokens,
    Model,
    SourceLanguage,
    TargetLanguage,
    name_unknown,
    translate,
)

app = typer.Typer(
    name="fastmha",
    cls=Group,
    help="Transformers on CPUs: translate, embed, look at the attention, inspect this build.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


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


app.command(cls=Command)(translate)
app.command(cls=Command)(embed)


@app.command(cls=Command)
def attend(
    text: Annotated[
        str, typer.Argument(help="The sentence to translate or encode.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The page to write; one that exists is replaced."),
    ] = Path("attention.html"),
    model: Model = None,
    src_lang: SourceLanguage = None,
    tgt_lang: TargetLanguage = None,
    beam: Beam = None,
    max_new_tokens: MaxNewTokens = None,
    threads: Threads = None,
) -> None:
    """Write the attention of every head of every layer as one self-contained page.

      fastmha attend 我想吃汉堡 -o page.html

      fastmha attend --model all-MiniLM-L6-v2 "A cat sleeps." -o page.html

    The page needs no network: open it in any browser. Hover a cell to read its weight.
    """
    with mistakes_as_one_line():
        set_threads(threads)
        check_place(output)
        loaded = fm.load(model or demo_model_path())
        if isinstance(loaded, EncoderModel):
            if any(value is not None for value in (beam, max_new_tokens, src_lang, tgt_lang)):
                raise ValueError(
                    "--beam, --max-new-tokens, --src-lang and --tgt-lang are for models that "
                    "translate"
                )
            encoded = loaded.attention(text, most_weights=MOST_WEIGHTS)
            output.write_text(encoder_page(text, encoded), "utf-8")
            print(output)
            return
        name_unknown(loaded, "line 1", text)
        maps = loaded.attention(
            text,
            beam_size=beam,
            max_new_tokens=max_new_tokens,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
        )
        output.write_text(attend_page(text, maps), "utf-8")
        print(f"{maps.translation}\n{output}")


@app.command(cls=Command)
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


@app.command(
    cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def bench(context: typer.Context) -> None:
    """Measure fastmha beside its rivals, NumPy and PyTorch among them: what is installed.

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
