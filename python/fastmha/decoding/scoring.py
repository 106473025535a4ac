"""How probable given targets are: log-probabilities of their tokens, teacher forced."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmha import _core
from fastmha._types import Int64
from fastmha.decoding.ids import check_ids, check_source
from fastmha.decoding.protocols import Network
from fastmha.decoding.settings import GenerationSettings

__all__ = ["TargetScore", "score"]

# Rows of logits at a time: enough to fill the kernels, and 256 MB for a vocabulary of 32,000.
ROWS = 2048


@dataclass(frozen=True)
class TargetScore:
    """The log-probabilities of a target.

    Attributes
    ----------
    log_probs : ndarray of float64, (tokens + 1,)
        Of each token, given the source and the tokens before it; the last one is the end token's.
    total : float
        Their sum.
    """

    log_probs: NDArray[np.float64]
    total: float


@dataclass(frozen=True)
class _Pair:
    source: Int64
    read: Int64  # start token and target, as far as something is expected behind it
    expected: Int64  # target and end token


def score(
    network: Network,
    pairs: Iterable[tuple[ArrayLike, ArrayLike]],
    settings: GenerationSettings,
    *,
    end: bool = True,
) -> Iterator[TargetScore]:
    """Log-probabilities of the targets of (source, target) pairs, in their order.

    Parameters
    ----------
    network : EncoderDecoder
    pairs : iterable of (integer array, integer array)
        Ids of a source with its end token, and of a target without start and end token, as
        :func:`generate` gives them. A target may be empty. Read a little ahead, never all at once.
    settings : GenerationSettings
        Says what the start and the end token are; no rule is applied.
    end : bool, default True
        Score the end token behind each target, too.

    Yields
    ------
    TargetScore
        The same, bit for bit, whatever pairs are scored with it.

    Raises
    ------
    ValueError, TypeError
        Ids that the network cannot read, a target longer than it has positions, no end token.

    Examples
    --------
    >>> import fastmha as fm
    >>> from fastmha.decoding import GenerationSettings, score
    >>> network = fm.Transformer(
    ...     20, 30, d_model=32, num_heads=4, num_encoder_layers=1, num_decoder_layers=1, d_ff=64
    ... )
    >>> settings = GenerationSettings(decoder_start_token_id=1, eos_token_id=2, max_new_tokens=4)
    >>> (found,) = score(network, [([5, 6, 2], [8, 9])], settings)
    >>> found.log_probs.shape, bool(found.total < 0)
    ((3,), True)
    """
    if end and not settings.eos_token_id:
        raise ValueError("score: the settings have no eos_token_id; pass end=False")
    return _run(network, _checked(network, pairs, settings, end))


def _checked(
    network: Network,
    pairs: Iterable[tuple[ArrayLike, ArrayLike]],
    settings: GenerationSettings,
    end: bool,
) -> Iterator[_Pair]:
    start, last = [settings.decoder_start_token_id], settings.eos_token_id[:1] if end else ()
    positions = network.max_target_length
    for n, (given, target) in enumerate(pairs):
        source = check_source(network, given, n, "score")
        ids = check_ids(f"score: target {n}", target, network.vocab_size)
        expected = np.concatenate([ids, np.array(last, np.int64)])
        read = np.concatenate([np.array(start, np.int64), ids])[: max(len(expected), 1)]
        if positions is not None and len(read) > positions:
            raise ValueError(
                f"score: target {n} has {len(ids)} tokens, the model has {positions} positions and "
                "the start token takes one of them"
            )
        yield _Pair(source, read, expected)


def _run(network: Network, pairs: Iterator[_Pair]) -> Iterator[TargetScore]:
    batch: list[_Pair] = []
    for pair in pairs:
        if batch and sum(len(held.read) for held in batch) + len(pair.read) > ROWS:
            yield from _score(network, batch)
            batch = []
        batch.append(pair)
    if batch:
        yield from _score(network, batch)


def _score(network: Network, batch: Sequence[_Pair]) -> Iterator[TargetScore]:
    source_bounds = np.cumsum([0, *(pair.source.size for pair in batch)])
    memory = network.encode(np.concatenate([pair.source for pair in batch]), source_bounds)
    read = [pair.read for pair in batch]
    bounds = np.cumsum([0, *map(len, read)])
    logits = network.target_logits(memory, source_bounds, np.concatenate(read), bounds)
    rows = np.concatenate(
        [first + np.arange(len(pair.expected)) for first, pair in zip(bounds, batch, strict=False)]
    )
    total = _core.top_k(logits, 1)[2].astype(np.float64)
    expected = np.concatenate([pair.expected for pair in batch])
    log_probs = logits[rows, expected] - total[rows]
    parts = np.split(log_probs, np.cumsum([len(pair.expected) for pair in batch])[:-1])
    for part in parts:
        yield TargetScore(part, float(part.sum()))
