"""The README's section of numbers, made from a run: nothing in it is typed by hand."""

from collections.abc import Iterable

from bench.report import words
from bench.report.bounds import bound
from bench.results import FIRST_EMBEDDING, OTHER_ISA, OURS, Result, Run, isa_verdicts
from bench.rivals import LESS_PRECISE

RIVALS = {rival: name for rival, name in words.NAMES.items() if rival != OURS}
# Their rivals are others: tables of their own.
SENTENCES, GENERATION = "encode", "generate"
BEGIN, END = "<!-- python -m bench.report ... --readme -->", "<!-- end of what bench wrote -->"
# What the section shows, of all workloads: one of each kind, and the ends of each scale.
SHOWN = (
    "attention 1024 x 8 x 5 x 64",
    "attention 1 x 8 x 5 x 64",
    "attention 1 x 8 x 128 x 64",
    "attention 32 x 12 x 128 x 64",
    "attention 32 x 12 x 128 x 64, key_lengths 64..128",
    "attention 1 x 8 x 512 x 64, causal",
    "attention 1 x 8 x 2048 x 64",
    "attention 1 x 8 x 2048 x 128",
    "attention 1 x 8 x 2048 x 64, window 256",
    "attention 1 x 32/8 x 512 x 128, GQA",
    "ragged attention, 64 sequences of 8..512, 8 x 64",
    "decode 1 x 32 x 4096 x 128",
    "decode 1 x 32/8 x 4096 x 128",
    "linear 5120 x 512 -> 512",
    "linear 4096 x 768 -> 3072",
    "linear 1 x 4096 -> 4096",
    "linear 4 x 768 -> 3072",
    "layer_norm 4096 x 768",
    "softmax 4096 x 3072",
    "gelu 4096 x 3072",
    "MultiHeadAttention 1024 x 5 x 512, 8 heads",
    "EncoderBlock 512/8/2048, 1024 x 5",
    "EncoderBlock 512/8/2048, 1 x 5",
    "EncoderBlock 512/8/2048, 4 x 512",
    "DecoderBlock 512/8/2048, 1024 x 5",
    "EncoderBlock 768/12/3072, 32 x 100",
    "DecoderBlock 768/12/3072, 1 x 128",
)

SENTENCES_INTRO = (
    "Sentence embeddings: the real all-MiniLM-L6-v2, token ids in, embeddings out; rivals sort, "
    "group and pad as suits them best. Below, a process from its start to its first embedding, and "
    "the memory that it took."
)
GENERATION_INTRO = (
    "Translation, token by token: a Transformer-base (Marian's: 6 + 6 layers, 512 wide, 8 heads, "
    "2048, vocabulary 32,000) of random weights, the same for everybody, and the same answers. The "
    "best rival is the best of those in float32; the answers of int8 are others, measured in a run "
    "of its own."
)


def section(run: Run, others: Iterable[Run] = ()) -> str:
    """`others`: the same workloads with other instruction sets."""
    by_name = {result.name: result for result in run.measured}
    absent = [name for name in SHOWN if name not in by_name and not _failed(run, name)]
    if absent:
        raise ValueError(
            f"README: the run lacks {len(absent)} of the {len(SHOWN)} workloads that are shown, "
            f"such as {absent[0]!r}; measure all suites, or give the parts of the run together"
        )
    everybody = _present(run.measured)
    lines = [_intro(run, everybody), "", *_table([by_name[n] for n in SHOWN if n in by_name])]
    sentences, generated = (
        [result for result in run.measured if result.suite == suite]
        for suite in (SENTENCES, GENERATION)
    )
    if sentences:
        lines += ["", SENTENCES_INTRO, "", *_table(sentences)]
    if run.startup:
        lines += ["", *_starts(run)]
    if generated:
        lines += ["", GENERATION_INTRO, "", *_table(generated)]
    below = [*(_isa(run, other) for other in others), _losses(run), "", _missed(run)]
    if run.failures or run.unfinished:
        below += ["", _not_measured(run)]
    return "\n".join([BEGIN, *lines, "", *below, END]) + "\n"


def _present(results: list[Result]) -> list[str]:
    return [name for name in RIVALS if any(result.best(name) for result in results)]


def _table(results: list[Result]) -> list[str]:
    """With a column for each rival that takes part in one of them."""
    rivals = _present(results)
    titles = ["workload", OURS, *(RIVALS[name] for name in rivals), "best rival", "of the limit"]
    lines = [_line(titles), _line(["---"] * len(titles))]
    return lines + [_line(_cells(result, rivals)) for result in results]


