"""ONNX Runtime: graphs made with onnx.helper, all of its optimisations on.

Where it has an operation of its own for something (Attention, MultiHeadAttention,
LayerNormalization, Gelu), the graph uses that; the weights are constants in the graph, so that it
can pack them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
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
        types = {"bool": TensorProto.BOOL, "int32": TensorProto.INT32}
        inputs = [
            helper.make_tensor_value_info(name, types.get(a.dtype.name, TensorProto.FLOAT), a.shape)
            for name, a in feeds.items()
        ]
        session = start(self.model(inputs, result))
        return lambda: session.run(None, feeds)[0]

    def model(self, inputs: list[Any], result: str) -> bytes:
        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "bench", inputs, [output], self.constants)
        made = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
        return bytes(made.SerializeToString())


def start(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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
        case problems.Sentences():
            return _sentences(problem)
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


# ---- texts ---------------------------------------------------------------------------------------


def sentence_model(p: problems.Sentences, *, fused: bool, padded: bool) -> bytes:
    """The whole network out of the operations that ONNX Runtime's own optimiser for BERT puts
    together: embeddings with their norm, Attention with its projections (`fused`) or
    MultiHeadAttention behind them, norms with their addition, gelu with its bias.

    Inputs: ids (B, L), and when `padded` mask (B, L), both int32.
    """
    g, state, own = Graph(), p.state, {"domain": "com.microsoft"}

    def constant(name: str) -> str:
        return g.constant(state[name])

    def product(x: str, name: str) -> str:
        return str(g("MatMul", x, g.constant(state[f"{name}.weight"].T)))

    def added_and_normed(name: str, x: str, residual: str) -> str:
        norm = [constant(f"{name}.LayerNorm.{part}") for part in ("weight", "bias")]
        bias = constant(f"{name}.dense.bias")
        dense = product(x, f"{name}.dense")
        return str(g("SkipLayerNormalization", dense, residual, *norm, bias, epsilon=p.eps, **own))

    def attention(x: str, prefix: str) -> str:
        names = [f"{prefix}.{part}" for part in ("query", "key", "value")]
        bias = g.constant(np.concatenate([state[f"{name}.bias"] for name in names]))
        if fused:
            weight = g.constant(np.concatenate([state[f"{name}.weight"] for name in names]).T)
            inputs = [x, weight, bias, lengths] if padded else [x, weight, bias]
            return str(g("Attention", *inputs, num_heads=p.heads, **own))
        inputs = [*(product(x, name) for name in names), bias]
        inputs += [lengths] if padded else []
        return str(g("MultiHeadAttention", *inputs, num_heads=p.heads, **own))

    embeddings = "embeddings.{}_embeddings.weight"
    types = state[embeddings.format("token_type")][0]
    positions = g.constant(state[embeddings.format("position")] + types)
    tables = [constant(embeddings.format("word")), positions, ""]
    norm = [constant(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
    inputs = ["ids", "", *tables, *norm, *(["mask"] if padded else [])]
    # the second output: the lengths, from the mask
    x, lengths = g("EmbedLayerNormalization", *inputs, outputs=2, epsilon=p.eps, **own)
    for n in range(int(p.config["num_hidden_layers"])):
        layer = f"encoder.layer.{n}"
        attended = attention(x, f"{layer}.attention.self")
        x = added_and_normed(f"{layer}.attention.output", attended, x)
        inner = product(x, f"{layer}.intermediate.dense")
        inner = g("BiasGelu", inner, constant(f"{layer}.intermediate.dense.bias"), **own)
        x = added_and_normed(f"{layer}.output", inner, x)
    places = g.constant(np.array([1]))
    if padded:
        weights = g("Cast", g("Unsqueeze", "mask", g.constant(np.array([2]))), to=TensorProto.FLOAT)
        total = g("ReduceSum", g("Mul", x, weights), places, keepdims=0)
        x = g("Div", total, g("ReduceSum", weights, places, keepdims=0))
    else:
        x = g("ReduceMean", x, places, keepdims=0)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"])
        for name in (("ids", "mask") if padded else ("ids",))
    ]
    return g.model(inputs, g("LpNormalization", x, axis=-1, p=2))


@cache
def _sentence_session(directory: Path, fused: bool, padded: bool) -> onnxruntime.InferenceSession:
    p = problems.Sentences(directory, ())
    return start(sentence_model(p, fused=fused, padded=padded))


def _sentences(p: problems.Sentences) -> Calls:
    def way(fused: bool, groups: list[problems.Group]) -> Callable[[], Any]:
        runs = []
        for g in groups:
            feeds = {"ids": g.ids.astype(np.int32)}
            feeds |= {"mask": g.mask.astype(np.int32)} if g.padded else {}
            runs.append((g.places, _sentence_session(p.directory, fused, g.padded), feeds))
        out = np.empty((len(p.ids), int(p.config["hidden_size"])), np.float32)

        def run() -> Any:
            for places, session, feeds in runs:
                out[places] = session.run(None, feeds)[0]
            return out

        return run

    return {
        f"{name} {words}".strip(): way(name == "Attention", groups)
        for words, groups in p.groupings.items()
        for name in ("Attention", "MultiHeadAttention")
    }
