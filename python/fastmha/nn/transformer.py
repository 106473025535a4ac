"""The whole encoder-decoder Transformer, from token ids to probabilities over the next token."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastmha import _core
from fastmha._types import Bool, Float32, Int64, Integers
from fastmha.nn.blocks import Decoder, DecoderBlock, Encoder, EncoderBlock
from fastmha.nn.encoder_decoder import EncoderDecoder
from fastmha.nn.layers import Embedding, LayerNorm, Linear, sinusoidal_positions
from fastmha.nn.module import UNSET, Module, Seed, check_size
from fastmha.nn.ragged import as_integers, check_iterable, check_lengths, cumulative, valid_rows

__all__ = ["Transformer"]

Lengths: TypeAlias = Integers | Sequence[int]
TokenIds: TypeAlias = Integers | Sequence[Integers | Sequence[int]]


class Transformer(EncoderDecoder):
    """Token and position embedding, encoder, decoder, output map and softmax.

    Parameters
    ----------
    src_vocab_size, tgt_vocab_size : int
        Ids lie below these.
    d_model : int, default 512
        Width of a row.
    num_heads : int, default 8
        Heads of every attention.
    num_encoder_layers, num_decoder_layers : int, default 6
        Blocks of the encoder, and of the decoder.
    d_ff : int, default 2048
        Width inside the feed-forward.
    activation, norm_first, norm_eps, bias
        As for :class:`EncoderBlock`.
    final_norm : bool, default True
        A norm behind the last block of encoder and decoder, as in torch.nn.Transformer.
    positions : {"sinusoidal", "learned"}, default "sinusoidal"
        Row p of the sinusoidal table holds sin(p / 10000^(2i / d_model)) at 2i and the cosine
        at 2i + 1.
    scale_embedding : bool, default True
        Multiply token embeddings by sqrt(d_model) before the position is added, as in the paper.
    max_positions : int, default 512
        No source or target is longer.
    pad_token_id, bos_token_id, eos_token_id : int, default 0, 1, 2
        Padding (what it holds cannot reach a result), start and end of a target.
    seed : int or numpy.random.Generator, optional
        Where the weights are drawn from until they are loaded.

    Raises
    ------
    ValueError
        Sizes that do not fit, an unknown activation or kind of positions.

    Notes
    -----
    Parameters: ``src_embedding.weight``, ``tgt_embedding.weight``, with learned positions
    ``src_position.weight`` and ``tgt_position.weight``, ``encoder.layers.0...``,
    ``encoder.norm...``, ``decoder...``, ``output.weight``, ``output.bias``.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> model = fm.Transformer(
    ...     20, 30, d_model=32, num_heads=4, num_encoder_layers=1, num_decoder_layers=1, d_ff=64
    ... )
    >>> model(np.array([[3, 4, 2]]), np.array([[1, 7]])).shape  # probabilities of the next token
    (1, 2, 30)
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        d_model: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        d_ff: int = 2048,
        *,
        activation: str = "relu",
        norm_first: bool = False,
        final_norm: bool = True,
        norm_eps: float = 1e-5,
        bias: bool = True,
        positions: str = "sinusoidal",
        scale_embedding: bool = True,
        max_positions: int = 512,
        pad_token_id: int = 0,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        seed: Seed = None,
    ) -> None:
        check_size(
            "Transformer",
            src_vocab_size=src_vocab_size,
            tgt_vocab_size=tgt_vocab_size,
            d_model=d_model,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            max_positions=max_positions,
        )
        if positions not in ("sinusoidal", "learned"):
            raise ValueError(
                f"Transformer: positions must be 'sinusoidal' or 'learned', got {positions!r}"
            )
        for name, token in (("bos", bos_token_id), ("eos", eos_token_id), ("pad", pad_token_id)):
            if not 0 <= token < tgt_vocab_size:
                raise ValueError(
                    f"Transformer: {name}_token_id must lie in 0 .. {tgt_vocab_size - 1}, "
                    f"got {token}"
                )
        self.src_vocab_size, self.tgt_vocab_size = src_vocab_size, tgt_vocab_size
        self.source_vocab_size, self.vocab_size = src_vocab_size, tgt_vocab_size
        self.d_model, self.max_positions = d_model, max_positions
        self.max_source_length = self.max_target_length = max_positions
        self.pad_token_id, self.bos_token_id = pad_token_id, bos_token_id
        self.eos_token_id = eos_token_id
        self._scale = np.float32(d_model**0.5) if scale_embedding else None

        def blocks(kind: Any, count: int) -> list[Any]:
            return [
                kind(
                    d_model,
                    num_heads,
                    d_ff,
                    activation=activation,
                    norm_first=norm_first,
                    norm_eps=norm_eps,
                    bias=bias,
                    seed=UNSET,
                )
                for _ in range(count)
            ]

        def norm() -> LayerNorm | None:
            return LayerNorm(d_model, norm_eps, bias=bias) if final_norm else None

        self.src_embedding = Embedding(src_vocab_size, d_model, seed=UNSET)
        self.tgt_embedding = Embedding(tgt_vocab_size, d_model, seed=UNSET)
        self.src_position: Embedding | None = None
        self.tgt_position: Embedding | None = None
        if positions == "learned":
            self.src_position = Embedding(max_positions, d_model, seed=UNSET)
            self.tgt_position = Embedding(max_positions, d_model, seed=UNSET)
        else:
            self._sinusoids = sinusoidal_positions(max_positions, d_model)
        self.encoder = Encoder(blocks(EncoderBlock, num_encoder_layers), norm())
        self.decoder = Decoder(blocks(DecoderBlock, num_decoder_layers), norm())
        self.output = Linear.of_size(d_model, tgt_vocab_size, seed=UNSET)
        self._initialise(seed)

    def __call__(
        self,
        src: TokenIds,
        tgt: TokenIds,
        *,
        src_lengths: Lengths | None = None,
        tgt_lengths: Lengths | None = None,
        return_logits: bool = False,
    ) -> Any:
        """Probabilities of the token after each target position, given the source and the target up
        to there.

        Parameters
        ----------
        src, tgt : integer array (B, S) and (B, L), or a list of 1-D integer arrays each
            A target starts with the start token.
        src_lengths, tgt_lengths : sequence of int, (B,), optional
            For arrays: ids at or past the length are padding: they cannot reach a result.
        return_logits : bool, default False
            Leave the softmax out.

        Returns
        -------
        ndarray of float32, (B, L, tgt_vocab_size), or a list of (L_n, tgt_vocab_size)
            As `tgt` came; zeros at padding.

        Raises
        ------
        TypeError
            Ids that are not integers.
        ValueError
            An id outside the vocabulary, more positions than max_positions, lengths that do not
            fit, an empty source.
        """
        source = self._checked(Tokens("Transformer", "src", src, src_lengths))
        empty = np.flatnonzero(np.diff(source.cu_seqlens) == 0)
        if empty.size:
            raise ValueError(f"Transformer: source {int(empty[0])} is empty")
        target = self._checked(Tokens("Transformer", "tgt", tgt, tgt_lengths))
        if target.batch != source.batch:
            raise ValueError(f"Transformer: src holds {source.batch} sequences, tgt {target.batch}")
        x = self.decoder(
            self._embed_target(target.ids, target.positions),
            self._encode(source.ids, source.cu_seqlens),
            cu_seqlens=target.cu_seqlens,
            memory_cu_seqlens=source.cu_seqlens,
        )
        scores = self._logits(x)
        if not return_logits:
            scores = _core.softmax(scores, scores)
        return target.restore(scores)

    def _checked(self, tokens: "Tokens") -> "Tokens":
        vocab_size = self.src_vocab_size if tokens.what == "src" else self.tgt_vocab_size
        tokens.check(vocab_size, self.max_positions)
        return tokens

    def _embed_source(self, ids: Int64, cu_seqlens: Int64) -> Float32:
        positions = np.arange(len(ids)) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        return self._embed(self.src_embedding, self.src_position, ids, positions)

    def _embed_target(self, ids: Int64, positions: Int64) -> Float32:
        return self._embed(self.tgt_embedding, self.tgt_position, ids, positions)

    def _embed(
        self, words: Embedding, learned: Embedding | None, ids: Int64, positions: Int64
    ) -> Float32:
        x = self._scaled(words.weight.take(ids, axis=0))
        x += self._position_table(learned).take(positions, axis=0)
        return x

    def _position_table(self, learned: Embedding | None) -> Float32:
        return self._sinusoids if learned is None else learned.weight

    def _scaled(self, x: Float32) -> Float32:
        if self._scale is not None:
            x *= self._scale
        return x

    def _children(self) -> Iterator[tuple[str, Module]]:
        yield "src_embedding", self.src_embedding
        yield "tgt_embedding", self.tgt_embedding
        if self.src_position is not None and self.tgt_position is not None:
            yield "src_position", self.src_position
            yield "tgt_position", self.tgt_position
        yield "encoder", self.encoder
        yield "decoder", self.decoder
        yield "output", self.output

    def __repr__(self) -> str:
        return (
            f"Transformer({self.src_vocab_size} -> {self.tgt_vocab_size}, d_model={self.d_model}, "
            f"{len(self.encoder.layers)} + {len(self.decoder.layers)} blocks)"
        )


