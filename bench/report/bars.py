"""Bars: for each workload, the share of the machine's limit that each rival reaches.

Longer is faster, 100% is what nobody can pass; one axis for a whole suite. A call whose limit is
far below what any call from Python costs has bars relative to the fastest instead.
"""

from html import escape

from bench.report import svg, words
from bench.results import OURS, Result

WIDTH = 940
LABEL = 335  # the workload's name
RIGHT = 140  # what stands behind a bar
BAR = 13
GAP = 3
BETWEEN = 16


def chart(results: list[Result]) -> str:
    plot = WIDTH - LABEL - RIGHT
    high = max([1.0, *(r.share(n) for r in results if not r.is_overhead for n in bests(r))])
    scale = svg.linear(0, high, LABEL, LABEL + plot)
    parts: list[str] = []
    y = 26.0
    for result in results:
        group, y = _group(result, y, scale, high)
        parts += group
        y += BETWEEN
    return svg.picture(
        WIDTH, y, [*_axis(scale, high, y - BETWEEN + 4), *parts], "share of the limit"
    )


def bests(result: Result) -> list[str]:
    """The fastest way of every rival."""
    return [best for rival in result.rivals if (best := result.best(rival)) is not None]


def _axis(scale: svg.Scale, high: float, bottom: float) -> list[str]:
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = scale(tick)
        kind = "limit" if tick == 1 else "grid"
        parts.append(svg.element("line", x1=x, x2=x, y1=18, y2=bottom, class_=kind))
        label = "the limit" if tick == 1 else f"{tick:.0%}"
        parts.append(svg.text(x, 12, label, class_="tick limit-text" if tick == 1 else "tick"))
    return parts


def _group(result: Result, y: float, scale: svg.Scale, high: float) -> tuple[list[str], float]:
    names = bests(result)
    fastest = min(result.median(name) for name in names)
    middle = y + (len(names) * (BAR + GAP) - GAP) / 2
    parts = _label(result, middle)
    target = result.target.share
    if target is not None and not result.is_overhead:
        x = scale(target)
        mark = svg.element(
            "line",
            svg.title(f"target {target:.0%}"),
            x1=x,
            x2=x,
            y1=y - 3,
            y2=y + len(names) * (BAR + GAP),
            class_="target",
        )
        parts.append(mark)
    for name in names:
        timing = result.ways[name].timing

        def place(seconds: float) -> float:
            full = fastest if result.is_overhead else result.limit_seconds
            return scale(min(high, full / seconds))

        parts.append(_bar(result, name, y, place(timing.median)))
        parts.append(_spread(y, place(timing.upper_quartile), place(timing.lower_quartile)))
        parts.append(_words_behind(result, name, y, place(timing.lower_quartile)))
        y += BAR + GAP
    return parts, y


def _label(result: Result, middle: float) -> list[str]:
    name = result.name.removeprefix("attention ")
    limit = "relative to the fastest" if result.is_overhead else f"limit: {_limit(result)}"
    return [
        svg.text(LABEL - 12, middle - 1, name, class_="name"),
        svg.text(LABEL - 12, middle + 12, limit, class_="sub"),
    ]


def _limit(result: Result) -> str:
    if result.limit.startswith("FMA"):
        return result.limit.replace("FMA", "multiply-adds")
    return f"memory, {result.limit}"


def _bar(result: Result, name: str, y: float, end: float) -> str:
    rival = name.partition(":")[0]
    timing, way = result.ways[name].timing, result.ways[name]
    hover = (
        f"{words.way(name)}: {words.duration(timing.median)} "
        f"({words.duration(timing.lower_quartile)} .. {words.duration(timing.upper_quartile)}), "
        f"{words.percent(result.share(name))} of the limit, error {words.error(way.error)}"
    )
    return svg.element(
        "rect",
        svg.title(hover),
        x=float(LABEL),
        y=y,
        width=max(1.0, end - LABEL),
        height=BAR,
        rx=2,
        class_=f"bar {escape(rival)}",
    )


def _spread(y: float, low: float, high: float) -> str:
    """The quartiles, where they are further apart than a line is thick."""
    if high - low < 3:
        return ""
    middle = y + BAR / 2
    return svg.element("path", d=f"M{low:.1f},{middle:.1f}H{high:.1f}", class_="spread")


def _words_behind(result: Result, name: str, y: float, end: float) -> str:
    time = words.speed(result, name)
    rival = name.partition(":")[0]
    if rival == OURS:
        behind, kind = time, "value ours"
    else:
        behind = f"{words.NAMES[rival]} {time} · {words.times(result.ratio(name))}"
        kind = "value lost" if rival in result.slower_than and result.ratio(name) < 1 else "value"
    return svg.text(end + 6, y + BAR - 3, behind, class_=kind)
