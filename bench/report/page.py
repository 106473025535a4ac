"""One page that needs nothing else: style, pictures and numbers in a file of some hundred KB."""

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from bench.limits import disturbed
from bench.report import bars, curves, tables, words
from bench.results import OURS, Run, isa_verdicts
from bench.rivals import LESS_PRECISE

STYLE = Path(__file__).with_name("style.css")
SUITES = {
    "attention": "Attention",
    "decode": "Decoding: one query over a cache",
    "linear": "Linear layers",
    "norm": "Norms, softmax, activations",
    "blocks": "Attention modules, encoder and decoder blocks",
    "encode": "Sentence embeddings: all-MiniLM-L6-v2",
    "generate": "Translation, token by token",
}


def render(run: Run, others: Iterable[Run] = ()) -> str:
    """`others`: the same workloads with other instruction sets."""
    others = list(others)
    sections = [_head(run), _warnings(run), _losses(run)]
    sections += [_suite(run, suite) for suite in SUITES]
    sections += [_startup(run), _roofline(run), _scaling(run), _errors(run)]
    sections += [_isas(run, others), _targets(run, others), _numbers(run), _method(run)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastmha, measured</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


# ---- top of the page -----------------------------------------------------------------------------


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def _head(run: Run) -> str:
    machine, core = run.machine, run.machine["fastmha"]
    rivals = [name for name in machine["versions"] if name not in (OURS, *LESS_PRECISE)]
    versions = ", ".join(f"{words.NAMES[n]} {machine['versions'][n]}" for n in rivals)
    missing = (
        f" Not installed, so not compared: {', '.join(machine['missing'])}."
        if machine["missing"]
        else ""
    )
    look = " This was a quick look, not a measurement." if machine.get("quick") else ""
    if machine.get("rivals_limited"):
        look += f" Rivals were held to {core['isa']} too."
    facts = (
        f"{core['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB; {machine['threads']} "
        f"threads for everybody; fastmha {core['version']} on {core['isa']}, {core['compiler']}. "
        f"{versions}, Python {machine['python']}; NumPy's BLAS: {machine['blas']}. "
        f"{machine['platform']}, {machine['date'][:10]}.{missing}{look}"
    )
    links = [
        ("losses", "losses"),
        *((suite, suite) for suite in SUITES if any(r.suite == suite for r in run.measured)),
        *([("startup", "start")] if run.startup else []),
        ("roofline", "roofline"),
        ("scaling", "scaling"),
        ("accuracy", "accuracy"),
        ("targets", "targets"),
        ("numbers", "all numbers"),
        ("method", "method"),
    ]
    nav = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in links)
    return (
        f"<h1>fastmha beside {', '.join(words.NAMES[name] for name in rivals)}</h1>"
        '<p class="lead">Transformer inference in float32 on a CPU: the same inputs, answers '
        "checked against "
        "float64, the same number of threads, rivals in turns within one run.</p>"
        f"{_tiles(run)}<div class=facts>{escape(facts)}</div><nav>{nav}</nav>"
    )


def _tiles(run: Run) -> str:
    tiles = []
    for rival in run.machine["versions"]:
        ratios = [r for result in run.measured if (r := result.against(rival)) is not None]
        if rival == OURS or not ratios:
            continue
        faster = sum(ratio >= 1 for ratio in ratios)
        tiles.append(
            (
                words.times(geometric_mean(ratios)),
                f"as fast as {words.NAMES[rival]} (geometric mean); "
                f"faster in {faster} of {len(ratios)} workloads",
            )
        )
    asked = [verdict for _, verdict in run.verdicts]
    if asked:
        reached = sum(verdict.reached for verdict in asked)
        tiles.append((f"{reached} / {len(asked)}", "of what was asked for is reached"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(number)}</b><span>{escape(text)}</span></div>'
            for number, text in tiles
        )
        + "</div>"
    )


def _warnings(run: Run) -> str:
    notes = [
        f"Not timed, because the answer is not good enough: {r.failure}." for r in run.failures
    ]
    notes += [f"Not measured: {what}: {why}." for what, why in run.unfinished.items()]
    peaks = [result.peak_gflops for result in run.measured]
    if disturbed(peaks):
        notes.append(
            f"The machine was disturbed: the peak of {max(peaks):.0f} GFLOP/s fell to "
            f"{min(peaks):.0f} around a workload. Measure again before believing a number."
        )
    return "".join(f'<div class="card warning"><p>{escape(note)}</p></div>' for note in notes)


def _losses(run: Run) -> str:
    lost = [(result, rival) for result in run.measured for rival in result.slower_than]
    if not lost:
        return _section(
            "losses", "Where fastmha is slower", "<p>Nowhere among these workloads.</p>"
        )
    lost.sort(key=lambda pair: pair[0].against(pair[1]) or 1.0)
    rows = "".join(
        tables.loss(result, best)
        for result, rival in lost
        if (best := result.best(rival)) is not None
    )
    return _section(
        "losses",
        "Where fastmha is slower",
        f"<p>{len(lost)} of {sum(len(r.rivals) - 1 for r in run.measured)} comparisons, medians; a "
        "difference within the spread counts too.</p>"
        "<div class=card><table><tr><th>workload<th class=number>fastmha<th>faster<th "
        f"class=number>its time<th class=number></tr>{rows}</table></div>",
    )


def _section(anchor: str, heading: str, content: str) -> str:
    return f'<section id="{anchor}"><h2>{escape(heading)}</h2>{content}</section>'


# ---- pictures ------------------------------------------------------------------------------------


