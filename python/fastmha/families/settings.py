"""config.json: the fields that a family reads, and those that must not ask for more than is done
here.

Fields that nothing depends on at inference (dropout, initializer_range, ...) are left alone, as
transformers leaves them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ACTIVATIONS", "EVERYWHERE", "check_fields", "named_activation"]

# transformers' names for what Linear computes. The three tanh forms are one formula.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# What any family would compute differently, and the values that change nothing. A field that is
# missing or null is at its default.
EVERYWHERE: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({},),
    "quantization_config": (),
}


def check_fields(
    config: Mapping[str, Any], file: Path, must_be: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise for a field of `config` that asks for something else than `must_be` allows.

    Raises
    ------
    ValueError
        Naming the field, its value and what is supported.
    """
    for name, allowed in must_be.items():
        value = config.get(name)
        if value is not None and value not in allowed:
            supported = " or ".join(map(repr, allowed)) if allowed else "leaving it out"
            raise ValueError(f"{file}: {name} is {value!r}; supported is {supported}")
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and any(name.startswith("AutoModel") for name in auto_map):
        raise ValueError(
            f"{file}: auto_map says that the model is code of the checkpoint's own, which is never "
            "run here; its numbers would differ from those of the family"
        )


def named_activation(name: str, field: str) -> str:
    """The activation that transformers calls `name`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{field} must be one of {', '.join(sorted(ACTIVATIONS))}, got {name!r}")
    return ACTIVATIONS[name]
