"""A family of checkpoints: how its config becomes a network, and where the weights of the network
are in a file.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from fastmha._types import Float32
from fastmha.config import config_from
from fastmha.families.settings import EVERYWHERE, check_fields
from fastmha.nn.module import Module, Shape
from fastmha.tensors import Tensors
from fastmha.weights import as_float32

__all__ = ["Family"]

# Buffers that older versions of transformers stored: nothing is learnt in them.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# As TensorFlow called the parameters of a norm; checkpoints converted early still do.
OLD_NAMES = {"gamma": "weight", "beta": "bias"}
FLOATS = ("F32", "F16", "BF16")

Names = Mapping[str, str | tuple[str, ...]]
# What a family makes: a Network or an EncoderDecoder.
Kind = TypeVar("Kind", bound=Module, covariant=True)


@dataclass(frozen=True)
class Family(Generic[Kind]):
    """All that loading needs to know.

    Attributes
    ----------
    config : dataclass
        The fields of config.json that the network depends on, under their names there. Those
        without a default must be given.
    network : callable
        Config -> :class:`Network` or :class:`EncoderDecoder`, without its weights.
    names : mapping
        Module of the network -> module of the checkpoint, for what is not in a layer. Several
        modules: their rows one after the other. A whole parameter (``output.bias``) -> a whole
        tensor.
    layers : (str, mapping)
        What the checkpoint calls the list of layers, and the names within one.
    prefix : str
        In front of every name when the checkpoint was saved together with a head.
    ignored : tuple of str
        How names begin that play no part: heads, buffers.
    optional : tuple of str
        Tensors that are zero when they are missing.
    decoder_layers : (str, mapping), optional
        As `layers`, which are those of the encoder then.
    must_be : mapping
        Fields of config.json -> the values that are supported.
    prepare : callable, optional
        config.json -> config.json, to bring older forms into the present one.
    """

    config: type
    network: Callable[[Any], Kind]
    names: Names
    layers: tuple[str, Names]
    prefix: str
    ignored: tuple[str, ...] = ()
    must_be: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    optional: tuple[str, ...] = ()
    decoder_layers: tuple[str, Names] | None = None

    def build(self, config: dict[str, Any], file: Path, tensors: Tensors) -> tuple[Any, Kind]:
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

    def load(self, network: Module, tensors: Tensors, directory: Path) -> None:
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

    def sources(self, ours: str, renamed: Mapping[str, str]) -> tuple[str, ...]:
        """The names in a checkpoint of what makes up our parameter `ours`; `renamed`: of modules
        that are called otherwise than the family says."""
        if ours in self.names:
            return (str(self.names[ours]),)
        # the matrix of all heads has no module of its own in MultiHeadAttention
        module, _, kind = ours.replace(".in_proj_", ".in_proj.").rpartition(".")
        stem, names = "", self.names
        stack, in_layer, rest = module.partition("layers.")
        if in_layer:
            index, module = rest.split(".", 1)
            layers = self.decoder_layers if stack == "decoder." else self.layers
            assert layers is not None
            stem, names = f"{layers[0]}.{index}.", layers[1]
        theirs = names[module]
        modules = (theirs,) if isinstance(theirs, str) else theirs
        return tuple(f"{stem}{renamed.get(name, name)}.{kind}" for name in modules)


def _check_sizes(settings: Any, tensors: Tensors) -> None:
    """No size is negative, or so large that making the network would fill the memory."""
    numbers = sum(math.prod(tensors.shape(name)) for name in tensors)
    fields = dataclasses.asdict(settings)
    for name, value in fields.items():
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
    # sines and cosines are in no tensor, but take room
    positions, width = fields.get("max_position_embeddings", 0), fields.get("d_model", 0)
    if positions * width > max(numbers, 1_000_000):
        raise ValueError(
            f"max_position_embeddings is {positions} for d_model {width}, the weights are "
            f"{len(tensors)} tensors of {numbers} numbers"
        )


class Weights(Mapping[str, Float32]):
    """The parameters of a network under our names, converted when they are asked for."""

    def __init__(self, family: Family[Module], network: Module, tensors: Tensors) -> None:
        self._tensors = tensors
        self._shapes = network.state_shapes()
        renamed: Mapping[str, str] = getattr(network, "renamed", {})
        self._sources = {ours: family.sources(ours, renamed) for ours in self._shapes}
        stored = _stored_names(tensors, family.prefix)
        tied: Mapping[str, tuple[str, ...]] = getattr(network, "tied", {})
        used = {name for sources in self._sources.values() for name in sources}
        # the name of each tensor in the file, its own or that of one it is tied to
        self._places = {
            name: stored[place]
            for name in used
            for place in [next((n for n in (name, *tied.get(name, ())) if n in stored), None)]
            if place is not None
        }
        missing = sorted(used - self._places.keys() - set(family.optional))
        unexpected = sorted(
            place
            for name, place in stored.items()
            if name not in used | tied.keys()
            and name not in BUFFERS
            and not name.startswith(family.ignored)
        )
        self.problems = [
            f"{what}: {', '.join(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        self.problems += self._mismatches()
        # Tables and the output map may share a tensor: it is widened once. What is float32 in the
        # file gets a mapping for each: the pages that packing reads are not those that a table
        # keeps (113 MB less of 457 for a Marian with 58,101 words).
        self._uses = Counter(self._places.values())
        self._kept: dict[str, Float32] = {}

    def _expected(self, ours: str) -> Shape:
        """The shape of each tensor that makes up a parameter."""
        rows, *rest = self._shapes[ours]
        return (rows // len(self._sources[ours]), *rest)

    def _mismatches(self) -> Iterator[str]:
        for ours, sources in self._sources.items():
            expected = self._expected(ours)
            for source in sources:
                place = self._places.get(source)
                if place is None:
                    continue
                shape, dtype = self._tensors.shape(place), self._tensors.dtype(place)
                if shape not in (expected, (1, *expected)):  # (1, n): a bias for a batch
                    yield f"{place}: config.json says shape {expected}, got {shape}"
                if dtype not in FLOATS:
                    yield f"{place}: expected one of {', '.join(FLOATS)}, got {dtype}"

    def __getitem__(self, ours: str) -> Float32:
        shape = self._expected(ours)
        parts = [self._part(source, shape) for source in self._sources[ours]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _part(self, source: str, shape: Shape) -> Float32:
        place = self._places.get(source)
        if place is None:
            return np.zeros(shape, np.float32)
        array = self._kept.get(place)
        if array is None:
            array = as_float32(self._tensors[place], source).reshape(shape)
            if self._uses[place] > 1 and self._tensors.dtype(place) != "F32":
                self._kept[place] = array
        return array

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
