"""NumPy as one writes it: the formulas, in place where NumPy can, products by its BLAS."""

import numpy as np

from bench import formulas, problems
from bench.rivals import Calls

NAME = "numpy"


def version() -> str:
    return np.__version__


def prepare(threads: int) -> None:
    """Its BLAS took the number of threads from the environment when it was loaded."""


def calls(problem: problems.Problem) -> Calls:
    p = problem
    match p:
        case problems.Attention():
            # masks are part of a user's data, made once
            options = {"visible": p.visible(), "added": p.added(), "softcap": p.softcap}
            return {"": lambda: formulas.attention(p.query, p.key, p.value, **options)}
        case problems.Ragged():
            return {"one by one": lambda: _one_by_one(p)}
        case problems.Linear():
            out = np.empty((p.x.shape[0], p.weight.shape[0]), np.float32)
            return {
                "": lambda: formulas.linear(p.x, p.weight, p.bias),
                "out=": lambda: np.add(np.matmul(p.x, p.weight.T, out=out), p.bias, out=out),
            }
        case problems.RowOperation("softmax"):
            return {"": lambda: formulas.softmax(p.x)}
        case problems.RowOperation("gelu"):
            return {"": lambda: formulas.gelu(p.x)}
        case problems.RowOperation():
            return {"": lambda: formulas.layer_norm(p.x, p.weight, p.bias, p.residual)}
        case problems.Block():
            return {"": lambda: formulas.block(p, np.float32)}
    raise NotImplementedError(type(p).__name__)


def _one_by_one(p: problems.Ragged) -> np.ndarray:
    out = np.empty_like(p.query)
    for rows in p.sequences():
        heads_first = (array[rows].transpose(1, 0, 2) for array in (p.query, p.key, p.value))
        out[rows] = formulas.attention(*heads_first).transpose(1, 0, 2)
    return out
