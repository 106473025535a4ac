"""PyTorch, in every way in which its users could say it: the fastest one counts.

The answers stay tensors: nothing is converted inside a call.
"""

import math
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench import problems
from bench.rivals import Call, Calls

NAME = "torch"
# Compiling flex_attention for one workload takes 5 to 20 s: FASTMHA_BENCH_FLEX=0 leaves it out.
FLEX = "FASTMHA_BENCH_FLEX"

_inference = torch.inference_mode()


def version() -> str:
    return torch.__version__


def prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    # for the rest of the process: entering it in every call would cost a small one a tenth
    if not torch.is_inference_mode_enabled():
        _inference.__enter__()


def tensor(array: Any) -> Any:
    return None if array is None else torch.from_numpy(array)


def calls(problem: problems.Problem) -> Calls:
    match problem:
        case problems.Attention():
            ways = _attention(problem)
        case problems.Ragged():
            ways = _ragged(problem)
        case problems.Linear():
            ways = _linear(problem)
        case problems.RowOperation():
            ways = _rows(problem)
        case problems.Block():
            ways = _block(problem)
        case problems.Sentences():
            ways = _sentences(problem)
        case problems.Generation():
            raise NotImplementedError  # transformers does it with PyTorch
    return ways


# ---- attention -----------------------------------------------------------------------------------


def _attention(p: problems.Attention) -> Calls:
    query, key, value = tensor(p.query), tensor(p.key), tensor(p.value)
    attend = functional.scaled_dot_product_attention
    if p.group > 1:
        repeated = partial(torch.repeat_interleave, repeats=p.group, dim=1)
        return {
            "enable_gqa": lambda: attend(query, key, value, enable_gqa=True),
            "repeat_interleave": lambda: attend(query, repeated(key), repeated(value)),
        }
    if p.is_plain:
        return {"": lambda: attend(query, key, value, is_causal=p.is_causal)}
    ways: Calls = {}
    visible, added = p.visible(), p.added()
    if p.softcap:
        ways["eager"] = partial(_capped, query, key, value, p.softcap, tensor(visible))
    elif added is None:
        assert visible is not None
        ways["bool mask"] = partial(attend, query, key, value, tensor(visible))
        floats = np.where(visible, np.float32(0), np.float32(-np.inf))
        ways["float mask"] = partial(attend, query, key, value, tensor(floats))
    else:
        floats = added if visible is None else np.where(visible, added, np.float32(-np.inf))
        floats = np.ascontiguousarray(floats.reshape((1,) * (4 - floats.ndim) + floats.shape))
        ways["float mask"] = partial(attend, query, key, value, tensor(floats))
    if (p.window or p.softcap or p.slopes is not None) and os.environ.get(FLEX) != "0":
        ways["flex_attention"] = _flex(p, query, key, value)
    return ways


def _capped(query: Any, key: Any, value: Any, cap: float, visible: Any) -> Any:
    """There is no softcap in scaled_dot_product_attention: the formula, in place."""
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(1 / (cap * math.sqrt(query.shape[-1])))
    scores.tanh_().mul_(cap)
    if visible is not None:
        scores.masked_fill_(~visible, -math.inf)
    return torch.matmul(torch.softmax(scores, -1), value)


