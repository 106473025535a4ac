"""The Transformer of "Attention Is All You Need" in PyTorch, at demo size, and greedy decoding.

Ids -> embedding * sqrt(d_model) + sinusoidal positions -> encoder -> decoder -> linear -> logits.
State names are those of torch.nn.TransformerEncoder and TransformerDecoder under `encoder.` and
`decoder.`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data import END, PAD, START, UNKNOWN


@dataclass(frozen=True)
class Config:
    """What config.json holds about the model."""

    src_vocab_size: int
    tgt_vocab_size: int
    d_model: int = 128
    num_heads: int = 4
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    d_ff: int = 512
    activation: str = "relu"
    norm_first: bool = False
    final_norm: bool = False
    norm_eps: float = 1e-5
    positions: str = "sinusoidal"
    scale_embedding: bool = True
    max_positions: int = 256
    pad_token_id: int = PAD
    bos_token_id: int = START
    eos_token_id: int = END
    unk_token_id: int = UNKNOWN

    def to_json(self) -> dict[str, Any]:
        return {"model_type": "fastmha-transformer", **asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """The model's fields of a config.json; descriptive ones are passed over."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """PE[pos, 2i] = sin(pos / 10000^(2i/d_model)), PE[pos, 2i+1] = cos of it; in float64."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model)
    )
    table = torch.empty(length, d_model, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float()


class Transformer(nn.Module):
    positions: Tensor

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        d, norm = config.d_model, config.final_norm
        layer: dict[str, Any] = {
            "d_model": d,
            "nhead": config.num_heads,
            "dim_feedforward": config.d_ff,
            "dropout": dropout,
            "activation": config.activation,
            "layer_norm_eps": config.norm_eps,
            "batch_first": True,
            "norm_first": config.norm_first,
        }
        self.src_embedding = nn.Embedding(config.src_vocab_size, d)
        self.tgt_embedding = nn.Embedding(config.tgt_vocab_size, d)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**layer),
            config.num_encoder_layers,
            norm=nn.LayerNorm(d, config.norm_eps) if norm else None,
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**layer),
            config.num_decoder_layers,
            norm=nn.LayerNorm(d, config.norm_eps) if norm else None,
        )
        self.output = nn.Linear(d, config.tgt_vocab_size)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer(
            "positions", sinusoidal_positions(config.max_positions, d), persistent=False
        )
        self._initialise()

    def _initialise(self) -> None:
        """Xavier weights in every layer (torch copies one); embeddings of variance 1/d_model."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for embedding in (self.src_embedding, self.tgt_embedding):
            nn.init.normal_(embedding.weight, std=self.config.d_model**-0.5)

    def _embed(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        x = embedding(ids) * math.sqrt(self.config.d_model) + self.positions[: ids.shape[1]]
        embedded: Tensor = self.dropout(x)
        return embedded

    def encode(self, source: Tensor) -> Tensor:
        """Padded ids (batch, src_len) -> memory (batch, src_len, d_model)."""
        padding = source == self.config.pad_token_id
        memory: Tensor = self.encoder(
            self._embed(self.src_embedding, source), src_key_padding_mask=padding
        )
        return memory

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Ids so far (batch, tgt_len) -> next-token logits (batch, tgt_len, tgt_vocab_size)."""
        length = target.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.decoder(
            self._embed(self.tgt_embedding, target),
            memory,
            tgt_mask=future,
            tgt_is_causal=True,
            memory_key_padding_mask=source == self.config.pad_token_id,
        )
        logits: Tensor = self.output(x)
        return logits

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, self.encode(source), source)


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Sequences of different lengths -> one padded (batch, longest) tensor."""
    longest = max(map(len, sequences))
    return torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in sequences])


@dataclass(frozen=True)
class Decoded:
    tokens: list[list[int]]  # without start and end tokens
    margins: list[
        float
    ]  # per sentence, the smallest distance between the best logit and the second


@torch.inference_mode()
def greedy(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 256,
) -> Decoded:
    """The most probable token until `</s>`; sentences of similar length share a batch."""
    model.eval()
    tokens: list[list[int]] = [[] for _ in sources]
    margins = [math.inf] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        source = pad([sources[i] for i in indices])
        memory = model.encode(source)
        target = torch.full((len(indices), 1), START)
        running = list(range(len(indices)))  # rows of this batch that have not ended
        for _ in range(max_new_tokens):
            logits = model.decode(target, memory, source)[:, -1]
            best = logits.topk(2)
            for row in list(running):
                i, token = indices[row], int(best.indices[row, 0])
                margins[i] = min(margins[i], float(best.values[row, 0] - best.values[row, 1]))
                if token == END:
                    running.remove(row)
                else:
                    tokens[i].append(token)
            if not running:
                break
            target = torch.cat([target, best.indices[:, :1]], dim=1)
    return Decoded(tokens, margins)
