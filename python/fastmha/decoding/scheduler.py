"""Continuous batching: sources join a batch as others are finished, targets come out in order."""

import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import ArrayLike

from fastmha._types import Int64
from fastmha.decoding.beam import BeamSearch
from fastmha.decoding.chains import Chains
from fastmha.decoding.ids import check_ids, check_source
from fastmha.decoding.protocols import Network
from fastmha.decoding.rules import Rules, rules_for
from fastmha.decoding.settings import GenerationSettings
from fastmha.decoding.targets import Hypothesis, Prompt
from fastmha.nn.module import check_size

__all__ = ["generate", "stream"]

# Sources that run together when nobody says otherwise: enough rows to fill the kernels, little
# memory.
BATCH_SIZE = 64
# Sources that are read, sorted and given out at a time, in batches. The longest of them start
# first: what runs when the others are finished is short.
WINDOW = 8
# So many windows may be read before the first target of them is finished: what waits to come out
# in order is bounded even when one target is very long.
AHEAD = 4
# New sources join when this share of the batch is free. With e steps' time for encoding and T steps
# for a target, joining j of B at once costs T / (B - j / 2) + e / j for each source: least near
# j = B * sqrt(2 e / T), a quarter for e = 1 and T = 32, and flat around it: 128 sources of 5 to 37
# tokens, targets 1.5 times as long, 16 together, on a Transformer-base give 2470, 2510, 2520 and
# 2310 tokens a second with 1/16, 1/8, 1/4 and 1/2 (2160 in batches that wait for their longest).
FREE = 1 / 4


def generate(
    network: Network,
    sources: Iterable[ArrayLike],
    settings: GenerationSettings,
    *,
    prefixes: Iterable[ArrayLike] | None = None,
    with_scores: bool = False,
    batch_size: int = BATCH_SIZE,
    first_index: int = 0,
) -> Iterator[list[Hypothesis]]:
    """The targets of each source, in the order of the sources, as soon as they are finished.

    Parameters
    ----------
    network : EncoderDecoder
    sources : iterable of integer arrays
        Ids of one source each; read a little ahead, never all at once.
    settings : GenerationSettings
    prefixes : iterable of integer arrays, optional
        What each target begins with, behind the start token. These tokens are read one by one, are
        in the ids that come back, and count neither for scores nor for `max_new_tokens`.
    with_scores : bool, default False
        Give greedy targets and samples a score, too; those of beam search always have one.
    batch_size : int, default 64
        Sources that run together. Results do not depend on it.
    first_index : int, default 0
        The number of the first source, from which, with `settings.seed`, random numbers follow.

    Yields
    ------
    list of Hypothesis
        `num_return_sequences` of them: the best of beam search, the best first (fewer when there
        are not as many targets at all), or samples in the order of drawing.

    Raises
    ------
    ValueError, TypeError
        Settings that do not fit the network; a source or a prefix that it cannot read, after the
        targets of all those before it.

    Examples
    --------
    >>> import fastmha as fm
    >>> from fastmha.decoding import GenerationSettings, generate
    >>> network = fm.Transformer(
    ...     20, 30, d_model=32, num_heads=4, num_encoder_layers=1, num_decoder_layers=1, d_ff=64
    ... )
    >>> settings = GenerationSettings(decoder_start_token_id=1, eos_token_id=2, num_beams=3)
    >>> settings = settings.replace(max_new_tokens=4)
    >>> for hypotheses in generate(network, [[5, 6, 2], [7, 2]], settings):
    ...     print(hypotheses[0].ids.dtype, len(hypotheses[0].ids) <= 4)
    int64 True
    int64 True
    """
    check_size("generate", batch_size=batch_size)
    rules = rules_for(settings, network.vocab_size)
    settings.longest(1, network.max_target_length)  # an error here, not at the first source
    requests = _requests(network, sources, settings, prefixes, first_index)
    return _run(network, requests, settings, rules, batch_size, with_scores, first_index)