def _flex(p: problems.Attention, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    """Compiled by the first call, which nobody times."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    slopes, cap = tensor(p.slopes), p.softcap
    left, right = p.window or (p.query.shape[2], 0)

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i - j <= left) & (j - i <= right)

    def bent(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if slopes is not None:
            return score - slopes[h] * torch.abs(i - j)
        return cap * torch.tanh(score / cap)

    lengths = p.query.shape[2], p.key.shape[2]
    restricted = p.window is not None or p.is_causal
    mask = create_block_mask(visible, None, None, *lengths, device="cpu") if restricted else None
    score_mod = bent if slopes is not None or cap else None
    torch._dynamo.reset()  # a closure for each workload: the limit of recompilations is not for us
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, key, value, score_mod=score_mod, block_mask=mask)


def _ragged(p: problems.Ragged) -> Calls:
    """Padded, with a mask over the padding (what is timed is the call, not the padding of its
    inputs); and sequence by sequence, without any."""
    longest, heads, width = max(p.lengths), *p.query.shape[1:]
    query, key, value = (torch.zeros(len(p.lengths), heads, longest, width) for _ in range(3))
    for n, rows in enumerate(p.sequences()):
        for padded, packed in ((query, p.query), (key, p.key), (value, p.value)):
            padded[n, :, : p.lengths[n]] = tensor(packed)[rows].transpose(0, 1)
    mask = (torch.arange(longest) < torch.tensor(p.lengths)[:, None])[:, None, None, :]
    attend = functional.scaled_dot_product_attention
    packed_inputs = [tensor(array).transpose(0, 1)[None] for array in (p.query, p.key, p.value)]
    out = torch.empty(p.query.shape)

    def one_by_one() -> Any:
        for rows in p.sequences():
            piece = attend(*(array[:, :, rows] for array in packed_inputs))
            out[rows] = piece[0].transpose(0, 1)
        return out

    def unpadded(padded: Any) -> Any:
        return torch.cat(
            [padded[n, :, :length].transpose(0, 1) for n, length in enumerate(p.lengths)]
        )

    return {
        "padded, mask": Call(lambda: attend(query, key, value, mask), unpadded),
        "one by one": one_by_one,
    }


# ---- linear, rows, blocks ------------------------------------------------------------------------


def _linear(p: problems.Linear) -> Calls:
    x, weight, bias = tensor(p.x), tensor(p.weight), tensor(p.bias)
    out = torch.empty(x.shape[0], weight.shape[0])
    return {
        "": lambda: functional.linear(x, weight, bias),
        "out=": lambda: torch.addmm(bias, x, weight.t(), out=out),
    }


def _rows(p: problems.RowOperation) -> Calls:
    x, residual, weight, bias = map(tensor, (p.x, p.residual, p.weight, p.bias))
    out = torch.empty_like(x)
    width = x.shape[-1:]
    if p.name == "softmax":
        return {
            "": lambda: torch.softmax(x, -1),
            "out=": lambda: torch.softmax(x, -1, out=out),
        }
    if p.name == "gelu":
        return {
            "": lambda: functional.gelu(x),
            "out=": lambda: torch.ops.aten.gelu.out(x, out=out),
        }
    mean, scale = torch.empty(x.shape[0], 1), torch.empty(x.shape[0], 1)

    def normed_into(z: Any) -> Any:
        norm = torch.ops.aten.native_layer_norm.out
        return norm(z, width, weight, bias, 1e-5, out0=out, out1=mean, out2=scale)[0]

    if residual is None:
        return {
            "": lambda: functional.layer_norm(x, width, weight, bias),
            "out=": lambda: normed_into(x),
        }
    return {
        "": lambda: functional.layer_norm(x + residual, width, weight, bias),
        "out=": lambda: normed_into(torch.add(x, residual, out=out)),
    }


def module_of(p: problems.Block) -> nn.Module:
    """The torch.nn module with the problem's weights."""
    module: nn.Module
    if p.kind == "attention":
        module = nn.MultiheadAttention(p.d_model, p.heads, batch_first=True)
    else:
        kind = nn.TransformerEncoderLayer if p.kind == "encoder" else nn.TransformerDecoderLayer
        module = kind(p.d_model, p.heads, p.d_ff, batch_first=True)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in p.state.items()})
    return module.eval()


def call_of(p: problems.Block, module: nn.Module) -> Callable[..., Any]:
    """module(x), or module(x, memory), with the settings that the problem means."""
    if p.kind == "attention":
        return lambda x: module(x, x, x, need_weights=False)[0]
    if p.kind == "encoder":
        return module
    causal = nn.Transformer.generate_square_subsequent_mask(p.x.shape[1])
    return lambda x, memory: module(x, memory, tgt_mask=causal, tgt_is_causal=True)


def inputs_of(p: problems.Block) -> list[Any]:
    return [tensor(array) for array in (p.x, p.memory) if array is not None]


def _block(p: problems.Block) -> Calls:
    """The encoder layer and attention have a fused inference path; the decoder layer has none."""
    call, inputs = call_of(p, module_of(p)), inputs_of(p)

    def with_fast_path(enabled: bool) -> Any:
        torch.backends.mha.set_fastpath_enabled(enabled)
        return call(*inputs)

    if p.kind == "decoder":
        return {"": lambda: call(*inputs)}
    return {
        "": partial(with_fast_path, True),
        "no fast path": partial(with_fast_path, False),
    }


# ---- texts ---------------------------------------------------------------------------------------


@cache
def bert(directory: Path, attention: str) -> nn.Module:
    """transformers' BertModel with one of its implementations of attention."""
    try:
        from transformers import BertModel
        from transformers.utils import logging
    except ImportError:
        raise NotImplementedError("texts are encoded by transformers, which is not here") from None
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the pooler is in the file and not used
    model: nn.Module = BertModel.from_pretrained(
        directory, attn_implementation=attention, add_pooling_layer=False, dtype=torch.float32
    )
    return model.eval()


def pooled(states: Any, mask: Any) -> Any:
    """The mean over the rows that are no padding, at length 1."""
    if mask is None:
        return functional.normalize(states.mean(1))
    weights = mask[:, :, None].to(states.dtype)
    return functional.normalize((states * weights).sum(1) / weights.sum(1))


def _sentences(p: problems.Sentences) -> Calls:
    def way(model: nn.Module, groups: list[problems.Group]) -> Callable[[], Any]:
        inputs = [
            (tensor(g.places), tensor(g.ids), tensor(g.mask) if g.padded else None) for g in groups
        ]
        out = torch.empty(len(p.ids), int(p.config["hidden_size"]))

        def run() -> Any:
            for places, ids, mask in inputs:
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state
                out[places] = pooled(states, mask)
            return out

        return run

    ways: Calls = {}
    for number, (words, groups) in enumerate(p.groupings.items()):
        ways[f"sdpa {words}".strip()] = way(bert(p.directory, "sdpa"), groups)
        if number == 0:
            ways[f"eager {words}".strip()] = way(bert(p.directory, "eager"), groups)
    return ways
