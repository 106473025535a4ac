"""The README's section of numbers, made from a run: nothing in it is typed by hand."""

from bench.report import words
from bench.results import OURS, Result, Run

RIVALS = {rival: name for rival, name in words.NAMES.items() if rival != OURS}
BEGIN, END = "<!-- python -m bench.report ... --readme -->", "<!-- end of what bench wrote -->"
# What the section shows, of all workloads: one of each kind.
SHOWN = (
    "attention 1024 x 8 x 5 x 64",
    "attention 1 x 8 x 5 x 64",
    "attention 32 x 12 x 128 x 64",
    "attention 32 x 12 x 128 x 64, key_lengths 64..128",
    "attention 1 x 8 x 512 x 64, causal",
    "attention 1 x 8 x 2048 x 64",
    "attention 1 x 8 x 2048 x 64, window 256",
    "ragged attention, 64 sequences of 8..512, 8 x 64",
    "decode 1 x 32 x 4096 x 128",
    "decode 1 x 32/8 x 4096 x 128",
    "linear 5120 x 512 -> 512",
    "linear 1 x 4096 -> 4096",
    "layer_norm 4096 x 768",
    "MultiHeadAttention 1024 x 5 x 512, 8 heads",
    "EncoderBlock 512/8/2048, 1024 x 5",
    "EncoderBlock 512/8/2048, 1 x 5",
    "EncoderBlock 512/8/2048, 4 x 512",
    "DecoderBlock 512/8/2048, 1024 x 5",
    "DecoderBlock 768/12/3072, 1 x 128",
)


def section(run: Run) -> str:
    shown = [result for name in SHOWN for result in run.measured if result.name == name]
    rivals = [name for name in RIVALS if name in run.machine["versions"]]
    titles = ["workload", OURS, *(RIVALS[name] for name in rivals), "share of the limit"]
    lines = [_intro(run, rivals), "", _line(titles), _line(["---"] * len(titles))]
    lines += [_line(_cells(result, rivals)) for result in shown]
    return "\n".join([BEGIN, *lines, "", _losses(run), END]) + "\n"


def _intro(run: Run, rivals: list[str]) -> str:
    machine, core = run.machine, run.machine["fastmha"]
    versions = ", ".join(f"{RIVALS[name]} {machine['versions'][name]}" for name in rivals)
    peak = max((result.peak_gflops for result in run.measured), default=0.0)
    return (
        f"{core['cpu']}, {machine['threads']} threads, {core['isa']}, float32, {core['compiler']}, "
        f"{versions}; medians of `python -m bench`, {machine['date'][:10]}. Behind a rival's time: "
        f"that time as a multiple of ours. The limit is what the same run measured: {peak:.0f} "
        f"GFLOP/s of multiply-adds, {machine['memory_gbps']['read']:.0f} GB/s of reads from memory "
        "(more from caches)."
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(result: Result, rivals: list[str]) -> list[str]:
    cells = [result.name, f"**{words.duration(result.median(result.ours))}**"]
    for rival in rivals:
        best = result.best(rival)
        if best is None:
            cells.append("")
            continue
        ratio = result.ratio(best)
        times = words.times(ratio)
        # a loss stands out as a gain does not
        cells.append(
            f"{words.duration(result.median(best))} ({f'**{times}**' if ratio < 1 else times})"
        )
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
    if not lost:
        return f"None of the {count} workloads is slower than a rival."
    return f"Slower than a rival in {len(lost)} of {count} workloads: {'; '.join(lost)}."


def replace_section(readme: str, run: Run) -> str:
    """The README's text with its section made anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END + "\n")
    if not begin or not end:
        raise ValueError(f"README: the lines {BEGIN!r} and {END!r} are expected")
    return before + section(run) + after
