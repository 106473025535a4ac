"""ONNX Runtime: graphs made with onnx.helper, all of its optimisations on.

Where it has an operation of its own for something (Attention, MultiHeadAttention,
LayerNormalization, Gelu), the graph uses that; the weights are constants in the graph, so that it
can pack them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench import problems
from bench.rivals import Call, Calls

NAME = "onnxruntime"
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
_threads = 1


def version() -> str:
    return onnxruntime.__version__


def prepare(threads: int) -> None:
    global _threads
    _threads = threads


class Graph:
    """Nodes by call: g("MatMul", "x", "w") returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: problems.Array) -> str:
        name = f"constant_{len(self.constants)}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.constants.append(tensor)
        return name

    def call(self, feeds: dict[str, problems.Array], result: str) -> Callable[[], Any]:
        inputs = [
            helper.make_tensor_value_info(
                name,
                TensorProto.BOOL
                if a.dtype == bool
                else TensorProto.INT32
                if a.dtype == np.int32
                else TensorProto.FLOAT,
                a.shape,
            )
            for name, a in feeds.items()
        ]
        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "bench", inputs, [output], self.constants)
        model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, feeds)[0]


def calls(problem: problems.Problem) -> Calls:
    match problem:
        case problems.Attention():
            return _attention(problem)
        case problems.Linear():
            g = Graph()
            return {"": g.call({"x": problem.x}, _linear(g, "x", problem.weight, problem.bias))}
        case problems.RowOperation():
            return _rows(problem)
        case problems.Block():
            return _block(problem)
    raise NotImplementedError(type(problem).__name__)


def _linear(g: Graph, x: str, weight: problems.Array, bias: problems.Array) -> str:
    product = g("MatMul", x, g.constant(weight.T))
    return str(g("Add", product, g.constant(bias)))


def _attention(p: problems.Attention) -> Calls:
    """Attention of the standard (opset 23), and its own MultiHeadAttention, whose layout is
    (B, L, H * E), where that can say it."""
    feeds = {name: np.ascontiguousarray(getattr(p, name)) for name in ("query", "key", "value")}
    visible, added = (None, None) if p.is_plain else (p.visible(), p.added())
    inputs = list(feeds)
    if visible is not None or added is not None:
        mask = visible if added is None else added
        if added is not None and visible is not None:
            mask = np.where(visible, added, np.float32(-np.inf))
        assert mask is not None
        full = np.broadcast_to(mask, (*mask.shape[:-2], p.query.shape[2], p.key.shape[2]))
        feeds["mask"] = np.ascontiguousarray(full)
        inputs.append("mask")
    g = Graph()
    options = {"is_causal": int(p.is_causal and p.is_plain)}
    if p.softcap:
        options["softcap"] = p.softcap
    ways: Calls = {"Attention": g.call(feeds, g("Attention", *inputs, **options))}
    if p.is_plain and p.group == 1:
        ways["MultiHeadAttention"] = _multi_head(p)
    return ways


def _multi_head(p: problems.Attention) -> Call:
    batch, heads, q_len, _ = p.query.shape

    def rows(array: problems.Array) -> problems.Array:
        joined = array.transpose(0, 2, 1, 3).reshape(batch, array.shape[2], -1)
        return np.ascontiguousarray(joined)

    feeds = {name: rows(getattr(p, name)) for name in ("query", "key", "value")}
    g = Graph()
    result = g(
        "MultiHeadAttention",
        *feeds,
        domain="com.microsoft",
        num_heads=heads,
        unidirectional=int(p.is_causal),
    )

    def read(answer: problems.Array) -> problems.Array:
        return answer.reshape(batch, q_len, heads, -1).transpose(0, 2, 1, 3)

    return Call(g.call(feeds, result), read)


def _norm(g: Graph, x: str, weight: problems.Array, bias: problems.Array) -> str:
    return str(
        g("LayerNormalization", x, g.constant(weight), g.constant(bias), axis=-1, epsilon=1e-5)
    )


def _rows(p: problems.RowOperation) -> Calls:
    g = Graph()
    feeds = {"x": p.x}
    if p.name == "softmax":
        result = g("Softmax", "x", axis=-1)
    elif p.name == "gelu":
        result = g("Gelu", "x")
    else:
        assert p.weight is not None
        assert p.bias is not None
        z = "x"
        if p.residual is not None:
            feeds["residual"] = p.residual
            z = g("Add", "x", "residual")
        result = _norm(g, z, p.weight, p.bias)
    return {"": g.call(feeds, result)}


def _block(p: problems.Block) -> Calls:
    g = Graph()
    feeds = {"x": p.x} if p.memory is None else {"x": p.x, "memory": p.memory}
    state = p.state

    def normed(name: str, x: str, y: str) -> str:
        return _norm(g, g("Add", x, y), state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(prefix: str, x: str, memory: str, causal: bool) -> str:
        weight, bias = state[f"{prefix}in_proj_weight"], state[f"{prefix}in_proj_bias"]
        weights, biases = np.split(weight, 3), np.split(bias, 3)
        q, k, v = (
            _linear(g, rows, w, b)
            for rows, w, b in zip((x, memory, memory), weights, biases, strict=True)
        )
        options = {"domain": "com.microsoft", "num_heads": p.heads, "unidirectional": int(causal)}
        joined = g("MultiHeadAttention", q, k, v, **options)
        return _linear(
            g, joined, state[f"{prefix}out_proj.weight"], state[f"{prefix}out_proj.bias"]
        )

    if p.kind == "attention":
        return {"": g.call(feeds, attention("", "x", "x", False))}
    decoder = p.memory is not None
    x = normed("norm1", "x", attention("self_attn.", "x", "x", decoder))
    if decoder:
        x = normed("norm2", x, attention("multihead_attn.", x, "memory", False))
    hidden = g("Relu", _linear(g, x, state["linear1.weight"], state["linear1.bias"]))
    fed = _linear(g, hidden, state["linear2.weight"], state["linear2.bias"])
    return {"": g.call(feeds, normed("norm3" if decoder else "norm2", x, fed))}
