"""Ours, called as a user would."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import fastmha as fm
import numpy as np
from fastmha.generate import Hypothesis, beam_search, greedy_search

from bench import problems
from bench.marian import EOS, Marian
from bench.rivals import Call, Calls

NAME = "fastmha"
# The same shapes without whatever the workload is about: what a restriction of the scores costs.
PLAIN = "plain call"


def version() -> str:
    return fm.__version__


def prepare(threads: int) -> None:
    fm.set_num_threads(threads)


def calls(problem: problems.Problem) -> Calls:
    match problem:
        case problems.Attention():
            return _attention(problem)
        case problems.Ragged():
            p = problem
            offsets = p.offsets
            return {"": lambda: fm.varlen_attention(p.query, p.key, p.value, offsets)}
        case problems.Linear():
            layer = fm.Linear(problem.weight, problem.bias)
            out = np.empty((problem.x.shape[0], problem.weight.shape[0]), np.float32)
            x = problem.x
            return {"": lambda: layer(x), "out=": lambda: layer(x, out=out)}
        case problems.RowOperation():
            return _rows(problem)
        case problems.Block():
            return _block(problem)
        case problems.Sentences():
            model = fm.load(problem.directory)
            assert isinstance(model, fm.EncoderModel)
            ids = problem.ids
            return {"": lambda: model.encode_ids(ids, normalize=True)}
        case problems.Generation():
            return _generation(problem)


def _attention(problem: problems.Attention) -> Calls:
    p = problem
    options: dict[str, Any] = {}
    if p.is_causal:
        options["is_causal"] = True
    if p.key_lengths is not None:
        options["key_lengths"] = p.key_lengths
    if p.window is not None:
        options["window"] = p.window
    if p.slopes is not None:
        options["alibi_slopes"] = p.slopes
    if p.softcap:
        options["softcap"] = p.softcap
    if p.mask is not None:
        options["attn_mask"] = p.mask
    attend = fm.scaled_dot_product_attention
    ways: Calls = {"": lambda: attend(p.query, p.key, p.value, **options)}
    if p.with_out:
        out = np.empty((*p.query.shape[:-1], p.value.shape[-1]), np.float32)
        ways["out="] = lambda: attend(p.query, p.key, p.value, out=out, **options)
    return ways


def plain_call(problem: problems.Attention) -> Callable[[], Any]:
    """Unrestricted attention of the same arrays, copied to the plain layout: every query head with
    keys and values of its own, and all as wide as the narrower of keys and values."""
    width = min(problem.query.shape[-1], problem.value.shape[-1])
    key, value = (np.repeat(a, problem.group, axis=1) for a in (problem.key, problem.value))
    arrays = [np.ascontiguousarray(a[..., :width]) for a in (problem.query, key, value)]
    return lambda: fm.scaled_dot_product_attention(*arrays)


def _rows(problem: problems.RowOperation) -> Calls:
    p = problem
    out = np.empty_like(p.x)
    call: Callable[..., Any]
    if p.name in ("layer_norm", "add_norm"):

        def call(**options: Any) -> Any:
            return fm.layer_norm(p.x, p.weight, p.bias, residual=p.residual, **options)
    else:
        function = {"softmax": fm.softmax, "gelu": fm.gelu}[p.name]

        def call(**options: Any) -> Any:
            return function(p.x, **options)

    return {"": call, "out=": lambda: call(out=out)}


def _block(problem: problems.Block) -> Calls:
    p = problem
    block: Any
    if p.kind == "attention":
        block = fm.MultiHeadAttention(p.d_model, p.heads)
    else:
        kind = fm.EncoderBlock if p.kind == "encoder" else fm.DecoderBlock
        block = kind(p.d_model, p.heads, p.d_ff)
    block.load_state_dict(p.state)
    if p.memory is None:
        return {"": lambda: block(p.x)}
    return {"": lambda: block(p.x, p.memory)}


def _generation(problem: problems.Generation) -> Calls:
    p, transformer = problem, transformer_of(problem.network)
    sources = list(p.sources)
    options = {"bos": p.network.pad, "eos": EOS, "max_new_tokens": p.count}

    def generate() -> list[Hypothesis]:
        start = transformer.start(sources, p.count, beam_size=p.beam_size)
        if p.beam_size == 1:
            return greedy_search(start, len(sources), **options)
        return beam_search(start, len(sources), beam_size=p.beam_size, **options)

    return {"": Call(generate, lambda found: np.array([hypothesis.ids for hypothesis in found]))}


@lru_cache(maxsize=1)
def transformer_of(network: Marian) -> fm.Transformer:
    """Marian's weights under the names of torch.nn's Transformer."""
    size = network
    transformer = fm.Transformer(
        size.vocab_size,
        size.vocab_size,
        size.d_model,
        size.heads,
        size.layers,
        size.layers,
        size.d_ff,
        final_norm=False,
        positions="learned",
        max_positions=size.positions,
        pad_token_id=size.pad,
        bos_token_id=size.pad,
        eos_token_id=EOS,
    )
    weights = network.weights
    state = {"output.bias": weights["final_logits_bias"][0]}
    state["output.weight"] = weights["model.shared.weight"]
    for side in ("src", "tgt"):
        state[f"{side}_embedding.weight"] = weights["model.shared.weight"]
        state[f"{side}_position.weight"] = network.position_table.astype(np.float32)
    for side in ("encoder", "decoder"):
        for layer in range(size.layers):
            theirs, ours = f"model.{side}.layers.{layer}", f"{side}.layers.{layer}"
            parts = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}
            for part, name in parts.items():
                if f"{theirs}.{part}.q_proj.weight" not in weights:
                    continue
                for kind in ("weight", "bias"):
                    state[f"{ours}.{name}.in_proj_{kind}"] = np.concatenate(
                        [weights[f"{theirs}.{part}.{each}_proj.{kind}"] for each in "qkv"]
                    )
                    state[f"{ours}.{name}.out_proj.{kind}"] = weights[
                        f"{theirs}.{part}.out_proj.{kind}"
                    ]
            norms = ["self_attn_layer_norm", "final_layer_norm"]
            if side == "decoder":
                norms.insert(1, "encoder_attn_layer_norm")
            names = {"fc1": "linear1", "fc2": "linear2"}
            names |= {norm: f"norm{number}" for number, norm in enumerate(norms, 1)}
            for their_name, name in names.items():
                for kind in ("weight", "bias"):
                    state[f"{ours}.{name}.{kind}"] = weights[f"{theirs}.{their_name}.{kind}"]
    transformer.load_state_dict(state)
    return transformer
