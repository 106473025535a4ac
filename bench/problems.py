"""What is computed, as NumPy arrays and settings: the same for every rival.

A problem knows its expected answer in float64, how far an answer may be off, and nothing of who
computes it.
"""

import itertools
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import formulas
from bench.generation import Generated, Network, disagreement
from bench.marian import Marian

Array = NDArray[Any]

# Scores that the float64 answer of an attention may hold at once (8 bytes each, a few arrays of
# them): of a longer one, every n-th query is checked.
CHECKED_SCORES = 2**23
# exact gelu in float64 has no vector form in NumPy: so many rows are checked
CHECKED_ROWS = 64
# of the sequences of a batch, every n-th is checked: float64 takes twice the time of float32
CHECKED_TOKENS = 1024
# the same of texts, whose network has six gelus
CHECKED_TEXT_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Attention:
    """softmax(scale Q K^T + ...) V with everything that may restrict or bend the scores."""

    query: Array  # (B, Hq, L, E)
    key: Array  # (B, Hkv, S, E)
    value: Array  # (B, Hkv, S, Ev)
    is_causal: bool = False
    key_lengths: Array | None = None  # (B,)
    window: tuple[int, int] | None = None  # keys to the left and right of a query
    slopes: Array | None = None  # ALiBi, (Hq,)
    softcap: float = 0.0
    mask: Array | None = None  # bool or float, broadcastable to (B, Hq, L, S)
    with_out: bool = False  # also measured with the output's memory given

    @property
    def group(self) -> int:
        """Query heads for each key/value head."""
        return int(self.query.shape[1] // self.key.shape[1])

    @property
    def is_plain(self) -> bool:
        """Nothing but causal order stands between the scores and the softmax."""
        rest = (self.key_lengths, self.window, self.slopes, self.mask)
        return all(each is None for each in rest) and not self.softcap

    @property
    def checked(self) -> slice:
        """The queries whose answer is known in float64."""
        batch, heads, q_len, _ = self.query.shape
        scores = batch * heads * q_len * self.key.shape[2]
        return slice(None, None, math.ceil(scores / CHECKED_SCORES))

    def visible(self, queries: slice = slice(None)) -> Array | None:
        """True where a query may see a key, broadcastable to (B, Hq, L, S); None: everywhere."""
        mask = self.mask if self.mask is not None and self.mask.dtype == bool else None
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        q_len, kv_len = self.query.shape[2], self.key.shape[2]
        position, key = np.arange(q_len)[queries, None], np.arange(kv_len)
        conditions = [] if mask is None else [mask]
        if self.is_causal:
            conditions.append(key <= position)
        if self.window is not None:
            left, right = self.window
            conditions.append((key >= position - left) & (key <= position + right))
        if self.key_lengths is not None:
            conditions.append(key < self.key_lengths[:, None, None, None])
        if not conditions:
            return None
        together = conditions[0]
        for condition in conditions[1:]:
            together = together & condition
        return together

    def added(self, queries: slice = slice(None)) -> Array | None:
        """What is added to the scores: a float mask or ALiBi, broadcastable to (B, Hq, L, S)."""
        if self.slopes is not None:
            position = np.arange(self.query.shape[2])[queries, None]
            distance = np.abs(position - np.arange(self.key.shape[2])).astype(np.float32)
            return -self.slopes[:, None, None] * distance
        if self.mask is not None and self.mask.dtype != bool:
            return self.mask[..., queries, :]
        return None

    def expected(self) -> Array:
        rows = self.checked
        return formulas.attention(
            self.query[:, :, rows].astype(np.float64),
            self.key.astype(np.float64),
            self.value.astype(np.float64),
            visible=self.visible(rows),
            added=self.added(rows),
            softcap=self.softcap,
        )

    def checked_part(self, answer: Array) -> Array:
        return answer[:, :, self.checked]

    @property
    def tolerance(self) -> float:
        """Averages of numbers near 1 with scores near 1: sums of E and of S products."""
        return 2.0**-24 * (self.query.shape[-1] + self.key.shape[2])


@dataclass(frozen=True, eq=False)
class Ragged:
    """Self-attention of sequences of different lengths that lie end to end."""

    query: Array  # (T, H, E)
    key: Array
    value: Array
    lengths: tuple[int, ...]

    @cached_property
    def offsets(self) -> Array:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def sequences(self) -> list[slice]:
        return [slice(first, last) for first, last in itertools.pairwise(self.offsets)]

    def expected(self) -> Array:
        out = np.empty(self.query.shape)
        for rows in self.sequences():
            heads_first = (
                array[rows].transpose(1, 0, 2).astype(np.float64)
                for array in (self.query, self.key, self.value)
            )
            out[rows] = formulas.attention(*heads_first).transpose(1, 0, 2)
        return out

    def checked_part(self, answer: Array) -> Array:
        return answer

    @property
    def tolerance(self) -> float:
        return 2.0**-24 * (self.query.shape[-1] + max(self.lengths))


@dataclass(frozen=True, eq=False)
class Linear:
    """x W^T + bias."""

    x: Array  # (rows, in_features)
    weight: Array  # (out_features, in_features)
    bias: Array

    def expected(self) -> Array:
        return formulas.linear(
            self.x.astype(np.float64), self.weight.astype(np.float64), self.bias.astype(np.float64)
        )

    def checked_part(self, answer: Array) -> Array:
        return answer

    @property
    def tolerance(self) -> float:
        return 2.0**-24 * self.x.shape[-1]


@dataclass(frozen=True, eq=False)
class RowOperation:
    """A norm, a softmax or an activation of the rows of x."""

    name: str  # layer_norm, softmax, gelu, add_norm
    x: Array
    residual: Array | None = None
    weight: Array | None = None
    bias: Array | None = None

    @property
    def checked(self) -> slice:
        step = self.x.shape[0] // CHECKED_ROWS if self.name == "gelu" else 1
        return slice(None, None, max(1, step))

    def expected(self) -> Array:
        def double(array: Array | None) -> Array | None:
            return None if array is None else array.astype(np.float64)

        x = self.x[self.checked].astype(np.float64)
        if self.name == "gelu":
            return formulas.gelu_exact(x)
        if self.name == "softmax":
            return formulas.softmax(x)
        residual = None if self.residual is None else self.residual[self.checked]
        return formulas.layer_norm(x, double(self.weight), double(self.bias), double(residual))

    def checked_part(self, answer: Array) -> Array:
        return answer[self.checked]

    @property
    def tolerance(self) -> float:
        """A few roundings of numbers of the size of 1 to 5, and of sums that are kept pairwise."""
        return 2.0**-19


@dataclass(frozen=True, eq=False)
class Block:
    """MultiHeadAttention, an encoder or a decoder block, its weights named as torch.nn does."""

    kind: str  # attention, encoder, decoder
    state: dict[str, Array]
    heads: int
    x: Array  # (B, L, d_model)
    memory: Array | None = None  # of a decoder; x is causal then

    @property
    def d_model(self) -> int:
        return int(self.x.shape[-1])

    @property
    def d_ff(self) -> int:
        return int(self.state["linear1.weight"].shape[0])

    @property
    def checked(self) -> slice:
        """The sequences whose answer is known in float64."""
        return slice(None, None, math.ceil(self.x.shape[0] * self.x.shape[1] / CHECKED_TOKENS))

    def expected(self) -> Array:
        memory = None if self.memory is None else self.memory[self.checked]
        part = replace(self, x=self.x[self.checked], memory=memory)
        return formulas.block(part, np.float64)

    def checked_part(self, answer: Array) -> Array:
        return answer[self.checked]

    @property
    def tolerance(self) -> float:
        """Sums of up to d_ff products, behind norms that bring everything back to the size of 1."""
        return 2.0**-24 * (self.d_model if self.kind == "attention" else self.d_ff)


@dataclass(frozen=True, eq=False)
class Group:
    """Texts that a rival runs together, padded to the longest of them."""

    places: Array  # (n,): which texts they are
    ids: Array  # (n, L) int64, 0 where there is padding
    lengths: Array  # (n,) int64

    @property
    def padded(self) -> bool:
        return bool((self.lengths < self.ids.shape[1]).any())

    @property
    def mask(self) -> Array:
        """(n, L): True where there is a token."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True, eq=False)
class Sentences:
    """The embeddings of texts by the BERT in a directory: token ids in, the mean of the hidden
    states at length 1 out, (N, d_model)."""

    directory: Path
    ids: tuple[Array, ...]  # of each text, int64

    @cached_property
    def config(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.directory / "config.json").read_text("utf-8"))
        return read

    @cached_property
    def state(self) -> dict[str, Array]:
        """The weights under their names in the checkpoint."""
        from safetensors.numpy import load_file

        return dict(load_file(self.directory / "model.safetensors"))

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def eps(self) -> float:
        return float(self.config["layer_norm_eps"])

    def groups(self, size: int) -> list[Group]:
        """Texts sorted by length, up to `size` together: what a rival that pads does best."""
        order = np.argsort([-len(ids) for ids in self.ids], kind="stable")
        found = []
        for first in range(0, len(order), size):
            places = order[first : first + size]
            lengths = np.array([len(self.ids[n]) for n in places])
            padded = np.zeros((len(places), lengths.max()), np.int64)
            for row, n in zip(padded, places, strict=True):
                row[: len(self.ids[n])] = self.ids[n]
            found.append(Group(places, padded, lengths))
        return found

    @property
    def groupings(self) -> dict[str, list[Group]]:
        """Ways to run them: all together, some together, one by one."""
        count = len(self.ids)
        if count == 1:
            return {"": self.groups(1)}
        ways = {"one batch": self.groups(count)}
        if count > 8:
            ways["batches of 8"] = self.groups(8)
        return ways | {"one by one": self.groups(1)}

    @property
    def checked(self) -> slice:
        """The texts whose answer is known in float64."""
        return slice(None, None, math.ceil(sum(map(len, self.ids)) / CHECKED_TEXT_TOKENS))

    def expected(self) -> Array:
        double = {name: array.astype(np.float64) for name, array in self.state.items()}
        return np.array(
            [formulas.sentence(double, self.heads, self.eps, i) for i in self.ids[self.checked]]
        )

    def checked_part(self, answer: Array) -> Array:
        return answer[self.checked]

    @property
    def tolerance(self) -> float:
        """Numbers near 0.05, which six layers with norms have rounded: some 2^-24 each."""
        return 2.0**-19


@dataclass(frozen=True, eq=False)
class Generation:
    """Sources to targets of exactly so many tokens: the best of `beam_size` hypotheses."""

    network: Marian
    sources: Array  # (B, S) ids, an end token last
    count: int
    beam_size: int

    @cached_property
    def generated(self) -> Generated:
        return float64_network(self.network).search(self.sources, self.count, self.beam_size)

    def expected(self) -> Array:
        return self.generated.tokens

    def checked_part(self, answer: Array) -> Array:
        return answer

    def judge(self, answer: Array) -> tuple[float, str]:
        """The part of the tokens that are others than in float64, and why that is wrong, or ""."""
        expected, greedy = self.generated, self.beam_size == 1
        if answer.shape != expected.tokens.shape:
            return 1.0, f"returns {answer.shape} tokens, expected {expected.tokens.shape}"
        network = float64_network(self.network)
        complaint = disagreement(network, self.sources, expected, answer, greedy=greedy)
        return float((answer != expected.tokens).mean()), complaint

    tolerance = 0.0


@lru_cache(maxsize=1)
def float64_network(marian: Marian) -> Network:
    return Network(marian)


Problem = Attention | Ragged | Linear | RowOperation | Block | Sentences | Generation
