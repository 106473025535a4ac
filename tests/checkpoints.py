"""Small checkpoints with random weights, written by transformers itself."""

import json

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "max_position_embeddings": 210,
}
DISTIL_SIZES = {
    "vocab_size": VOCAB,
    "dim": 48,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 72,
    "max_position_embeddings": 210,
}
# model_type -> names of transformers' classes, and the sizes
FAMILIES = {
    "bert": ("Bert", SIZES),
    "camembert": ("Camembert", SIZES),
    "distilbert": ("DistilBert", DISTIL_SIZES),
    "modernbert": ("ModernBert", SIZES),
    "mpnet": ("MPNet", SIZES),
    "roberta": ("Roberta", SIZES),
    "xlm-roberta": ("XLMRoberta", SIZES),
}
SPECIAL_IDS = {"cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 2, "eos_token_id": 2}


def write_checkpoint(
    directory, model_type, *, head="Model", seed=0, dtype=torch.float32, shards=None, **config
):
    """Write a checkpoint; returns transformers' model, without the head, in float32."""
    name, sizes = FAMILIES[model_type]
    settings = {**sizes, **SPECIAL_IDS, "pad_token_id": 1, **config}
    torch.manual_seed(seed)
    made = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}{head}")(made).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # biases and norms too: what is all 0 or 1 would hide a wrong name
            parameter.normal_(0, 0.15)
            if "norm" in parameter_name.lower() and parameter_name.endswith("weight"):
                parameter.add_(1)
        model.to(dtype)
    options = {} if shards is None else {"max_shard_size": shards}
    model.save_pretrained(directory, **options)
    write_tokenizer(directory)
    base = model.base_model if head != "Model" else model
    if dtype != torch.float32:  # read again: to() has rounded the angles of rotary positions, too
        base = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    base.set_attn_implementation("eager")
    return base


def write_tokenizer(directory):
    """Words w3 ... w96; <s> and </s> around each text."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2}
    vocabulary |= {f"w{n}": n for n in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def rewrite_config(directory, **changes):
    """Change fields of config.json; None takes one out."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    file.write_text(json.dumps(kept))


def random_sequences(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [np.array([0, *rng.integers(3, VOCAB, n - 1)][:n]) for n in lengths]


def reference_forward(model, ids):
    """transformers' hidden states (L, d_model) and weights of each layer for one sequence."""
    with torch.no_grad():
        result = model(torch.from_numpy(ids)[None], output_attentions=True)
    return result.last_hidden_state[0].numpy(), [maps[0].numpy() for maps in result.attentions]
