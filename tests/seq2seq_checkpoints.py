"""Small encoder-decoder checkpoints with random weights, written by transformers itself, and what
transformers computes with them."""

import numpy as np
import torch
import transformers
from fastmha.config import read_json
from fastmha.families import SEQ2SEQ_FAMILIES
from fastmha.nn.ragged import cumulative
from fastmha.tensors import Tensors

VOCAB = 113
PAD, BOS, EOS = 1, 0, 2
SIZES = {
    **{"vocab_size": VOCAB, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 3},
    **{"encoder_ffn_dim": 72, "decoder_ffn_dim": 80, "max_position_embeddings": 96},
    **{"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS},
    **{"decoder_start_token_id": EOS, "forced_eos_token_id": None},
}
T5_SIZES = {
    **{"vocab_size": VOCAB, "d_model": 48, "d_kv": 20, "d_ff": 72, "num_heads": 3},
    **{"num_layers": 2, "pad_token_id": 0, "eos_token_id": EOS, "decoder_start_token_id": 0},
}
# model_type -> names of transformers' classes, and the sizes
FAMILIES = {
    "bart": ("BartConfig", "BartForConditionalGeneration", SIZES),
    "m2m_100": ("M2M100Config", "M2M100ForConditionalGeneration", SIZES),
    "marian": ("MarianConfig", "MarianMTModel", SIZES),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", SIZES),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", T5_SIZES),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5_SIZES),
}


def write_checkpoint(
    directory, model_type, *, seed=0, std=0.3, dtype=torch.float32, shards=None, change=None,
    **config,
):  # fmt: skip
    """Write a checkpoint of weights that make for sharp logits, which `change` may change; returns
    transformers' model in float32."""
    config_class, model_class, sizes = FAMILIES[model_type]
    torch.manual_seed(seed)
    made = getattr(transformers, config_class)(**{**sizes, **config})
    model = getattr(transformers, model_class)(made).eval()
    # what is all 0 or 1 would hide a wrong name, so norms and biases are drawn, too
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fixed = model_type in ("marian", "m2m_100")  # positions that nothing is learnt in
    with torch.no_grad():
        for name, parameter in state.items():
            if fixed and "embed_positions" in name:
                continue
            parameter.normal_(0, std)
            # what T5 expects its weights to do, and a scale that it takes out of logits
            if name.endswith("Attention.q.weight"):
                parameter.mul_(made.d_kv**-0.5)
            if name == "shared.weight" and getattr(made, "scale_decoder_outputs", False):
                parameter.mul_(made.d_model**0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
        if change is not None:
            change(model)
    model.to(dtype)
    options = {} if shards is None else {"max_shard_size": shards}
    model.save_pretrained(directory, **options)
    if dtype != torch.float32:  # read again: to() has rounded fixed positions, too
        model = type(model).from_pretrained(directory, dtype=torch.float32).eval()
    return model


def load(directory):
    """The network alone, as fm.load() makes it."""
    config = read_json(directory / "config.json")
    family = SEQ2SEQ_FAMILIES[config["model_type"]]
    tensors = Tensors(directory)
    _, network = family.build(config, directory / "config.json", tensors)
    family.load(network, tensors, directory)
    return network


def sequences(*lengths, first=None, seed=0):
    """Token ids; `first` opens each of them."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(3, VOCAB, n) for n in lengths]
    for ids in found if first is not None else ():
        ids[0] = first
    return found


def packed(parts):
    return np.concatenate(parts), cumulative([len(part) for part in parts])


def reference_logits(model, source, target):
    """transformers' logits (len(target), vocabulary) for one pair, in the model's precision."""
    with torch.no_grad():
        return (
            model(
                input_ids=torch.from_numpy(source)[None],
                decoder_input_ids=torch.from_numpy(target)[None],
            )
            .logits[0]
            .double()
            .numpy()
        )
