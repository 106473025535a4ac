"""A Transformer-base of random weights as a Marian checkpoint of transformers: config.json and
names are those of MarianMTModel, so that everybody reads the same network.

What is generated should resemble a text. Of plainly drawn weights it does not: output map and
embedding are one matrix, so a network near the identity repeats its last token for ever, and beams
never part. Here a token passes the decoder much as it is (`DECODER_GAIN`); its last feed-forward
layer turns it into another one: relu(P x) - relu(-P x) = P x makes of it a linear map, Q P x, far
larger than x (`TURN`). Greedy targets of 32 tokens then have 8 to 32 different ones. (Feed-forward
layers with few large units had 31, but were chaotic: float32 and float64 parted after 24 tokens.)
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Of maps whose rows are drawn with the norm 1:
DECODER_GAIN = 0.2  # those that end a sub-layer of the decoder
TURN = 16.0  # the last of all
SHARP = 2.0  # queries and keys: attention that looks at few positions
# Exactly as many tokens for everybody: the end token can never win, nor padding, which
# CTranslate2 drops from the vocabulary.
NEVER = -1e4
EOS = 0


@dataclass(frozen=True)
class Marian:
    """Sizes, settings and weights."""

    vocab_size: int = 32_000
    d_model: int = 512
    heads: int = 8
    d_ff: int = 2048
    layers: int = 6  # of the encoder, and of the decoder
    positions: int = 512

    @property
    def pad(self) -> int:
        """The last id, as in every checkpoint of Marian's; targets start with it."""
        return self.vocab_size - 1

    @property
    def layer_weights(self) -> tuple[int, int, int]:
        """Numbers in an attention's four maps, in its key and value maps, in a feed-forward."""
        return 4 * self.d_model**2, 2 * self.d_model**2, 2 * self.d_model * self.d_ff

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        sides = ("encoder", "decoder")
        return {
            "model_type": "marian",
            "architectures": ["MarianMTModel"],
            "vocab_size": self.vocab_size,
            "decoder_vocab_size": self.vocab_size,
            "d_model": self.d_model,
            **{f"{side}_layers": self.layers for side in sides},
            **{f"{side}_attention_heads": self.heads for side in sides},
            **{f"{side}_ffn_dim": self.d_ff for side in sides},
            "activation_function": "relu",
            "max_position_embeddings": self.positions,
            "static_position_embeddings": True,
            "scale_embedding": True,
            "normalize_before": False,
            "normalize_embedding": False,
            "share_encoder_decoder_embeddings": True,
            "tie_word_embeddings": True,
            "add_final_layer_norm": False,
            "is_encoder_decoder": True,
            "pad_token_id": self.pad,
            "decoder_start_token_id": self.pad,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "forced_eos_token_id": None,
            "dtype": "float32",
        }

    @cached_property
    def weights(self) -> dict[str, Array]:
        """By the names that transformers gives them."""
        rng = np.random.default_rng(0)
        d = self.d_model

        def matrix(rows: int, columns: int, gain: float = 1.0) -> Array:
            scale = np.float32(gain * columns**-0.5)
            return rng.standard_normal((rows, columns), dtype=np.float32) * scale

        def linear(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
            found[f"{name}.weight"] = matrix(rows, columns, gain)
            found[f"{name}.bias"] = matrix(1, rows)[0]

        def norm(name: str) -> None:
            found[f"{name}.weight"] = np.ones(d, np.float32)
            found[f"{name}.bias"] = np.zeros(d, np.float32)

        embedding = matrix(self.vocab_size, d)
        embedding[self.pad] = 0.0
        found = {"model.shared.weight": embedding}
        found["final_logits_bias"] = np.zeros((1, self.vocab_size), np.float32)
        found["final_logits_bias"][0, [EOS, self.pad]] = NEVER
        for side, attentions, gain in (
            ("encoder", ["self_attn"], 1.0),
            ("decoder", ["self_attn", "encoder_attn"], DECODER_GAIN),
        ):
            for layer in (f"model.{side}.layers.{number}" for number in range(self.layers)):
                for attention in attentions:
                    for each, size in (("q", SHARP), ("k", SHARP), ("v", 1.0), ("out", gain)):
                        linear(f"{layer}.{attention}.{each}_proj", d, d, size)
                    norm(f"{layer}.{attention}_layer_norm")
                linear(f"{layer}.fc1", self.d_ff, d)
                linear(f"{layer}.fc2", d, self.d_ff, gain)
                norm(f"{layer}.final_layer_norm")
        last, half = f"model.decoder.layers.{self.layers - 1}", self.d_ff // 2
        there, back = matrix(half, d), matrix(d, half, TURN)
        found[f"{last}.fc1.weight"] = np.concatenate([there, -there])
        found[f"{last}.fc2.weight"] = np.concatenate([back, -back], axis=1)
        return found

    @cached_property
    def position_table(self) -> Array:
        """All sines, then all cosines; float64, as the checkpoint's are computed before they are
        rounded."""
        half = self.d_model // 2
        frequencies = 10_000.0 ** (-np.arange(half) / half)
        angles = np.arange(self.positions)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def write(self, folder: Path) -> None:
        """The checkpoint directory, without a tokenizer."""
        from safetensors.numpy import save_file

        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        tensors = dict(self.weights)
        for side in ("encoder", "decoder"):
            table = self.position_table.astype(np.float32)
            tensors[f"model.{side}.embed_positions.weight"] = table
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
