"""Lines and dots: the roofline, curves over length, batch and threads, error beside speed."""

import math
from typing import Any

from bench.report import svg, words
from bench.results import OURS, Result, Run

WIDTH, HEIGHT = 920, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 48


def _frame(xlabel: str, ylabel: str, width: float, height: float) -> list[str]:
    middle = (TOP + height - BOTTOM) / 2
    return [
        svg.element("path", d=f"M{LEFT},{TOP}V{height - BOTTOM}H{width - RIGHT}", class_="axis"),
        svg.text((LEFT + width - RIGHT) / 2, height - 10, xlabel, class_="axis-label"),
        svg.text(
            0, 0, ylabel, class_="axis-label", transform=f"translate(14,{middle:g}) rotate(-90)"
        ),
    ]


def _x_ticks(scale: svg.Scale, ticks: list[float], height: float, labels: list[str]) -> list[str]:
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        x = scale(tick)
        parts.append(svg.element("line", x1=x, x2=x, y1=TOP, y2=height - BOTTOM, class_="grid"))
        parts.append(svg.text(x, height - BOTTOM + 16, label, class_="tick"))
    return parts


def _y_ticks(scale: svg.Scale, ticks: list[float], width: float, labels: list[str]) -> list[str]:
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        y = scale(tick)
        parts.append(svg.element("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(svg.text(LEFT - 8, y + 4, label, class_="tick y"))
    return parts


def _plain(number: float) -> str:
    return f"{number:g}" if number < 1000 else f"{number:,.0f}"


# ---- roofline ------------------------------------------------------------------------------------


def roofline(run: Run) -> str:
    """Every workload by its operations for each byte; what it reached, under the roof."""
    results = [result for result in run.measured if not result.is_overhead]
    if not results:
        return ""
    peak = max(result.peak_gflops for result in results)
    memory = run.machine["memory_gbps"]["read"]
    intensities = [result.flops / result.total_bytes for result in results]
    low, high = (
        10 ** math.floor(math.log10(min(intensities))),
        10 ** math.ceil(math.log10(max(intensities))),
    )
    bottom = 10 ** math.floor(math.log10(min(r.gflops(n) for r in results for n in _pair(r))))
    x = svg.logarithmic(low, high, LEFT, WIDTH - RIGHT)
    y = svg.logarithmic(bottom, peak * 1.6, HEIGHT - BOTTOM, TOP)
    parts = _frame("operations for each byte that must move", "GFLOP/s", WIDTH, HEIGHT)
    ticks = svg.decades(low, high)
    parts += _x_ticks(x, ticks, HEIGHT, [_plain(tick) for tick in ticks])
    ticks = svg.decades(bottom, peak * 1.6)
    parts += _y_ticks(y, ticks, WIDTH, [_plain(tick) for tick in ticks])
    parts += _roof(x, y, low, high, bottom, peak, memory)
    for result in results:
        parts.append(_roofline_point(result, x, y))
    return svg.picture(WIDTH, HEIGHT, parts, "roofline")


def _pair(result: Result) -> list[str]:
    best = result.best("torch")
    return [result.ours] + ([best] if best else [])


def _roof(
    x: svg.Scale, y: svg.Scale, low: float, high: float, bottom: float, peak: float, memory: float
) -> list[str]:
    ridge = peak / memory
    start = max(low, bottom / memory)
    points = [(x(start), y(start * memory)), (x(ridge), y(peak)), (x(high), y(peak))]
    slope = math.degrees(math.atan2(points[1][1] - points[0][1], points[1][0] - points[0][0]))
    place = 1.2 * start
    return [
        svg.element("path", d=svg.path(points), class_="roof"),
        svg.text(x(high) - 4, y(peak) - 7, f"{peak:.0f} GFLOP/s multiply-adds", class_="note end"),
        svg.text(
            0,
            -7,
            f"{memory:.0f} GB/s, reads from memory",
            class_="note",
            transform=f"translate({x(place):.1f},{y(place * memory):.1f}) rotate({slope:.1f})",
        ),
    ]


def _roofline_point(result: Result, x: svg.Scale, y: svg.Scale) -> str:
    place = x(result.flops / result.total_bytes)
    ours = y(result.gflops(result.ours))
    best = result.best("torch")
    hover = f"{result.name}: {words.three(result.gflops(result.ours))} GFLOP/s"
    parts = []
    if best is not None:
        theirs = y(result.gflops(best))
        hover += f", PyTorch {words.three(result.gflops(best))}"
        parts.append(svg.element("line", x1=place, x2=place, y1=ours, y2=theirs, class_="link"))
        parts.append(svg.element("circle", cx=place, cy=theirs, r=3.2, class_="dot torch"))
    parts.append(svg.element("circle", cx=place, cy=ours, r=4.2, class_="dot fastmha"))
    return svg.element("g", svg.title(hover) + "".join(parts))


# ---- curves over length and batch ----------------------------------------------------------------


def over(results: list[Result], name: str) -> str:
    """GFLOP/s of every rival over the workloads of one curve."""
    width, height = 450, 320
    points = sorted(
        (r for r in results if r.axis and r.axis[0] == name), key=lambda r: r.axis or ()
    )
    places = [float(r.axis[1]) for r in points if r.axis]
    peak = max(r.peak_gflops for r in points)
    x = svg.logarithmic(places[0], max(places[-1], 2 * places[0]), LEFT, width - RIGHT)
    y = svg.linear(0, peak * 1.08, height - BOTTOM, TOP)
    parts = _frame(name.rpartition("by ")[2], "GFLOP/s", width, height)
    shown = places[:: 2 if len(places) > 7 else 1]
    parts += _x_ticks(x, shown, height, [_plain(place) for place in shown])
    ticks = svg.round_ticks(peak)
    parts += _y_ticks(y, ticks, width, [_plain(tick) for tick in ticks])
    limits = [min(r.flops / r.limit_seconds * 1e-9, 1.06 * peak) for r in points]
    roof = [(x(place), y(limit)) for place, limit in zip(places, limits, strict=True)]
    parts.append(svg.element("path", d=svg.path(roof), class_="limit"))
    for rival in reversed(points[0].rivals):
        parts += _line(
            rival,
            [
                (x(p), y(r.gflops(b)), r, b)
                for p, r in zip(places, points, strict=True)
                if (b := r.best(rival)) is not None
            ],
        )
    return svg.picture(width, height, parts, name)


def _line(rival: str, points: list[tuple[float, float, Result, str]]) -> list[str]:
    parts = [
        svg.element("path", d=svg.path([(p[0], p[1]) for p in points]), class_=f"line {rival}")
    ]
    for px, py, result, name in points:
        hover = (
            f"{result.name}, {name}: {words.duration(result.median(name))}, "
            f"{words.three(result.gflops(name))} GFLOP/s"
        )
        parts.append(
            svg.element("circle", svg.title(hover), cx=px, cy=py, r=3.4, class_=f"dot {rival}")
        )
    return parts


# ---- threads -------------------------------------------------------------------------------------


def threads(records: list[dict[str, Any]]) -> str:
    """How many times as fast each workload is with more threads."""
    width, height = 450, 320
    base = {(r["name"], r["rival"]): r["median"] for r in records if r["threads"] == 1}
    counts = sorted({float(r["threads"]) for r in records})
    if len(counts) < 2:
        return ""
    top = counts[-1] * 1.08
    x = svg.logarithmic(counts[0], counts[-1], LEFT + 12, width - RIGHT - 12)
    y = svg.linear(0.8, top, height - BOTTOM, TOP)
    parts = _frame("threads", "times as fast as one", width, height)
    parts += _x_ticks(x, counts, height, [_plain(count) for count in counts])
    ticks = (
        [n / 4 for n in range(4, int(top * 4) + 1)] if counts[-1] <= 2 else svg.round_ticks(top)[1:]
    )
    parts += _y_ticks(y, ticks, width, [_plain(tick) for tick in ticks])
    ideal = [(x(count), y(count)) for count in counts]
    parts.append(svg.element("path", d=svg.path(ideal), class_="limit"))
    for name, rival in sorted(base, key=lambda key: key[1] == OURS):
        line = sorted(
            (r["threads"], base[name, rival] / r["median"])
            for r in records
            if (r["name"], r["rival"]) == (name, rival)
        )
        hover = f"{name}, {rival}: {line[-1][1]:.2f}x on {line[-1][0]} threads"
        drawn = svg.element(
            "path", d=svg.path([(x(n), y(s)) for n, s in line]), class_=f"line {rival}"
        )
        dots = "".join(
            svg.element("circle", cx=x(n), cy=y(s), r=3.4, class_=f"dot {rival}") for n, s in line
        )
        parts.append(svg.element("g", svg.title(hover) + drawn + dots))
    return svg.picture(width, height, parts, "threads")


# ---- error beside speed --------------------------------------------------------------------------


def errors(run: Run) -> str:
    """Each workload by how much faster and how much less accurate than PyTorch it is."""
    results = [r for r in run.measured if r.error_ratio and r.against("torch")]
    if not results:
        return ""
    height = 360
    speeds = [r.against("torch") or 1.0 for r in results]
    ratios = [r.error_ratio or 1.0 for r in results]
    x = svg.logarithmic(min(0.5, *speeds) * 0.9, max(4.0, *speeds) * 1.15, LEFT, WIDTH - RIGHT)
    y = svg.logarithmic(min(0.25, *ratios) * 0.9, max(5.0, *ratios) * 1.15, height - BOTTOM, TOP)
    parts = _frame("times as fast as PyTorch", "error / PyTorch's error", WIDTH, height)
    ticks = [
        t for t in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0) if t <= max(4.0, *speeds) * 1.15
    ]
    parts += _x_ticks(x, ticks, height, [f"{tick:g}x" for tick in ticks])
    ticks = [t for t in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0) if t <= max(5.0, *ratios) * 1.15]
    parts += _y_ticks(y, ticks, WIDTH, [f"{tick:g}x" for tick in ticks])
    for bound, label in ((2.0, "allowed: attention, norms, blocks"), (4.0, "allowed: linear")):
        parts.append(
            svg.element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(bound), y2=y(bound), class_="limit")
        )
        parts.append(svg.text(WIDTH - RIGHT - 4, y(bound) - 5, label, class_="note end"))
    parts.append(
        svg.element("line", x1=x(1.0), x2=x(1.0), y1=TOP, y2=height - BOTTOM, class_="roof")
    )
    parts.append(svg.text(x(1.0) - 6, height - BOTTOM - 8, "slower", class_="note end"))
    parts.append(svg.text(x(1.0) + 6, height - BOTTOM - 8, "faster", class_="note"))
    for result, speed, ratio in zip(results, speeds, ratios, strict=True):
        hover = (
            f"{result.name}: {words.times(speed)} as fast, error "
            f"{words.error(result.error(OURS))}, PyTorch's {words.error(result.error('torch'))}"
        )
        parts.append(
            svg.element(
                "circle",
                svg.title(hover),
                cx=x(speed),
                cy=y(ratio),
                r=4.5,
                class_=f"dot suite-{result.suite}",
            )
        )
    return svg.picture(WIDTH, height, parts, "error beside speed")