def _starts(run: Run) -> list[str]:
    """From the start of a process to its first embedding, one column each."""
    titles = ["all-MiniLM-L6-v2", *(words.STARTS[record["rival"]] for record in run.startup)]
    cells = [
        f"{words.duration(record['seconds'])}, {words.megabytes(record['bytes'])}"
        for record in run.startup
    ]
    cells = [f"**{cells[0]}**" if run.startup[0]["rival"] == OURS else cells[0], *cells[1:]]
    row = [f"{FIRST_EMBEDDING}: time, memory", *cells]
    return [_line(titles), _line(["---"] * len(titles)), _line(row)]


def _failed(run: Run, name: str) -> bool:
    return any(result.name == name for result in run.failures)


def _intro(run: Run, rivals: list[str]) -> str:
    machine, core = run.machine, run.machine["fastmha"]
    versions = ", ".join(
        f"{RIVALS[name]} {machine['versions'][name]}" for name in rivals if name not in LESS_PRECISE
    )
    peak = max((result.peak_gflops for result in run.measured), default=0.0)
    return (
        f"{core['cpu']}, {machine['threads']} threads, {core['isa']}, float32, {core['compiler']}, "
        f"{versions}; medians of `python -m bench`, {machine['date'][:10]}. Behind a rival's time: "
        f"that time as a multiple of ours. The limit is what the same run measured: {peak:.0f} "
        f"GFLOP/s of multiply-adds, {machine['memory_gbps']['read']:.0f} GB/s of reads from memory "
        "(more from caches)."
        + (" This was a quick look, not a measurement." if machine.get("quick") else "")
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(result: Result, rivals: list[str]) -> list[str]:
    cells = [result.name, f"**{words.speed(result, result.ours)}**"]
    for rival in rivals:
        best = result.best(rival)
        if best is None:
            cells.append("")
            continue
        ratio = result.ratio(best)
        times = words.times(ratio)
        # a loss stands out as a gain does not
        marked = f"**{times}**" if rival in result.slower_than else times
        cells.append(f"{words.speed(result, best)} ({marked})")
    cells.append(words.times(result.against_best))
    share = (
        "(a call's overhead)"
        if result.is_overhead
        else f"{words.percent(result.share(result.ours))} of {result.limit}"
    )
    return [*cells, share]


def _losses(run: Run) -> str:
    lost = []
    for result in run.measured:
        to = [f"{RIVALS[r]} {words.times(result.against(r))}" for r in result.slower_than]
        if to:
            lost.append(f"{result.name} ({', '.join(to)})")
    count = len(run.measured)
    suites = ", ".join(dict.fromkeys(result.suite for result in run.measured))
    if not lost:
        return f"Slower than a rival in none of the {count} workloads of {suites}."
    return (
        f"Slower than a rival in {len(lost)} of the {count} workloads of {suites}: "
        f"{'; '.join(lost)}."
    )


def _missed(run: Run) -> str:
    missed = words.missed(run.verdicts)
    reached = sum(verdict.reached for _, verdict in run.verdicts)
    text = f"Of {len(run.verdicts)} targets {reached} are reached"
    if not missed:
        return f"{text}."
    rows = [[name, ", ".join(found), bound(name)] for name, found in missed.items()]
    table = [["missed by", "reached", "what bounds it"], ["---"] * 3, *rows]
    summary = f"<details><summary>{text}; the others</summary>"
    return "\n".join([summary, "", *map(_line, table), "", "</details>"])


def _not_measured(run: Run) -> str:
    reasons = [str(result.failure) for result in run.failures]
    reasons += [f"{what}: {why}" for what, why in run.unfinished.items()]
    return f"Not measured: {'; '.join(reasons)}."


def _isa(run: Run, other: Run) -> str:
    verdicts = [verdict for _, verdict in isa_verdicts(run, other)]
    reached, name = sum(verdict.reached for verdict in verdicts), other.machine["fastmha"]["isa"]
    if name == "generic":
        asked = "are no slower than NumPy held to the same instructions"
    else:
        asked = f"reach at least {OTHER_ISA:.0%} of AVX-512's share, each of its own limit"
    return f"With `FASTMHA_ISA={name}`, {reached} of {len(verdicts)} workloads {asked}.\n"


def replace_section(readme: str, run: Run, others: Iterable[Run] = ()) -> str:
    """The README's text with its section made anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END + "\n")
    if not begin or not end:
        raise ValueError(f"README: the lines {BEGIN!r} and {END!r} are expected")
    return before + section(run, others) + after
