"""What a Marian network generates, in float64: beam search over all hypotheses at once.

Ends never come (see marian.py), so beam search is its bare rule: of all continuations of a source's
hypotheses keep the best. Greedy search is that with one hypothesis.
"""

from dataclasses import dataclass

import numpy as np

from bench import formulas
from bench.marian import Array, Marian

# Two hypotheses that are no further apart (the sums of log-probabilities in float32 are right to
# 1e-5 or so) may come in either order.
TIE = 1e-5


@dataclass(frozen=True)
class Generated:
    """Targets without start token, and the log-probability of each token: (B, T) each."""

    tokens: Array
    log_probabilities: Array


class Network:
    """Marian's formulas; encode, then a step for each token."""

    def __init__(self, marian: Marian) -> None:
        self.marian = marian
        self.weights = {name: w.astype(np.float64) for name, w in marian.weights.items()}

    def search(self, sources: Array, count: int, beam_size: int) -> Generated:
        """The best hypothesis of each source after `count` tokens."""
        state = _State(self, sources, beam_size)
        batch, vocab = len(sources), self.marian.vocab_size
        chosen = np.full((batch, beam_size), self.marian.pad)
        total = np.where(np.arange(beam_size) == 0, 0.0, -np.inf) + np.zeros((batch, 1))
        tokens = np.empty((batch, beam_size, 0), np.int64)
        each = np.empty((batch, beam_size, 0))
        for _ in range(count):
            found = state.step(chosen.ravel()).reshape(batch, beam_size, vocab)
            sums = (total[:, :, None] + found).reshape(batch, -1)
            best = np.argpartition(-sums, beam_size - 1, axis=1)[:, :beam_size]
            order = np.argsort(-np.take_along_axis(sums, best, 1), axis=1, kind="stable")
            best = np.take_along_axis(best, order, 1)
            total = np.take_along_axis(sums, best, 1)
            parents, chosen = best // vocab, best % vocab
            gained = np.take_along_axis(found.reshape(batch, -1), best, 1)
            tokens, each = (
                np.concatenate(
                    [np.take_along_axis(old, parents[:, :, None], 1), new[:, :, None]], 2
                )
                for old, new in ((tokens, chosen), (each, gained))
            )
            state.reorder((parents + np.arange(batch)[:, None] * beam_size).ravel())
        return Generated(tokens[:, 0], each[:, 0])

    def score(self, sources: Array, tokens: Array) -> Array:
        """The log-probability of each of the given tokens: (B, T)."""
        state = _State(self, sources, 1)
        inputs = np.column_stack([np.full(len(tokens), self.marian.pad), tokens[:, :-1]])
        steps = [
            np.take_along_axis(state.step(given), wanted[:, None], 1)[:, 0]
            for given, wanted in zip(inputs.T, tokens.T, strict=True)
        ]
        return np.stack(steps, axis=1)

    # ---- layers ----------------------------------------------------------------------------------

    def embed(self, ids: Array, positions: Array) -> Array:
        scaled = self.weights["model.shared.weight"][ids] * self.marian.d_model**0.5
        return scaled + self.marian.position_table[positions]

    def linear(self, name: str, x: Array) -> Array:
        return formulas.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def add_norm(self, name: str, x: Array, residual: Array) -> Array:
        weights = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return formulas.layer_norm(x, *weights, residual)

    def heads(self, name: str, x: Array) -> Array:
        """(B, L, d_model) mapped, as (B, heads, L, width)."""
        y = self.linear(name, x)
        return y.reshape(*y.shape[:-1], self.marian.heads, -1).swapaxes(1, 2)

    def attention(self, layer: str, x: Array, key: Array, value: Array) -> Array:
        """With its residual and norm."""
        out = formulas.attention(self.heads(f"{layer}.q_proj", x), key, value).swapaxes(1, 2)
        mapped = self.linear(f"{layer}.out_proj", out.reshape(x.shape))
        return self.add_norm(f"{layer}_layer_norm", mapped, x)

    def feed_forward(self, layer: str, x: Array) -> Array:
        """With its residual and norm."""
        inner = np.maximum(self.linear(f"{layer}.fc1", x), 0.0)
        return self.add_norm(f"{layer}.final_layer_norm", self.linear(f"{layer}.fc2", inner), x)

    def encode(self, sources: Array) -> Array:
        x = self.embed(sources, np.arange(sources.shape[1]))
        for number in range(self.marian.layers):
            layer = f"model.encoder.layers.{number}"
            key, value = (self.heads(f"{layer}.self_attn.{each}_proj", x) for each in "kv")
            x = self.feed_forward(layer, self.attention(f"{layer}.self_attn", x, key, value))
        return x


class _State:
    """Hypotheses that grow by a token: the keys and values of what they hold."""

    def __init__(self, network: Network, sources: Array, beam_size: int) -> None:
        self.network, self.position = network, 0
        memory = network.encode(sources)
        self.layers = [f"model.decoder.layers.{n}" for n in range(network.marian.layers)]
        self.memory = [
            tuple(
                network.heads(f"{layer}.encoder_attn.{each}_proj", memory).repeat(beam_size, 0)
                for each in "kv"
            )
            for layer in self.layers
        ]
        self.held: list[tuple[Array, Array] | None] = [None] * len(self.layers)

    def step(self, tokens: Array) -> Array:
        """Appends a token to each hypothesis; (hypotheses, vocabulary) for the one after it."""
        network = self.network
        x = network.embed(tokens, np.full(len(tokens), self.position))[:, None]
        for number, layer in enumerate(self.layers):
            new = tuple(network.heads(f"{layer}.self_attn.{each}_proj", x) for each in "kv")
            held = self.held[number]
            if held is not None:
                new = tuple(np.concatenate(pair, axis=2) for pair in zip(held, new, strict=True))
            self.held[number] = key, value = new[0], new[1]
            x = network.attention(f"{layer}.self_attn", x, key, value)
            x = network.attention(f"{layer}.encoder_attn", x, *self.memory[number])
            x = network.feed_forward(layer, x)
        self.position += 1
        logits = x[:, 0] @ network.weights["model.shared.weight"].T
        logits += network.weights["final_logits_bias"]
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return logits

    def reorder(self, parents: Array) -> None:
        """Hypothesis n continues hypothesis parents[n]."""
        if not np.array_equal(parents, np.arange(len(parents))):
            self.held = [(pair[0][parents], pair[1][parents]) for pair in self.held if pair]


def disagreement(
    network: Network, sources: Array, expected: Generated, tokens: Array, *, greedy: bool
) -> str:
    """Why `tokens` is not what the network generates, or "" where it is, near ties apart."""
    found = None
    for n in np.flatnonzero((tokens != expected.tokens).any(axis=1)):
        if found is None:
            found = network.score(sources, tokens)
        place = int((tokens[n] != expected.tokens[n]).argmax())
        # greedy: up to here both have the same prefix; of beams, the whole sums are compared
        part = slice(place, place + 1) if greedy else slice(None)
        gap = float(expected.log_probabilities[n, part].sum() - found[n, part].sum())
        if not abs(gap) < TIE:  # also catches NaN
            return (
                f"source {n} differs from float64 at token {place}: "
                f"{tokens[n, place]} instead of {expected.tokens[n, place]}, "
                f"log-probabilities {gap:.2g} apart"
            )
    return ""
