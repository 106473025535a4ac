"""What decoding asks of a network: an encoder, and hypotheses that grow by one token at a time."""

from typing import Protocol

from numpy.typing import ArrayLike

from fastmha._types import Float32, Int64

__all__ = ["EncoderDecoder", "Hypotheses"]


class Hypotheses(Protocol):
    """Target prefixes that grow: `beam_size` next to each other for each source present.

    Row ``n * beam_size + b`` is hypothesis b of the n-th source present. What a source gets does
    not depend on which others are present.
    """

    def join(self, memory: Float32, cu_seqlens: Int64) -> None:
        """New sources behind those present, by the encoder's output; they have read no token."""

    def logits(self, tokens: Int64) -> Float32:
        """Append one token to every hypothesis; (rows, vocabulary) for the one after it.

        The array is the caller's to change.
        """

    def reorder(self, beam_indices: ArrayLike) -> None:
        """Let row r continue row ``beam_indices[r]``, which is of the same source."""

    def select(self, sources: ArrayLike) -> None:
        """Keep the sources at these places, in rising order, and forget the others."""


class EncoderDecoder(Protocol):
    """A network from source ids to logits over the target vocabulary."""

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
