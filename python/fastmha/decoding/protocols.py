"""What decoding asks of a network: an encoder, and hypotheses that grow by one token at a time."""

from typing import Protocol

from fastmha._types import Float32, Int64
from fastmha.nn.encoder_decoder import Hypotheses

__all__ = ["Hypotheses", "Network"]


class Network(Protocol):
    """What is used of a :class:`fastmha.nn.encoder_decoder.EncoderDecoder`, and all that a stand-in
    must have."""

    @property
    def source_vocab_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_source_length(self) -> int | None: ...
    @property
    def max_target_length(self) -> int | None: ...

    def encode(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        """The encoder's output, (T, d_model), of sources that lie end to end."""

    def start(self, sources: int, capacity: int, *, beam_size: int = 1) -> Hypotheses:
        """No source yet; at most `sources` at a time, `capacity` tokens for each hypothesis."""

    def target_logits(
        self, memory: Float32, memory_cu_seqlens: Int64, target_ids: Int64, cu_seqlens: Int64
    ) -> Float32:
        """(Tt, vocab_size): what follows each target token, given the source and those before."""
