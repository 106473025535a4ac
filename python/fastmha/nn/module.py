"""What every block shares: named parameters, loading that checks before it changes anything,
files."""

import os
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from fastmha._types import Float32
from fastmha.weights import as_float32, read_safetensors, write_safetensors

Shape: TypeAlias = tuple[int, ...]


class Unset(Enum):
    """Marks a block whose weights its owner is about to set, so that none are drawn for nothing."""

    token = 0


UNSET: Final = Unset.token
Seed: TypeAlias = int | np.random.Generator | Literal[Unset.token] | None


class Module:
    """Named parameters, some of its own and those of its children, under torch's names.

    A subclass says what it owns in `_own_shapes`, hands it out in `_own_state`, takes it in
    `_set_own` and draws it in `_draw_own`; children come from `_children`.
    """

    def _children(self) -> Iterator[tuple[str, "Module"]]:
        yield from ()

    def _own_shapes(self) -> dict[str, Shape]:
        return {}

    def _own_state(self) -> dict[str, Float32]:
        return {}

    def _set_own(self, state: dict[str, Float32]) -> None:
        pass

    def _draw_own(self, rng: np.random.Generator) -> dict[str, Float32]:
        return {}

    def _initialise(self, seed: Seed) -> None:
        if seed is UNSET:
            return
        rng = np.random.default_rng(seed)
        self._set_own(self._draw_own(rng))
        for _, child in self._children():
            child._initialise(rng)

    def state_shapes(self) -> dict[str, Shape]:
        """The name and shape of every parameter."""
        shapes = self._own_shapes()
        for prefix, child in self._children():
            shapes |= {_join(prefix, name): shape for name, shape in child.state_shapes().items()}
        return shapes

    def state_dict(self) -> dict[str, Float32]:
        """Every parameter by its name in torch, as arrays that belong to the caller."""
        state = self._own_state()
        for prefix, child in self._children():
            state |= {_join(prefix, name): array for name, array in child.state_dict().items()}
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Take the weights from a mapping of names to NumPy arrays or torch tensors, which are
        copied.

        Everything is checked first: when anything is wrong, nothing changes.

        Parameters
        ----------
        state_dict : mapping of str to array
            For example a torch module's ``state_dict()``. float16 and bfloat16 are widened to
            float32.
        strict : bool, default True
            Raise when a name is missing or unexpected. With False, what is missing keeps its value
            and what is unexpected is left alone.

        Returns
        -------
        missing, unexpected : list of str
            Both empty when `strict`.

        Raises
        ------
        ValueError
            A wrong shape; with `strict` also a missing or unexpected name. The message lists all of
            them.
        TypeError
            A dtype that cannot become float32 without loss.
        """
        shapes = self.state_shapes()
        missing = [name for name in shapes if name not in state_dict]
        unexpected = [name for name in state_dict if name not in shapes]
        owner = type(self).__name__
        problems = []
        if strict and missing:
            problems.append("missing: " + ", ".join(missing))
        if strict and unexpected:
            problems.append("unexpected: " + ", ".join(unexpected))
        arrays = {}
        for name, shape in shapes.items():
            if name in state_dict:
                array = as_float32(state_dict[name], f"{owner}.load_state_dict: {name}")
                if array.shape != shape:
                    problems.append(f"{name}: expected shape {shape}, got {array.shape}")
                arrays[name] = array
        if problems:
            raise ValueError(
                f"{owner}.load_state_dict: " + "; ".join(problems) + ". Nothing was changed."
            )
        if missing:
            arrays = self.state_dict() | arrays
        self._assign(arrays)
        return missing, unexpected

    def _assign(self, state: Mapping[str, Float32]) -> None:
        self._set_own({name: state[name] for name in self._own_shapes()})
        for prefix, child in self._children():
            child._assign({name: state[_join(prefix, name)] for name in child.state_shapes()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`state_dict` to a safetensors file (needs the extra ``fastmha[text]``)."""
        write_safetensors(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load the weights of a safetensors file (needs the extra ``fastmha[text]``), all or
        nothing.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            A broken file, or names and shapes that are not this block's; see
            :meth:`load_state_dict`.
        """
        self.load_state_dict(read_safetensors(path))


def uniform(rng: np.random.Generator, shape: Shape, bound: float) -> Float32:
    """Weights drawn evenly from -bound .. bound."""
    return (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(bound)


def check_size(owner: str, **sizes: int) -> None:
    """Every size must be an int of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise TypeError(f"{owner}: {name} must be an int, got {size!r}")
        if size < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {size}")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