def _legend(names: Iterable[str], mark: str = "") -> str:
    entries = ""
    for name in names:
        shown = words.NAMES.get(name, name.removeprefix("suite-"))
        entries += f'<span><i class="{name}"></i>{escape(shown)}</span>'
    return f'<div class="legend">{entries}{mark}</div>'


def _suite(run: Run, suite: str) -> str:
    results = [result for result in run.measured if result.suite == suite]
    if not results:
        return ""
    everybody = run.machine["versions"]
    rivals = [name for name in everybody if any(name in r.rivals for r in results)]
    mark = '<span><i class="mark"></i>target for the share of the limit</span>'
    return _section(
        suite,
        SUITES[suite],
        "<p>How much of the machine's limit each rival reaches: longer is faster. The limit of a "
        "workload is its arithmetic at the peak of the multiply-add units, or its bytes at the "
        "bandwidth of as many bytes, both measured in this run. Behind a bar: the median time, and "
        f"that time as a multiple of fastmha's.</p>{_legend(rivals, mark)}<div "
        f"class=card>{bars.chart(results)}</div>",
    )


def _startup(run: Run) -> str:
    if not run.startup:
        return ""
    return _section(
        "startup",
        "From the start of a process to its first embedding",
        "<p>all-MiniLM-L6-v2, one text, tokeniser included: the median time, and the largest "
        "resident memory of the whole process. Files come from the page cache; rivals load the "
        f"form that they like best.</p><div class=card>{tables.startup(run)}</div>",
    )


def _roofline(run: Run) -> str:
    picture = curves.roofline(run)
    if not picture:
        return ""
    return _section(
        "roofline",
        "Roofline",
        "<p>Every workload by its operations for each byte. The roof is the peak of the "
        "multiply-add units, and what memory can feed; data that stays in a cache between calls "
        f"may lie above the slope.</p>{_legend([OURS, 'torch'])}<div class=card>{picture}</div>",
    )


def _scaling(run: Run) -> str:
    names = list(dict.fromkeys(r.axis[0] for r in run.curves if r.axis))
    cards = [(name, curves.over(run.curves, name)) for name in names]
    threads = curves.threads(run.threads)
    if threads:
        cards.append(("by number of threads", threads))
    if not cards and not run.beside:
        return ""
    content = "".join(
        f"<div class=card><h3>{escape(name)}</h3>{picture}</div>" for name, picture in cards
    )
    return _section(
        "scaling",
        "Scaling",
        "<p>Over length, batch and number of threads. Dashed: what the machine allows.</p>"
        f"{_legend([OURS, 'torch', 'numpy'])}<div "
        f"class=pair>{content}</div>{tables.processes(run)}",
    )


def _errors(run: Run) -> str:
    picture = curves.errors(run)
    if not picture:
        return ""
    suites = dict.fromkeys(f"suite-{result.suite}" for result in run.measured)
    return _section(
        "accuracy",
        "Error beside speed",
        "<p>The largest error against float64 as a multiple of PyTorch's on the same inputs. A "
        "workload above its line is not timed, unless the run was told to (--lenient).</p>"
        f"{_legend(suites)}<div class=card>{picture}</div>",
    )


# ---- tables --------------------------------------------------------------------------------------


def _isas(run: Run, others: list[Run]) -> str:
    if not others:
        return ""
    return _section(
        "isas",
        "Other instruction sets",
        "<p>The same workloads with FASTMHA_ISA set: time, and share of the limit that the same "
        "instructions have. Red: AVX2 with less than 93% of the first one's share, generic code "
        "slower than NumPy.</p><div "
        f"class=card>{tables.isas(run, others)}</div>",
    )


def _targets(run: Run, others: list[Run]) -> str:
    verdicts = [*run.verdicts, *(each for other in others for each in isa_verdicts(run, other))]
    reached = sum(verdict.reached for _, verdict in verdicts)
    return _section(
        "targets",
        "What was asked for",
        f"<p>Reached: {reached} of {len(verdicts)}.</p>"
        f"<div class=card>{tables.targets(verdicts)}</div>",
    )


def _numbers(run: Run) -> str:
    parts = []
    for suite, heading in (*SUITES.items(), ("scaling", "Scaling")):
        results = [r for r in run.results if r.suite == suite and r.failure is None]
        if results:
            parts.append(
                f"<details><summary>{escape(heading)}: {len(results)} workloads</summary>"
                f"<div class=card>{tables.numbers(results)}</div></details>"
            )
    return _section("numbers", "All numbers", "".join(parts))


def _method(run: Run) -> str:
    memory: dict[str, Any] = run.machine["memory_gbps"]
    return _section(
        "method",
        "How it was measured",
        "<p>Every way of every rival first gives its answer, which must agree with float64; ours "
        "must not be further off than twice (linear layers: four times) PyTorch's. Then they take "
        "turns, round after round, who starts changes; after a change the harness waits until the "
        "threads of the one before sleep, and lets the next one warm up untimed. Times are medians "
        "over rounds, the whisker spans the quartiles. Outputs are allocated as a user's call does "
        "it, and, as a way of its own, given as out=. Where a rival can say a workload in several "
        "ways, its fastest counts; so does ours. What is generated must be, token by token, what "
        "float64 generates, near ties apart; its error is the part of the tokens that are others. "
        "int8 is shown for information.</p><p>Memory of this machine in this run: "
        f"{memory['read']:.0f} GB/s read, {memory['add']:.0f} GB/s two read and one written, "
        f"{memory['copy']:.0f} GB/s copied. Masked pairs do not count as arithmetic. The run took "
        f"{run.machine.get('seconds', 0) / 60:.0f} minutes; <code>bench/README.md</code> says how "
        "to repeat it.</p>",
    )