class Tokens:
    """Token ids end to end without padding, and the way back to the form in which they came."""

    __slots__ = ("_list", "_operation", "_shape", "_valid", "cu_seqlens", "ids", "what")

    def __init__(
        self, operation: str, name: str, tokens: TokenIds, lengths: Lengths | None = None
    ) -> None:
        self._operation, self.what = operation, name
        self._valid: Bool | None = None
        self._list = not isinstance(tokens, np.ndarray)
        self._shape: tuple[int, ...] = ()
        if isinstance(tokens, np.ndarray):
            ids = as_integers(tokens, f"{operation}: {name}")
            if ids.ndim != 2:
                raise ValueError(
                    f"{operation}: {name} must be (batch, length) or a list of 1-D arrays, "
                    f"got {ids.shape}"
                )
            batch, longest = self._shape = ids.shape
            if lengths is None:
                self.cu_seqlens = np.arange(batch + 1) * longest
                ids = ids.reshape(-1)
            else:
                lengths = check_lengths(operation, f"{name}_lengths", lengths, batch, longest)
                self._valid = valid_rows(lengths, longest)
                self.cu_seqlens, ids = cumulative(lengths), ids[self._valid]
        else:
            if lengths is not None:
                raise ValueError(f"{operation}: {name}_lengths is for an array, {name} is a list")
            check_iterable(f"{operation}: {name}", tokens, "an array, or a list of 1-D arrays")
            parts = [
                as_integers(part, f"{operation}: {name}[{n}]") for n, part in enumerate(tokens)
            ]
            for n, part in enumerate(parts):
                if part.ndim != 1:
                    raise ValueError(
                        f"{operation}: {name}[{n}] must be one-dimensional, got {part.shape}"
                    )
            self.cu_seqlens = cumulative(np.array([len(part) for part in parts], np.int64))
            ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
        self.ids = ids.astype(np.int64)

    @property
    def batch(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def positions(self) -> Int64:
        """The place of each id within its own sequence."""
        starts = np.repeat(self.cu_seqlens[:-1], np.diff(self.cu_seqlens))
        places: Int64 = np.arange(self.ids.size) - starts
        return places

    def check(self, vocab_size: int, max_positions: int) -> None:
        """Every id must be in the vocabulary, every sequence within the positions of the model."""
        outside = np.flatnonzero((self.ids < 0) | (self.ids >= vocab_size))
        if outside.size:
            first = int(outside[0])
            n = int(np.searchsorted(self.cu_seqlens, first, "right")) - 1
            raise ValueError(
                f"{self._operation}: {self.what}[{n}] holds the id {int(self.ids[first])}, "
                f"outside the vocabulary 0 .. {vocab_size - 1}"
            )
        lengths = np.diff(self.cu_seqlens)
        if lengths.size and lengths.max() > max_positions:
            n = int(lengths.argmax())
            raise ValueError(
                f"{self._operation}: {self.what}[{n}] has {int(lengths[n])} tokens, "
                f"the model has {max_positions} positions"
            )

    def restore(self, rows: Float32) -> Float32 | list[Float32]:
        """(total, width) -> (batch, length, width) with zeros at padding, or a list."""
        if self._list:
            return np.split(rows, self.cu_seqlens[1:-1]) if self.batch else []
        shape = (*self._shape, rows.shape[-1])
        if self._valid is None:
            return rows.reshape(shape)
        padded = np.zeros(shape, np.float32)
        padded[self._valid] = rows
        return padded
