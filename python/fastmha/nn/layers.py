"""The layers that blocks are made of: linear maps with packed weights, norms, embeddings."""

from typing import TypeAlias

import numpy as np

from fastmha import _core
from fastmha._types import Float32, Float32Type, Integers, is_float32
from fastmha.nn.module import Module, Seed, Shape, check_size, uniform
from fastmha.nn.ragged import as_integers

__all__ = ["Embedding", "LayerNorm", "Linear", "RMSNorm"]

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


class Linear(Module):
    """A linear map with its activation and the addition of a residual fused into the store.

    ``y = activation(x @ weight.T + bias) + residual``

    The weight is packed once, here, into the panels that the kernel reads; nothing refers to the
    given arrays afterwards.

    Parameters
    ----------
    weight : ndarray of float32, (out_features, in_features)
    bias : ndarray of float32, (out_features,), optional
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
    dtype : dtype, default "float32"
        How the weight is kept; float32 is the only one so far.

    Raises
    ------
    TypeError
        An array of another dtype than float32.
    ValueError
        Shapes that do not fit, an unknown activation or dtype.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> linear = fm.Linear(np.eye(2, 3, dtype=np.float32), activation="relu")
    >>> linear(np.array([[1, -2, 3]], np.float32))
    array([[1., 0.]], dtype=float32)
    """

    def __init__(
        self,
        weight: Float32,
        bias: Float32 | None = None,
        *,
        activation: str | None = None,
        dtype: Float32Type = "float32",
    ) -> None:
        if not is_float32(dtype):
            raise ValueError(f"Linear: dtype must be 'float32', got {dtype!r}")
        self._packed = _core.PackedLinear(weight, bias, activation)
        self._bias = None if bias is None else np.array(bias)
        self._shape: Shape = (self._packed.out_features, self._packed.in_features)
        self._activation = activation

    @classmethod
    def of_size(
        cls,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str | None = None,
        seed: Seed = None,
    ) -> "Linear":
        """A layer with weights drawn as torch.nn.Linear draws them."""
        check_size("Linear", in_features=in_features, out_features=out_features)
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(
                f"Linear: activation must be one of {', '.join(ACTIVATIONS)} or None, "
                f"got {activation!r}"
            )
        self = cls.__new__(cls)
        self._shape = (out_features, in_features)
        self._activation = activation
        self._bias = np.zeros(out_features, np.float32) if bias else None
        self._initialise(seed)
        return self

    @property
    def in_features(self) -> int:
        return self._shape[1]

    @property
    def out_features(self) -> int:
        return self._shape[0]

    @property
    def activation(self) -> str | None:
        return self._activation

    @property
    def weight(self) -> Float32:
        """(out_features, in_features), unpacked: a new array, bit for bit what was given."""
        return self._packed.unpack()

    @property
    def bias(self) -> Float32 | None:
        """(out_features,), a new array, or None."""
        return None if self._bias is None else self._bias.copy()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight and bias."""
        return self._packed.nbytes

    def __call__(
        self, x: Float32, *, residual: Float32 | None = None, out: Float32 | None = None
    ) -> Float32:
        """``activation(x @ weight.T + bias) + residual``.

        Parameters
        ----------
        x : ndarray of float32, (..., in_features)
        residual : ndarray of float32, (..., out_features), optional
        out : ndarray of float32, (..., out_features), optional
            Where to write the result.

        Returns
        -------
        ndarray of float32, (..., out_features)

        Raises
        ------
        TypeError
            A dtype other than float32.
        ValueError
            Shapes that do not fit.
        """
        return self._packed(x, residual, out)

    def _own_shapes(self) -> dict[str, Shape]:
        shapes = {"weight": self._shape}
        return shapes if self._bias is None else shapes | {"bias": self._shape[:1]}

    def _own_state(self) -> dict[str, Float32]:
        state = {"weight": self.weight}
        return state if self._bias is None else state | {"bias": self._bias.copy()}

    def _set_own(self, state: dict[str, Float32]) -> None:
        bias = state.get("bias")
        self._packed = _core.PackedLinear(state["weight"], bias, self._activation)
        self._bias = None if bias is None else np.array(bias)

    def _draw_own(self, rng: np.random.Generator) -> dict[str, Float32]:
        bound = self.in_features**-0.5
        return {name: uniform(rng, shape, bound) for name, shape in self._own_shapes().items()}

    def __repr__(self) -> str:
        activation = f", activation={self._activation!r}" if self._activation else ""
        bias = ", bias=False" if self._bias is None else ""
        return f"Linear({self.in_features} -> {self.out_features}{bias}{activation})"


class LayerNorm(Module):
    """:func:`fastmha.layer_norm` with its weight and bias.

    Parameters
    ----------
    dim : int
        Width of a row.
    eps : float, default 1e-5
    bias : bool, default True

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.LayerNorm(2, eps=0.0)(np.array([[1, 3]], np.float32))
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, bias: bool = True) -> None:
        check_size("LayerNorm", dim=dim)
        self.eps = float(eps)
        self.weight = np.ones(dim, np.float32)
        self.bias = np.zeros(dim, np.float32) if bias else None

    def __call__(self, x: Float32, *, residual: Float32 | None = None) -> Float32:
        """norm(x + residual) for x (..., dim)."""
        return _core.layer_norm(x, self.weight, self.bias, self.eps, residual, None)

    def _fused(self) -> tuple[Float32, Float32 | None, float]:
        return self.weight, self.bias, self.eps

    def _own_shapes(self) -> dict[str, Shape]:
        return {name: array.shape for name, array in self._own_state().items()}

    def _own_state(self) -> dict[str, Float32]:
        state = {"weight": self.weight.copy()}
        return state if self.bias is None else state | {"bias": self.bias.copy()}

    def _set_own(self, state: dict[str, Float32]) -> None:
        self.weight = np.array(state["weight"])
        self.bias = np.array(state["bias"]) if self.bias is not None else None

    def _draw_own(self, rng: np.random.Generator) -> dict[str, Float32]:
        state = {"weight": np.ones_like(self.weight)}
        return state if self.bias is None else state | {"bias": np.zeros_like(self.weight)}

    def __repr__(self) -> str:
        bias = ", bias=False" if self.bias is None else ""
        return f"LayerNorm({self.weight.size}, eps={self.eps:g}{bias})"


