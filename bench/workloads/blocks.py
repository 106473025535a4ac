"""MultiHeadAttention, encoder and decoder blocks beside torch.nn with the same weights.

torch's encoder layer and attention have a fused inference path; it is measured with and without.
The expected answers are torch's own modules in float64.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import fastmha as fm
import torch
from torch import nn

from bench.harness import OURS, Case, Workload

D_MODEL, HEADS, D_FF = 512, 8, 2048
# batch, length
BLOCK_SHAPES = [(1024, 5), (1, 128), (4, 512)]
# Sums of up to D_FF products, behind norms that bring everything back to the size of 1.
TOLERANCE = 2.0**-24 * D_FF


def torch_rivals(call: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The same call with torch's fused inference path and without it."""

    def with_fast_path(enabled: bool) -> Any:
        torch.backends.mha.set_fastpath_enabled(enabled)
        return call()

    return {
        "torch": partial(with_fast_path, True),
        "torch, no fast path": partial(with_fast_path, False),
    }


def in_float64(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    double = copy.deepcopy(module).double()
    options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    answer = double(*(tensor.double() for tensor in inputs), **options)
    return (answer[0] if isinstance(answer, tuple) else answer).numpy()


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make_attention(batch: int, length: int) -> Case:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(D_MODEL, HEADS, batch_first=True).eval()
    x = randn(batch, length, D_MODEL)
    ours, array = fm.MultiHeadAttention.from_torch(module), x.numpy()
    return Case(
        {
            OURS: lambda: ours(array),
            **torch_rivals(lambda: module(x, x, x, need_weights=False)),
        },
        in_float64(module, x, x, x, need_weights=False),
        TOLERANCE,
    )


def make_encoder(batch: int, length: int) -> Case:
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(D_MODEL, HEADS, D_FF, batch_first=True).eval()
    x = randn(batch, length, D_MODEL)
    ours, array = fm.EncoderBlock.from_torch(module), x.numpy()
    return Case(
        {OURS: lambda: ours(array), **torch_rivals(lambda: module(x))},
        in_float64(module, x),
        TOLERANCE,
    )


def make_decoder(batch: int, length: int) -> Case:
    torch.manual_seed(0)
    module = nn.TransformerDecoderLayer(D_MODEL, HEADS, D_FF, batch_first=True).eval()
    x, memory = randn(2, batch, length, D_MODEL)
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    options: dict[str, Any] = {"tgt_mask": causal, "tgt_is_causal": True}
    ours = fm.DecoderBlock.from_torch(module)
    target, source = x.contiguous().numpy(), memory.contiguous().numpy()
    return Case(
        # the decoder layer has no fused path of its own
        {OURS: lambda: ours(target, source), "torch": lambda: module(x, memory, **options)},
        in_float64(module, x, memory, **options),
        TOLERANCE,
    )


def projection_flops(rows: int, in_features: int, out_features: int) -> float:
    return 2.0 * rows * in_features * out_features


def attention_flops(batch: int, length: int, *, causal: bool = False) -> float:
    """Four projections and the attention itself, of as many queries as keys."""
    pairs = length * (length + 1) / 2 if causal else length * length
    return 4 * projection_flops(batch * length, D_MODEL, D_MODEL) + 4.0 * batch * pairs * D_MODEL


def workloads() -> list[Workload]:
    width = f"{D_MODEL}/{HEADS}/{D_FF}"
    projections = 4.0 * 4 * D_MODEL * D_MODEL  # bytes of the four weights of one attention
    feed_forward = 4.0 * 2 * D_MODEL * D_FF
    found = [
        Workload(
            "blocks",
            f"MultiHeadAttention 1024 x 5 x {D_MODEL}, {HEADS} heads",
            flops=attention_flops(1024, 5),
            bytes=2 * 4.0 * 1024 * 5 * D_MODEL + projections,
            make=partial(make_attention, 1024, 5),
        )
    ]
    for batch, length in BLOCK_SHAPES:
        rows = batch * length
        found.append(
            Workload(
                "blocks",
                f"EncoderBlock {width}, {batch} x {length}",
                flops=attention_flops(batch, length) + 2 * projection_flops(rows, D_MODEL, D_FF),
                bytes=2 * 4.0 * rows * D_MODEL + projections + feed_forward,
                make=partial(make_encoder, batch, length),
            )
        )
    for batch, length in BLOCK_SHAPES:
        rows = batch * length
        found.append(
            Workload(
                "blocks",
                f"DecoderBlock {width}, {batch} x {length}",
                flops=attention_flops(batch, length, causal=True)
                + attention_flops(batch, length)
                + 2 * projection_flops(rows, D_MODEL, D_FF),
                bytes=3 * 4.0 * rows * D_MODEL + 2 * projections + feed_forward,
                make=partial(make_decoder, batch, length),
            )
        )
    return found
