"""Ours, called as a user would."""

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastmha as fm
import numpy as np
from fastmha.config import read_json
from fastmha.decoding import GenerationSettings, Hypothesis, generate
from fastmha.families.marian import MARIAN
from fastmha.nn.encoder_decoder import EncoderDecoder
from fastmha.tensors import Tensors

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
    p, network = problem, network_of(problem.network)
    settings = GenerationSettings(
        decoder_start_token_id=p.network.pad,
        eos_token_id=EOS,
        max_new_tokens=p.count,
        num_beams=p.beam_size,
    )

    def best(found: list[list[Hypothesis]]) -> np.ndarray:
        return np.array([hypotheses[0].ids for hypotheses in found])

    return {"": Call(lambda: list(generate(network, p.sources, settings)), best)}


@lru_cache(maxsize=1)
def network_of(marian: Marian) -> EncoderDecoder:
    """From a checkpoint's directory, as `fm.load` makes it; there is no tokenizer in this one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marian.write(folder)
        config, tensors = read_json(folder / "config.json"), Tensors(folder)
        _, network = MARIAN.build(config, folder / "config.json", tensors)
        MARIAN.load(network, tensors, folder)
    return network