class RMSNorm(Module):
    """:func:`fastmha.rms_norm` with its weight.

    Parameters
    ----------
    dim : int
        Width of a row.
    eps : float, default 1e-6

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.RMSNorm(2, eps=0.0)(np.array([[3, 3]], np.float32))
    array([[1., 1.]], dtype=float32)
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        check_size("RMSNorm", dim=dim)
        self.eps = float(eps)
        self.weight = np.ones(dim, np.float32)

    def __call__(self, x: Float32, *, residual: Float32 | None = None) -> Float32:
        """norm(x + residual) for x (..., dim)."""
        return _core.rms_norm(x, self.weight, self.eps, residual, None)

    def _fused(self) -> tuple[Float32, float]:
        return self.weight, self.eps

    def _own_shapes(self) -> dict[str, Shape]:
        return {"weight": self.weight.shape}

    def _own_state(self) -> dict[str, Float32]:
        return {"weight": self.weight.copy()}

    def _set_own(self, state: dict[str, Float32]) -> None:
        self.weight = np.array(state["weight"])

    def _draw_own(self, rng: np.random.Generator) -> dict[str, Float32]:
        return {"weight": np.ones_like(self.weight)}

    def __repr__(self) -> str:
        return f"RMSNorm({self.weight.size}, eps={self.eps:g})"


Norm: TypeAlias = LayerNorm | RMSNorm
FusedNorm: TypeAlias = tuple[Float32, Float32 | None, float] | tuple[Float32, float]


def fused(norm: Norm | None) -> FusedNorm | None:
    """What an operation needs that normalises on its way."""
    if norm is None:
        return None
    if not isinstance(norm, LayerNorm | RMSNorm):
        raise TypeError(
            "norm_before and norm_after must be a fastmha.RMSNorm, fastmha.LayerNorm or None, "
            f"got {type(norm).__name__}"
        )
    return norm._fused()


NORMS = ("layer_norm", "rms_norm")


def norm_of(kind: str, dim: int, eps: float, *, bias: bool) -> Norm:
    """A norm by its name; an RMS norm has no bias."""
    return RMSNorm(dim, eps) if kind == "rms_norm" else LayerNorm(dim, eps, bias=bias)


class Embedding(Module):
    """A table with one row per id.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and their width.
    what : str, default "id"
        What an id is, for the error message.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.Embedding(10, 4, seed=0)(np.array([3, 3, 9])).shape
    (3, 4)
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, what: str = "id", seed: Seed = None
    ) -> None:
        check_size("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self._shape = (num_embeddings, embedding_dim)
        self._what = what
        self._initialise(seed)

    weight: Float32

    @property
    def num_embeddings(self) -> int:
        return self._shape[0]

    def __call__(self, ids: Integers) -> Float32:
        """The rows of `ids`, (..., embedding_dim): a new array.

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An id outside 0 .. num_embeddings - 1.
        """
        ids = as_integers(ids, f"Embedding: {self._what}")
        check_ids(ids, self.num_embeddings, self._what)
        return self.weight.take(ids, axis=0)

    def _own_shapes(self) -> dict[str, Shape]:
        return {"weight": self._shape}

    def _own_state(self) -> dict[str, Float32]:
        return {"weight": self.weight.copy()}

    def _set_own(self, state: dict[str, Float32]) -> None:
        self.weight = np.array(state["weight"])

    def _draw_own(self, rng: np.random.Generator) -> dict[str, Float32]:
        return {"weight": rng.standard_normal(self._shape, dtype=np.float32)}

    def __repr__(self) -> str:
        return f"Embedding({self._shape[0]}, {self._shape[1]})"


def check_ids(ids: Integers, count: int, what: str) -> None:
    """Every id must name one of `count` rows."""
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        wrong = ids[(ids < 0) | (ids >= count)].flat[0]
        raise ValueError(f"{what} must lie in 0 .. {count - 1}, got {int(wrong)}")


def sinusoidal_positions(count: int, dim: int) -> Float32:
    """(count, dim): row p holds sin(p / 10000^(2i/dim)) at 2i and the cosine at 2i + 1.

    Computed in float64 and rounded once.
    """
    angles = np.arange(count)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    table = np.empty((count, dim), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : dim // 2])
    return table