def stream(
    network: Network,
    source: ArrayLike,
    settings: GenerationSettings,
    *,
    prefix: ArrayLike = (),
) -> Iterator[int]:
    """The tokens of one target as they are chosen, by greedy search or sampling.

    They are those that :func:`generate` gives, without prefix and end token.

    Raises
    ------
    ValueError
        Beams, which take back what they chose; more than one sample; and as for :func:`generate`.

    Examples
    --------
    >>> import fastmha as fm
    >>> from fastmha.decoding import GenerationSettings, stream
    >>> network = fm.Transformer(
    ...     20, 30, d_model=32, num_heads=4, num_encoder_layers=1, num_decoder_layers=1, d_ff=64
    ... )
    >>> settings = GenerationSettings(decoder_start_token_id=1, eos_token_id=2, max_new_tokens=4)
    >>> tokens = list(stream(network, [5, 6, 2], settings))
    >>> len(tokens) <= 4
    True
    """
    if settings.num_beams > 1 or settings.num_return_sequences > 1:
        raise ValueError(
            "stream: needs num_beams=1 and num_return_sequences=1, got "
            f"{settings.num_beams} and {settings.num_return_sequences}; beam search may take back "
            "tokens until its end"
        )
    rules = rules_for(settings, network.vocab_size)
    (request,) = _requests(network, [source], settings, [prefix], 0)
    return _stream(network, request, settings, rules)


@dataclass(frozen=True)
class _Request:
    """A source, and what its target begins with."""

    source: Int64
    prompt: Prompt


def _requests(
    network: Network,
    sources: Iterable[ArrayLike],
    settings: GenerationSettings,
    prefixes: Iterable[ArrayLike] | None,
    first_index: int,
) -> Iterator[_Request]:
    """Check the sources one by one as they are read."""
    start = np.array([settings.decoder_start_token_id], np.int64)
    positions = network.max_target_length
    bare = Prompt(start, settings.longest(1, positions)) if prefixes is None else None
    pairs = ((s, None) for s in sources) if prefixes is None else _paired(sources, prefixes)
    for n, (given, prefix) in enumerate(pairs):
        source = check_source(network, given, n)
        if bare is not None:
            prompt = Prompt(start, bare.longest, first_index + n)
        else:
            ids = check_ids(f"generate: prefix {n}", prefix, network.vocab_size)
            ids = np.concatenate([start, ids])
            prompt = Prompt(ids, settings.longest(len(ids), positions), first_index + n)
        yield _Request(source, prompt)


def _paired(
    sources: Iterable[ArrayLike], prefixes: Iterable[ArrayLike]
) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    for source, prefix in zip_longest(sources, prefixes):
        if source is None or prefix is None:
            more, fewer = ("prefixes", "sources") if source is None else ("sources", "prefixes")
            raise ValueError(
                f"generate: each source must have its prefix (which may be empty); there are more "
                f"{more} than {fewer}"
            )
        yield source, prefix


class _Batch:
    """The sources that run together: their hypotheses in the network, and the search over them."""

    def __init__(
        self,
        network: Network,
        settings: GenerationSettings,
        rules: Rules,
        slots: int,
        longest: int,
        with_scores: bool,
        entropy: int,
    ) -> None:
        self._network = network
        self.slots, self.longest = slots, longest
        self.search: BeamSearch | Chains
        if settings.num_beams > 1:
            self.search = BeamSearch(settings, rules, slots, longest)
        else:
            self.search = Chains(
                settings, rules, slots, longest, with_scores=with_scores, entropy=entropy
            )
        # The last token of a target is never read.
        self._hypotheses = network.start(slots, longest - 1, beam_size=self.search.width)
        self.requests: list[_Request] = []

    @property
    def free(self) -> int:
        return self.slots - len(self.requests)

    def join(self, requests: Sequence[_Request]) -> None:
        ids = np.concatenate([request.source for request in requests])
        bounds = np.cumsum([0, *(request.source.size for request in requests)])
        self._hypotheses.join(self._network.encode(ids, bounds), bounds)
        self.search.join([request.prompt for request in requests])
        self.requests += requests

    def step(self) -> list[tuple[int, list[Hypothesis]]]:
        """One more token for every target; index and targets of the sources that are done, which
        leave."""
        search, hypotheses = self.search, self._hypotheses
        done = search.advance(hypotheses.logits(search.tokens))
        finished = []
        if done.size:
            finished = [(self.requests[n].prompt.index, search.results(n)) for n in done.tolist()]
            stays = np.ones(len(self.requests), bool)
            stays[done] = False
            keep = np.flatnonzero(stays)
            search.select(keep)
            hypotheses.select(keep)
            self.requests = [self.requests[n] for n in keep.tolist()]
        if search.parents is not None and self.requests:
            hypotheses.reorder(search.parents)
        return finished


