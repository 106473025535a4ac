"""OpenVINO, told to compute in float32 (by default it may take bfloat16 where the CPU has it).

Operations are graphs of its own opset; blocks are converted from torch's modules, as its users do,
where torch is there. Inputs and outputs are shared, not copied.
"""

import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op

from bench import problems
from bench.rivals import Calls

NAME = "openvino"
_settings: dict[str, Any] = {}


def version() -> str:
    return str(openvino.__version__).partition("-")[0]


def prepare(threads: int) -> None:
    _settings.update(
        INFERENCE_PRECISION_HINT="f32",
        INFERENCE_NUM_THREADS=threads,
        PERFORMANCE_HINT="LATENCY",
        EXECUTION_MODE_HINT="ACCURACY",
    )


def _call(model: Any, inputs: list[problems.Array]) -> Callable[[], Any]:
    compiled = openvino.Core().compile_model(model, "CPU", _settings)
    request = compiled.create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


def calls(problem: problems.Problem) -> Calls:
    match problem:
        case problems.Attention():
            return _attention(problem)
        case problems.Linear():
            p = problem
            x = op.parameter(p.x.shape, np.float32)
            product = op.matmul(x, op.constant(p.weight), False, True)
            model = openvino.Model([op.add(product, op.constant(p.bias))], [x])
            return {"": _call(model, [p.x])}
        case problems.RowOperation():
            return _rows(problem)
        case problems.Block():
            return _block(problem)
        case problems.Sentences():
            return _sentences(problem)
    raise NotImplementedError(type(problem).__name__)


def _attention(p: problems.Attention) -> Calls:
    if p.softcap or p.group > 1:
        raise NotImplementedError("its operation has neither softcap nor grouped heads")
    arrays = [np.ascontiguousarray(array) for array in (p.query, p.key, p.value)]
    visible, added = (None, None) if p.is_plain else (p.visible(), p.added())
    if visible is not None and added is not None:
        visible, added = None, np.where(visible, added, np.float32(-np.inf))
    mask = visible if added is None else added
    if mask is not None:
        full = np.broadcast_to(mask, (*mask.shape[:-2], p.query.shape[2], p.key.shape[2]))
        full = np.ascontiguousarray(full)
        arrays.append(full.reshape((1,) * (4 - full.ndim) + full.shape))
    parameters = [op.parameter(a.shape, a.dtype.type) for a in arrays]
    result = op.scaled_dot_product_attention(*parameters, causal=p.is_causal and p.is_plain)
    return {"": _call(openvino.Model([result], parameters), arrays)}


def _rows(p: problems.RowOperation) -> Calls:
    x = op.parameter(p.x.shape, np.float32)
    if p.name == "softmax":
        return {"": _call(openvino.Model([op.softmax(x, -1)], [x]), [p.x])}
    if p.name == "gelu":
        return {"": _call(openvino.Model([op.gelu(x, "erf")], [x]), [p.x])}
    parameters, arrays, z = [x], [p.x], x
    if p.residual is not None:
        parameters.append(op.parameter(p.residual.shape, np.float32))
        arrays.append(p.residual)
        z = op.add(x, parameters[-1])
    unit = op.mvn(z, op.constant(np.array([-1])), True, 1e-5, "INSIDE_SQRT")
    result = op.add(op.multiply(unit, op.constant(p.weight)), op.constant(p.bias))
    return {"": _call(openvino.Model([result], parameters), arrays)}


def _block(p: problems.Block) -> Calls:
    try:
        import torch

        from bench.rivals import torch as rival
    except ImportError:
        raise NotImplementedError("blocks are converted from torch, which is not here") from None

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = rival.module_of(p)

        def forward(self, *inputs: Any) -> Any:
            return rival.call_of(p, self.module)(*inputs)

    inputs = rival.inputs_of(p)
    # torch's fast path is an operation of torch alone
    torch.backends.mha.set_fastpath_enabled(False)
    model = _converted(Traced(), inputs)
    for port, array in zip(model.inputs, inputs, strict=True):
        port.get_node().set_partial_shape(openvino.PartialShape(list(array.shape)))
    model.validate_nodes_and_infer_types()
    return {"": _call(model, [array.numpy() for array in inputs])}


def _converted(module: Any, inputs: list[Any]) -> Any:
    logging.getLogger("openvino").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the conversion traces, which torch calls deprecated
        return openvino.convert_model(module.eval(), example_input=tuple(inputs))


# ---- texts ---------------------------------------------------------------------------------------


def sentence_model(directory: Path, *, padded: bool) -> Any:
    """transformers' BertModel with pooling, for any batch and length: ids (B, L), and when `padded`
    mask (B, L) of bool."""
    try:
        import torch

        from bench.rivals import torch as rival
    except ImportError:
        raise NotImplementedError("texts: converted from torch, which is not here") from None

    class Embedded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = rival.bert(directory, "sdpa")

        def forward(self, ids: Any, mask: Any = None) -> Any:
            # of four axes, so that transformers takes it as it is: what it makes of two is no graph
            visible = None if mask is None else mask[:, None, None, :]
            states = self.bert(input_ids=ids, attention_mask=visible).last_hidden_state
            return rival.pooled(states, mask)

    inputs = [torch.ones(2, 3, dtype=torch.int64)]
    inputs += [torch.ones(2, 3, dtype=torch.bool)] if padded else []
    model = _converted(Embedded(), inputs)
    for port in model.inputs:
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


@cache
def _sentence_request(directory: Path, padded: bool) -> Any:
    model = sentence_model(directory, padded=padded)
    return openvino.Core().compile_model(model, "CPU", _settings).create_infer_request()


def _sentences(p: problems.Sentences) -> Calls:
    def way(groups: list[problems.Group]) -> Callable[[], Any]:
        runs = [
            (
                g.places,
                _sentence_request(p.directory, g.padded),
                [g.ids, g.mask] if g.padded else [g.ids],
            )
            for g in groups
        ]
        out = np.empty((len(p.ids), int(p.config["hidden_size"])), np.float32)

        def run() -> Any:
            for places, request, inputs in runs:
                out[places] = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
            return out

        return run

    return {words: way(groups) for words, groups in p.groupings.items()}
