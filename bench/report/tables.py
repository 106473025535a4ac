"""The page's tables: all numbers, targets, instruction sets, threads, PyTorch beside us."""

from html import escape

from bench.report import words
from bench.report.bounds import bound
from bench.results import OTHER_ISA, OURS, PLAIN, Result, Run, Verdict
from bench.rivals import rival_of


def _row(cells: list[tuple[str, str]], kind: str = "") -> str:
    tds = "".join(f'<td class="{css}">{escape(cell)}</td>' for cell, css in cells)
    return f'<tr class="{kind}">{tds}</tr>'


def _table(header: list[tuple[str, str]], rows: list[str]) -> str:
    ths = "".join(f'<th class="{css}">{escape(cell)}</th>' for cell, css in header)
    return f"<table><tr>{ths}</tr>{''.join(rows)}</table>"


NUMBERS = [
    "median",
    "quartiles",
    "min",
    "rate",
    "GFLOP/s",
    "GB/s",
    "of limit",
    "max error",
    "time / ours",
]


def numbers(results: list[Result]) -> str:
    """A line with the name of each workload, then one for each way."""
    rows = []
    for result in results:
        heading = f'<td colspan="{len(NUMBERS) + 1}">{escape(result.name)}</td>'
        rows.append(f'<tr class="first name">{heading}</tr>')
        rows += [_row(_numbers_of(result, name)) for name in result.ways]
    header = [("", ""), *((name, "number") for name in NUMBERS)]
    return _table(header, rows)


def _numbers_of(result: Result, name: str) -> list[tuple[str, str]]:
    timing, plain = result.ways[name].timing, name == PLAIN
    ours = rival_of(name) == OURS
    lost = rival_of(name) in result.slower_than and result.ratio(name) < 1
    low, high = words.duration(timing.lower_quartile), words.duration(timing.upper_quartile)
    share = f"{words.percent(result.share(name))} {result.limit}"
    return [
        (words.way(name), "ours" if ours else ""),
        (words.duration(timing.median), "number"),
        (f"{low} .. {high}", "number"),
        (words.duration(timing.minimum), "number"),
        (words.rate(result, name), "number"),
        ("" if plain else words.three(result.gflops(name)), "number"),
        ("" if plain else words.three(result.gbps(name)), "number"),
        ("" if plain else share, "number"),
        (words.error(result.ways[name].error), "number"),
        ("" if ours else words.times(result.ratio(name)), "number lost" if lost else "number"),
    ]


def loss(result: Result, best: str) -> str:
    """A rival's best way that is faster than ours."""
    return _row(
        [
            (result.name, ""),
            (words.duration(result.median(result.ours)), "number"),
            (words.way(best), ""),
            (words.duration(result.median(best)), "number"),
            (f"{words.times(1 / result.ratio(best))} as fast", "number lost"),
        ]
    )


def targets(verdicts: list[tuple[str, Verdict]]) -> str:
    rows, last = [], ""
    for name, verdict in verdicts:
        mark, again = "reached" if verdict.reached else "missed", name == last
        cells = [("" if again else name, ""), (words.verdict(verdict), ""), (mark, mark)]
        cells.append(("" if verdict.reached else bound(name), ""))
        rows.append(_row(cells, "" if again else "first"))
        last = name
    header = [("workload", ""), ("found", ""), ("", ""), ("what bounds it", "")]
    return _table(header, rows)


def isas(run: Run, others: list[Run]) -> str:
    """Time and share of the own limit with every instruction set. In red: AVX2 below 93% of the
    first one's share, generic code slower than NumPy."""
    names = [each.machine["fastmha"]["isa"] for each in (run, *others)]
    by_name = [{r.name: r for r in other.measured} for other in others]
    rows = []
    for result in run.measured:
        share = result.share(result.ours)
        cells = [(result.name, "")]
        cells.append(
            (f"{words.duration(result.median(result.ours))}, {words.percent(share)}", "number")
        )
        for isa, other in zip(names[1:], by_name, strict=True):
            theirs = other.get(result.name)
            if theirs is None:
                cells.append(("", ""))
                continue
            found = theirs.share(theirs.ours)
            text = f"{words.duration(theirs.median(theirs.ours))}, {words.percent(found)}"
            less = isa == "avx2" and not result.is_overhead and found < OTHER_ISA * share
            cells.append((text, "number lost" if less else "number"))
            numpy = theirs.against("numpy")
            slower = isa == "generic" and numpy is not None and numpy < 1
            cells.append((words.times(numpy), "number lost" if slower else "number"))
        rows.append(_row(cells))
    header = [("workload", ""), (names[0], "number")]
    for name in names[1:]:
        header += [(name, "number"), ("NumPy / ours", "number")]
    return _table(header, rows)


def processes(run: Run) -> str:
    parts = []
    if run.threads:
        parts.append(f"<div class=card><h3>Threads</h3>{_threads(run)}</div>")
    if run.beside:
        rows = [
            _row(
                [
                    (record["name"], ""),
                    (words.duration(record["alone"]), "number"),
                    (words.duration(record["beside"]), "number"),
                    (f"{record['beside'] / record['alone'] - 1:+.0%}", "number"),
                ]
            )
            for record in run.beside
        ]
        header = [("", ""), ("alone", "number"), ("beside PyTorch", "number"), ("cost", "number")]
        parts.append(
            "<div class=card><h3>In one process with PyTorch at work</h3>"
            "<p>Each call follows a matrix product of PyTorch's, whose threads still wait for "
            f"more.</p>{_table(header, rows)}</div>"
        )
    return "".join(parts)


def startup(run: Run) -> str:
    """Seconds and memory from the start of a process to its first embedding."""
    ours = next((r["seconds"] for r in run.startup if r["rival"] == OURS), None)
    rows = []
    for record in run.startup:
        seconds, is_ours = record["seconds"], record["rival"] == OURS
        times = "" if is_ours or ours is None else words.times(seconds / ours)
        rows.append(
            _row(
                [
                    (words.STARTS[record["rival"]], "ours" if is_ours else ""),
                    (words.duration(seconds), "number"),
                    (words.megabytes(record["bytes"]), "number"),
                    (times, "number"),
                ]
            )
        )
    header = [("", ""), ("time", "number"), ("memory", "number"), ("time / ours", "number")]
    return _table(header, rows)


def _threads(run: Run) -> str:
    counts = sorted({record["threads"] for record in run.threads})
    found = {(r["name"], r["rival"], r["threads"]): r["median"] for r in run.threads}
    rows = []
    for name, rival in dict.fromkeys((r["name"], r["rival"]) for r in run.threads):
        medians = [found.get((name, rival, count)) for count in counts]
        cells = [(name, ""), (words.NAMES[rival], "ours" if rival == OURS else "")]
        cells += [("" if m is None else words.duration(m), "number") for m in medians]
        first, last = medians[0], medians[-1]
        cells.append(("" if not first or not last else words.times(first / last), "number"))
        rows.append(_row(cells))
    header = [("", ""), ("by", ""), *((f"{count} threads", "number") for count in counts)]
    return _table([*header, ("times as fast", "number")], rows)