class _Queue:
    """Requests in windows, the longest sources of a window first.

    A request that fails ends the queue. Its error comes when what was read before it is through.
    """

    def __init__(self, requests: Iterator[_Request], window: int) -> None:
        self._requests, self._window = requests, window
        self._waiting: deque[_Request] = deque()
        self.read = 0  # requests so far
        self.exhausted = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def look_ahead(self) -> None:
        """Read one more window."""
        window: list[_Request] = []
        try:
            for request in islice(self._requests, self._window):
                window.append(request)
        except Exception as error:
            self._error = error
        self.exhausted = len(window) < self._window
        self.read += len(window)
        window.sort(key=lambda request: -request.source.size)
        self._waiting += window

    def close(self) -> None:
        """Raise the error that ended it, if any did."""
        if self._error is not None:
            raise self._error

    def take(self, count: int, longest: int) -> list[_Request]:
        """The next ones, up to the first whose target may be longer than `longest`."""
        taken: list[_Request] = []
        while self._waiting and len(taken) < count and self._fits(longest):
            taken.append(self._waiting.popleft())
        return taken

    def _fits(self, longest: int) -> bool:
        return self._waiting[0].prompt.longest <= longest

    @property
    def longest(self) -> int:
        """Of the targets that wait."""
        return max(request.prompt.longest for request in self._waiting)


def _run(
    network: Network,
    requests: Iterator[_Request],
    settings: GenerationSettings,
    rules: Rules,
    batch_size: int,
    with_scores: bool,
    first_index: int,
) -> Iterator[list[Hypothesis]]:
    entropy = secrets.randbits(63) if settings.seed is None else settings.seed
    window = WINDOW * batch_size
    queue = _Queue(requests, window)
    batch: _Batch | None = None
    finished: dict[int, list[Hypothesis]] = {}
    next_index = first_index
    while True:
        running = 0 if batch is None else len(batch.requests)
        wanted = batch_size - running
        if wanted >= FREE * batch_size or running == 0:
            while len(queue) < wanted and not queue.exhausted:
                if queue.read - (next_index - first_index) >= AHEAD * window and running:
                    break
                queue.look_ahead()
        if len(queue) and (batch is None or (running == 0 and queue.longest > batch.longest)):
            slots = min(batch_size, len(queue)) if queue.exhausted else batch_size
            batch = _Batch(network, settings, rules, slots, queue.longest, with_scores, entropy)
        if batch is None:
            return queue.close()
        if len(queue) and batch.free >= min(len(queue), FREE * batch.slots, batch.slots):
            joining = queue.take(batch.free, batch.longest)
            if joining:
                batch.join(joining)
        if not batch.requests:
            return queue.close()
        finished.update(batch.step())
        while next_index in finished:
            yield finished.pop(next_index)
            next_index += 1


def _stream(
    network: Network, request: _Request, settings: GenerationSettings, rules: Rules
) -> Iterator[int]:
    entropy = secrets.randbits(63) if settings.seed is None else settings.seed
    batch = _Batch(network, settings, rules, 1, request.prompt.longest, False, entropy)
    batch.join([request])
    prompt = len(request.prompt.ids)
    while batch.requests:
        given = int(batch.search.targets.given[0]) + 1
        done = batch.step()
        if done:
            ids = done[0][1][0].ids
            if len(ids) == given:  # it ended by its length: the last token is one of the text
                yield int(ids[-1])
        elif given >= prompt:
            yield int(batch.search.tokens[0])
