"""How numbers are written, everywhere the same."""

from collections.abc import Iterable

from bench.results import Result, Verdict

# as their owners write them
NAMES = {
    "fastmha": "fastmha",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "transformers": "transformers",
    "ctranslate2": "CTranslate2",
    "ctranslate2_int8": "CTranslate2 int8",
}
# What a process that makes one embedding has to load.
STARTS = {
    **NAMES,
    "torch": "PyTorch, transformers",
    "numpy": "no model: NumPy, tokenizers, reading the weights",
}


def way(label: str) -> str:
    """`torch: bool mask` as PyTorch: bool mask."""
    rival, colon, words = label.partition(":")
    return NAMES.get(rival, rival) + colon + words


def duration(seconds: float) -> str:
    """Three digits with the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{three(seconds / size)} {unit}"
    return f"{three(seconds / 1e-9)} ns"


def rate(result: Result, name: str) -> str:
    """What is done per second, where that is what users count: 312 tokens/s."""
    return f"{three(result.rate(name))} {result.work[1]}/s" if result.work else ""


def speed(result: Result, name: str) -> str:
    """The rate, or else the median time."""
    return rate(result, name) or duration(result.median(name))


def three(number: float) -> str:
    """Three digits, without an exponent: 0.0123, 1.23, 12.3, 123, 1230."""
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if round(number, digits) >= least:
            return f"{number:.{digits}f}"
    return f"{number:.3g}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:.0f} MB"


def verdict(found: Verdict) -> str:
    """What was found against what was wanted."""
    if found.unit == "%":
        return f"{percent(found.found)} {found.what} (target {percent(found.wanted)})"
    if found.unit == "s":
        return f"{duration(found.found)} (target {duration(found.wanted)})"
    if found.unit == "B":
        return f"{megabytes(found.found)} (at most {megabytes(found.wanted)})"
    if found.unit == "<x":
        return f"{found.found:.2f}x {found.what} (at most {found.wanted:g}x)"
    return f"{times(found.found)} {found.what.removeprefix('x ')} (target {found.wanted:g}x)"


def missed(verdicts: Iterable[tuple[str, Verdict]]) -> dict[str, list[str]]:
    """What was not reached, by workload."""
    found: dict[str, list[str]] = {}
    for name, each in verdicts:
        if not each.reached:
            found.setdefault(name, []).append(verdict(each))
    return found
