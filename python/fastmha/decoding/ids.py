"""Ids that come from outside: checked before a network reads them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from fastmha._types import Int64
from fastmha.decoding.protocols import Network
from fastmha.nn.ragged import as_integers, check_iterable

__all__ = ["check_ids", "check_source", "check_sources"]


def check_ids(what: str, ids: object, vocab_size: int) -> Int64:
    """One-dimensional int64 ids below `vocab_size`.

    Raises
    ------
    TypeError, ValueError
        Something else, named by `what`.
    """
    integers = as_integers(ids, what)
    if integers.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, got {integers.shape}")
    outside = np.flatnonzero((integers < 0) | (integers >= vocab_size))
    if outside.size:
        raise ValueError(
            f"{what} holds the id {int(integers[outside[0]])}, outside the vocabulary "
            f"0 .. {vocab_size - 1}"
        )
    return integers.astype(np.int64)


def check_source(network: Network, ids: ArrayLike, n: int, what: str = "generate") -> Int64:
    """Ids of source n that the network can read."""
    source = check_ids(f"{what}: source {n}", ids, network.source_vocab_size)
    if source.size == 0:
        raise ValueError(f"{what}: source {n} is empty")
    longest = network.max_source_length
    if longest is not None and source.size > longest:
        raise ValueError(
            f"{what}: source {n} has {source.size} tokens, the model has {longest} positions"
        )
    return source


def check_sources(operation: str, network: Network, token_ids: Iterable[ArrayLike]) -> list[Int64]:
    """Ids of several sources that the network can read."""
    check_iterable(f"{operation}: token_ids", token_ids, "a list of integer arrays")
    return [check_source(network, ids, n, operation) for n, ids in enumerate(token_ids)]
