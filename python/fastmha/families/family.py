"""A family of checkpoints: how its config becomes a network, and where the weights of the network
are in a file.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmha._types import Float32
from fastmha.config import config_from
from fastmha.families.networks import Network
from fastmha.families.settings import EVERYWHERE, check_fields
from fastmha.tensors import Tensors
from fastmha.weights import as_float32

__all__ = ["Family"]

# Buffers that older versions of transformers stored: nothing is learnt in them.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# As TensorFlow called the parameters of a norm; checkpoints converted early still do.
OLD_NAMES = {"gamma": "weight", "beta": "bias"}
FLOATS = ("F32", "F16", "BF16")

Names = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """All that loading needs to know.

    Attributes
    ----------
    config : dataclass
        The fields of config.json that the network depends on, under their names there. Those
        without a default must be given.
    network : callable
        Config -> :class:`Network`, without its weights.
    names : mapping
        Module of the network -> module of the checkpoint, for what is not in a layer. Several
        modules: their rows one after the other.
    layers : (str, mapping)
        What the checkpoint calls the list of layers, and the names within one.
    prefix : str
        In front of every name when the checkpoint was saved together with a head.
    ignored : tuple of str
        How names of heads begin: they play no part in hidden states.
    must_be : mapping
        Fields of config.json -> the values that are supported.
    prepare : callable, optional
        config.json -> config.json, to bring older forms into the present one.
    """

    config: type
    network: Callable[[Any], Network]
    names: Names
    layers: tuple[str, Names]
    prefix: str
    ignored: tuple[str, ...] = ()
    must_be: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def build(self, config: dict[str, Any], file: Path, tensors: Tensors) -> tuple[Any, Network]:
        """The settings in `config`, which came from `file`, and their network without weights.

        `tensors` are the weights to come: sizes beyond them are refused before anything is made.

        Raises
        ------
        ValueError
            A field is missing, of the wrong type, or asks for what is not supported.
        """
        check_fields(config, file, {**EVERYWHERE, **self.must_be})
        try:
            settings: Any = config_from(
                self.config, self.prepare(config) if self.prepare else config, file
            )
            _check_sizes(settings, tensors)
            return settings, self.network(settings)
        except (TypeError, ValueError) as error:
            text = str(error)
            raise ValueError(text if text.startswith(str(file)) else f"{file}: {text}") from error

    def load(self, network: Network, tensors: Tensors, directory: Path) -> None:
        """Give `network` the weights in `tensors`.

        Raises
        ------
        ValueError
            Tensors that are missing or unexpected, or have another shape or dtype than the config
            says; the message lists all of them.
        """
        weights = Weights(self, network, tensors)
        if weights.problems:
            raise ValueError(f"{directory}: {'; '.join(weights.problems)}")
        network._assign(weights)

    def sources(self, ours: str) -> tuple[str, ...]:
        """The names in a checkpoint of what makes up our parameter `ours`."""
        # the matrix of all heads has no module of its own in MultiHeadAttention
        module, _, kind = ours.replace(".in_proj_", ".in_proj.").rpartition(".")
        stem, names = "", self.names
        if module.startswith("layers."):
            _, index, module = module.split(".", 2)
            stem, names = f"{self.layers[0]}.{index}.", self.layers[1]
        theirs = names[module]
        modules = (theirs,) if isinstance(theirs, str) else theirs
        return tuple(f"{stem}{name}.{kind}" for name in modules)


def _check_sizes(settings: Any, tensors: Tensors) -> None:
    """No size is negative, or so large that making the network would fill the memory."""
    numbers = sum(math.prod(tensors.shape(name)) for name in tensors)
    for name, value in dataclasses.asdict(settings).items():
        if type(value) is not int:
            continue
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
        # a layer has at least one tensor; windows and ids may be larger than a small model
        most = len(tensors) if name.endswith("_layers") else max(numbers, 1_000_000)
        if value > most:
            raise ValueError(
                f"{name} is {value}, the weights are {len(tensors)} tensors of {numbers} numbers"
            )


class Weights(Mapping[str, Float32]):
    """The parameters of a network under our names, converted when they are asked for."""

    def __init__(self, family: Family, network: Network, tensors: Tensors) -> None:
        self._tensors = tensors
        self._shapes = network.state_shapes()
        self._stored = _stored_names(tensors, family.prefix)
        self._sources = {ours: family.sources(ours) for ours in self._shapes}
        used = {name for sources in self._sources.values() for name in sources}
        missing = sorted(used - self._stored.keys())
        unexpected = sorted(
            stored
            for name, stored in self._stored.items()
            if name not in used and name not in BUFFERS and not name.startswith(family.ignored)
        )
        self.problems = [
            f"{what}: {', '.join(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        self.problems += self._mismatches()

    def _mismatches(self) -> Iterator[str]:
        for ours, sources in self._sources.items():
            rows, *rest = self._shapes[ours]
            expected = (rows // len(sources), *rest)
            for source in sources:
                stored = self._stored.get(source)
                if stored is None:
                    continue
                shape, dtype = self._tensors.shape(stored), self._tensors.dtype(stored)
                if shape != expected:
                    yield f"{stored}: config.json says shape {expected}, got {shape}"
                if dtype not in FLOATS:
                    yield f"{stored}: expected one of {', '.join(FLOATS)}, got {dtype}"

    def __getitem__(self, ours: str) -> Float32:
        parts = [
            as_float32(self._tensors[self._stored[source]], source)
            for source in self._sources[ours]
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _stored_names(tensors: Tensors, prefix: str) -> dict[str, str]:
    """Present names without prefix -> the names in the file."""
    stored: dict[str, str] = {}
    for name in tensors:
        stem, _, kind = name.removeprefix(prefix).rpartition(".")
        present = OLD_NAMES.get(kind, kind)
        full = f"{stem}.{present}" if stem else present
        if full in stored:
            raise ValueError(f"{stored[full]} and {name} are the same tensor; keep one of them")
        stored[full] = name
    return stored
