"""config.json of a checkpoint: reading it, and fields -> a dataclass."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["config_from", "read_json", "read_json_list"]

Config = TypeVar("Config")

TYPES: dict[Any, Any] = {
    int: int,
    float: (int, float),
    bool: bool,
    str: str,
    list: list,
    dict: dict,
}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    ValueError
        The file is not JSON, or holds something else than an object.
    """
    value = _parsed(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, got a {type(value).__name__}")
    return value


def read_json_list(file: Path) -> list[Any]:
    """The array in a JSON file; see :func:`read_json`."""
    value = _parsed(file)
    if not isinstance(value, list):
        raise ValueError(f"{file}: expected a JSON array, got a {type(value).__name__}")
    return value


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from error


def config_from(kind: type[Config], config: dict[str, Any], file: Path) -> Config:
    """A `kind` with the fields of `config` that it has; `file` is for messages.

    Raises
    ------
    ValueError
        A field without default is missing, or one has another type than the dataclass says.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in config
    ]
    if missing:
        raise ValueError(f"{file}: missing: {', '.join(missing)}")
    settings = {name: config[name] for name in fields if name in config}
    for name, value in settings.items():
        expected = fields[name].type
        wrong_bool = isinstance(value, bool) and expected is not bool
        if wrong_bool or not isinstance(value, TYPES[expected]):
            kind_name = str(getattr(expected, "__name__", expected))
            article = "an" if kind_name.startswith("i") else "a"
            raise ValueError(f"{file}: {name} must be {article} {kind_name}, got {value!r}")
    return kind(**settings)
