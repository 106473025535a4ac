"""The attention of one text, translated or encoded, as a page to look at: one file, no network.

The page is a template (data/attend.html) with one hole for the data, as JSON. Text from outside
reaches the page only through that JSON and is shown with textContent, so nothing in it can become
markup.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastmha._types import Float32
from fastmha.encoder_model import EncoderMaps
from fastmha.translation_results import AttentionMaps

__all__ = ["MOST_WEIGHTS", "attend_page", "encoder_page"]

TEMPLATE = Path(__file__).resolve().parent / "data" / "attend.html"
HOLE = "{{DATA}}"
# Of all heads and layers: about six bytes each in the page, which a browser draws within seconds.
MOST_WEIGHTS = 4_000_000


def attend_page(text: str, maps: AttentionMaps) -> str:
    """An HTML page with every head of every layer of `maps`, the attention of the translation of
    `text`."""
    _check_size([*maps.encoder, *maps.decoder, *maps.cross])
    source, target = list(maps.source), list(maps.target)
    kinds = [
        _kind(
            "Encoder self-attention",
            "Each source token looks at all source tokens.",
            source,
            source,
            maps.encoder,
        ),
        _kind(
            "Decoder self-attention, masked",
            "Each token of the translation looks at itself and what was written before it.",
            target,
            target,
            maps.decoder,
            masked=True,
        ),
        _kind(
            "Decoder to encoder",
            "Each token of the translation looks at the source, to write the next token.",
            target,
            source,
            maps.cross,
        ),
    ]
    return _page({"text": text, "translation": maps.translation, "kinds": kinds})


def encoder_page(text: str, maps: EncoderMaps) -> str:
    """The same for an encoder, which translates nothing."""
    _check_size(maps.layers)
    tokens = list(maps.tokens)
    about = "Each token looks at all tokens of the text."
    kinds = [_kind("Self-attention", about, tokens, tokens, maps.layers)]
    return _page({"text": text, "translation": None, "kinds": kinds})


def _check_size(layers: list[Float32]) -> None:
    count = sum(layer.size for layer in layers)
    if count > MOST_WEIGHTS:
        raise ValueError(
            f"attend: {count:,} weights in all heads and layers, a page holds {MOST_WEIGHTS:,}; "
            "shorten the text"
        )


def _page(data: dict[str, Any]) -> str:
    return TEMPLATE.read_text("utf-8").replace(HOLE, _inert_json(data))


def _kind(
    name: str,
    about: str,
    rows: list[str],
    columns: list[str],
    layers: list[Float32],
    *,
    masked: bool = False,
) -> dict[str, Any]:
    # four digits are more than a colour shows and a quarter of the bytes
    weights = [np.round(layer.astype(np.float64), 4).tolist() for layer in layers]
    return {
        "name": name,
        "about": about,
        "masked": masked,
        "rows": rows,
        "columns": columns,
        "layers": weights,
    }


def _inert_json(data: dict[str, Any]) -> str:
    """JSON that cannot end the <script> around it: every character that HTML knows is escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
