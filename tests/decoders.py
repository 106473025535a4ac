"""Networks for tests of decoding: tables of random logits, and transformers' own models.

Both recompute every hypothesis from its whole prefix, so that only the search is under test, and
both watch that the search keeps to the protocol.
"""

import itertools

import numpy as np

VOCABULARY = 13
EOS, PAD, START = 2, 0, 1


class Recomputed:
    """Hypotheses as lists of tokens; `network.next_logits` says what follows."""

    def __init__(self, network, sources, capacity, beam_size):
        self.network, self.room, self.capacity = network, sources, capacity
        self.beam_size = beam_size
        self.sources, self.prefixes = [], []

    def join(self, memory, cu_seqlens):
        for first, last in itertools.pairwise(cu_seqlens):
            self.sources.append(memory[first:last])
            self.prefixes += [[] for _ in range(self.beam_size)]
        assert len(self.sources) <= self.room

    def logits(self, tokens):
        assert tokens.dtype == np.int64
        assert len(tokens) == len(self.prefixes) == len(self.sources) * self.beam_size > 0
        for prefix, token in zip(self.prefixes, tokens.tolist(), strict=True):
            prefix.append(token)
            assert len(prefix) <= self.capacity
        of_row = [source for source in self.sources for _ in range(self.beam_size)]
        self.network.steps += 1
        self.network.rows += len(tokens)
        return self.network.next_logits(of_row, self.prefixes)

    def reorder(self, beam_indices):
        beams = np.asarray(beam_indices)
        assert beams.shape == (len(self.prefixes),)
        assert (beams // self.beam_size == np.arange(len(beams)) // self.beam_size).all()
        self.prefixes = [list(self.prefixes[beam]) for beam in beams]

    def select(self, sources):
        assert (np.diff(sources) > 0).all()
        self.sources = [self.sources[n] for n in sources]
        beams = np.arange(self.beam_size)
        rows = (np.asarray(sources, np.int64)[:, None] * self.beam_size + beams).ravel()
        self.prefixes = [self.prefixes[row] for row in rows]


class Table:
    """Random logits that depend on the source and the prefix alone."""

    source_vocab_size = 50
    max_source_length = 40

    def __init__(self, *, seed=0, scale=2.0, vocab_size=VOCABULARY, positions=None, end=0.3):
        self.seed, self.scale, self.end = seed, scale, end
        self.vocab_size, self.max_target_length = vocab_size, positions
        self.encoded = []  # how many sources came in each call
        self.steps = self.rows = 0

    def encode(self, ids, cu_seqlens):
        assert cu_seqlens[-1] == len(ids)
        self.encoded.append(len(cu_seqlens) - 1)
        return np.asarray(ids, np.float32)[:, None]

    def start(self, sources, capacity, *, beam_size=1):
        return Recomputed(self, sources, capacity, beam_size)

    def row(self, source, prefix):
        ids = [int(i) for i in np.ravel(source)]
        rng = np.random.default_rng([self.seed, len(ids), *ids, *prefix])
        row = (rng.standard_normal(self.vocab_size) * self.scale).astype(np.float32)
        row[EOS] += self.end * len(prefix) - 1
        return row

    def next_logits(self, sources, prefixes):
        return np.stack([self.row(s, p) for s, p in zip(sources, prefixes, strict=True)])

    def target_logits(self, memory, memory_cu_seqlens, target_ids, cu_seqlens):
        rows = []
        for n, (first, last) in enumerate(itertools.pairwise(cu_seqlens)):
            source = memory[memory_cu_seqlens[n] : memory_cu_seqlens[n + 1]]
            target = target_ids[first:last].tolist()
            rows += [self.row(source, target[: t + 1]) for t in range(len(target))]
        return np.stack(rows)


class OfTransformers:
    """A sequence-to-sequence model of transformers."""

    def __init__(self, model, max_source_length=64, max_target_length=64):
        self.model = model.eval()
        self.source_vocab_size = self.vocab_size = model.config.vocab_size
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self.steps = self.rows = 0

    def encode(self, ids, cu_seqlens):
        import torch

        parts = np.split(np.asarray(ids), cu_seqlens[1:-1])
        with torch.no_grad():
            states = [
                self.model.get_encoder()(input_ids=torch.tensor(part[None]))[0][0] for part in parts
            ]
        return torch.cat(states).numpy()

    def start(self, sources, capacity, *, beam_size=1):
        return Recomputed(self, sources, capacity, beam_size)

    def next_logits(self, sources, prefixes):
        """All prefixes of one length and one source length run together."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        rows = np.empty((len(prefixes), self.vocab_size), np.float32)
        shapes = [(len(s), len(p)) for s, p in zip(sources, prefixes, strict=True)]
        for shape in set(shapes):
            same = [n for n, other in enumerate(shapes) if other == shape]
            memory = torch.tensor(np.stack([sources[n] for n in same]))
            with torch.no_grad():
                out = self.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=memory),
                    decoder_input_ids=torch.tensor([prefixes[n] for n in same]),
                    use_cache=False,
                )
            rows[same] = out.logits[:, -1].numpy()
        return rows
