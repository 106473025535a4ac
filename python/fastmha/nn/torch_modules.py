"""The settings of torch.nn modules, read into the arguments of ours.

Everything that a module computes is read from it; what we cannot compute is refused by name.
"""

import functools
import importlib
from typing import Any


def attention_settings(module: Any) -> dict[str, Any]:
    """Of a torch.nn.MultiheadAttention."""
    _check_type(module, "MultiheadAttention")
    what = "MultiHeadAttention.from_torch"
    if module.bias_k is not None or module.bias_v is not None:
        raise ValueError(f"{what}: add_bias_kv=True is not supported")
    if module.add_zero_attn:
        raise ValueError(f"{what}: add_zero_attn=True is not supported")
    _check_dropout(what, module, module.dropout)
    return {
        "embed_dim": module.embed_dim,
        "num_heads": module.num_heads,
        "kdim": module.kdim,
        "vdim": module.vdim,
        "bias": module.in_proj_bias is not None,
    }


def encoder_block_settings(module: Any) -> dict[str, Any]:
    """Of a torch.nn.TransformerEncoderLayer."""
    _check_type(module, "TransformerEncoderLayer")
    return _block_settings("EncoderBlock.from_torch", module, ("norm1", "norm2"))


def decoder_block_settings(module: Any) -> dict[str, Any]:
    """Of a torch.nn.TransformerDecoderLayer."""
    _check_type(module, "TransformerDecoderLayer")
    attention_settings(module.multihead_attn)
    return _block_settings("DecoderBlock.from_torch", module, ("norm1", "norm2", "norm3"))


def norm_settings(module: Any) -> dict[str, Any]:
    """Of a torch.nn.LayerNorm over the last axis, with a weight."""
    _check_type(module, "LayerNorm")
    if len(module.normalized_shape) != 1 or module.weight is None:
        raise ValueError(
            "LayerNorm.from_torch: needs one normalised axis and elementwise_affine=True, "
            f"got {module!r}"
        )
    return {
        "dim": module.normalized_shape[0],
        "eps": module.eps,
        "bias": module.bias is not None,
    }


def check_stack(module: Any, name: str) -> None:
    """`module` must be a torch.nn.TransformerEncoder or TransformerDecoder."""
    _check_type(module, name)


def activation_name(what: str, activation: Any) -> str:
    """relu, gelu, gelu_tanh or silu, from a function, a partial of one, or a module."""
    nn = importlib.import_module("torch.nn")
    functional = importlib.import_module("torch.nn.functional")
    torch = importlib.import_module("torch")
    approximate = "none"
    if isinstance(activation, functools.partial) and activation.func is functional.gelu:
        settings = dict(activation.keywords)
        approximate = settings.pop("approximate", "none")
        if not activation.args and not settings:
            activation = functional.gelu
    if isinstance(activation, nn.GELU):
        approximate, activation = activation.approximate, functional.gelu
    if activation is functional.gelu:
        return "gelu_tanh" if approximate == "tanh" else "gelu"
    if activation in (functional.relu, torch.relu) or isinstance(activation, nn.ReLU):
        return "relu"
    if activation is functional.silu or isinstance(activation, nn.SiLU):
        return "silu"
    raise ValueError(
        f"{what}: activation {activation!r} is not supported; "
        "relu, gelu (exact or tanh) and silu are"
    )


def _block_settings(what: str, module: Any, norms: tuple[str, ...]) -> dict[str, Any]:
    attention_settings(module.self_attn)
    for name in ("dropout", "dropout1", "dropout2", "dropout3"):
        if hasattr(module, name):
            _check_dropout(what, module, getattr(module, name).p)
    for name in norms:
        norm_settings(getattr(module, name))
    return {
        "d_model": module.self_attn.embed_dim,
        "num_heads": module.self_attn.num_heads,
        "d_ff": module.linear1.out_features,
        "activation": activation_name(what, module.activation),
        "norm_first": bool(module.norm_first),
        "norm_eps": module.norm1.eps,
        "bias": module.linear1.bias is not None,
    }


def _check_type(module: Any, name: str) -> None:
    nn = importlib.import_module("torch.nn")
    if not isinstance(module, getattr(nn, name)):
        raise TypeError(f"from_torch: expected a torch.nn.{name}, got {type(module).__name__}")


def _check_dropout(what: str, module: Any, dropout: float) -> None:
    if module.training and dropout > 0:
        raise ValueError(
            f"{what}: the module is in training mode with dropout={dropout}; "
            "call module.eval() first, fastmha runs inference"
        )
