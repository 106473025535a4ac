"""Encoder-decoder checkpoints with their tokenizers: texts -> translations, ids -> ids.

    texts -> source ids -> network + search (fastmha.decoding) -> target ids -> texts, in order

Sources join a running batch as others are finished, and a result depends on its own source alone.
"""

import hashlib
import math
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from fastmha._types import Float32, Int64, Integers
from fastmha.decoding import (
    BATCH_SIZE,
    GenerationSettings,
    Hypothesis,
    TargetScore,
    generate,
    score,
    stream,
)
from fastmha.decoding.ids import check_ids, check_sources
from fastmha.nn.encoder_decoder import EncoderDecoder
from fastmha.nn.module import check_size
from fastmha.nn.ragged import check_iterable, cumulative
from fastmha.texts import check_many, check_text, tracked
from fastmha.translation_checkpoints import open_checkpoint
from fastmha.translation_requests import Queue, Reader, Request, paired, then_raise
from fastmha.translation_results import AttentionMaps, Translation
from fastmha.translation_texts import TranslationTexts
from fastmha.vocabularies import UnknownCharacter

__all__ = ["TranslationModel", "UnknownCharacterWarning"]

TokenIds = Sequence[Integers | Sequence[int]]
# The text of a fingerprint.
PROBE = "The quick brown fox jumps over 13 lazy dogs. 敏捷的棕色狐狸。"


class UnknownCharacterWarning(UserWarning):
    """A text holds characters that the model has never seen; they are read as the unknown token."""


class TranslationModel:
    """An encoder-decoder with its tokenizers; made by :func:`load`.

    Attributes
    ----------
    config : dataclass
        What the network took from config.json.
    network : EncoderDecoder
        Source ids -> memory, memory and target ids -> logits.
    settings : GenerationSettings
        How it generates when a call says nothing else; from generation_config.json.
    texts : TranslationTexts
        Texts <-> ids.

    Examples
    --------
    >>> import fastmha as fm
    >>> model = fm.load(fm.demo_model_path())
    >>> model.translate(["我想吃汉堡"])
    ['I want to eat a hamburger']
    """

    def __init__(
        self,
        config: Any,
        network: EncoderDecoder,
        texts: TranslationTexts | None,
        settings: GenerationSettings,
    ) -> None:
        self.config, self.network, self.settings = config, network, settings
        self._texts = texts

    @classmethod
    def from_directory(cls, path: Path, config: dict[str, Any]) -> "TranslationModel":
        """Load the model in `path`; :func:`load` reads its config.json and calls this."""
        return cls(*open_checkpoint(path, config))

    @property
    def texts(self) -> TranslationTexts:
        if self._texts is None:
            raise ValueError("translate: this model has no tokenizers; generate() takes ids")
        return self._texts

    @property
    def languages(self) -> tuple[str, ...]:
        """The names that `src_lang` and `tgt_lang` may have; none when there is no choice."""
        return tuple(self.texts.languages)

    # ---- texts ----------------------------------------------------------------------------------

    def translate(
        self,
        texts: Iterable[str],
        *,
        beam_size: int | None = None,
        max_new_tokens: int | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | Iterable[str] | None = None,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: bool = False,
        **settings: Any,
    ) -> list[str]:
        """Translate texts (or summarise or answer them: what the model was trained for).

        Parameters
        ----------
        texts : iterable of str
            Blank ones give empty strings.
        beam_size : int, optional
            Hypotheses kept per text, 1 is greedy search; what the checkpoint says, mostly 1, when
            not given.
        max_new_tokens : int, optional
            The longest translation in tokens, the end token included; what the checkpoint says, or
            as many as the model has positions, when not given.
        src_lang, tgt_lang : str, optional
            Languages, for models that are told them (:attr:`languages`); what the checkpoint says
            when not given.
        prefix : str or iterable of str, optional
            What every translation begins with, or one for each text (blank ones, too); it is part
            of the result.
        truncate : bool, default False
            Cut off what is longer than the model can read; otherwise it is an error.
        batch_size : int, default 64
            Texts that run together. Results do not depend on it.
        progress : bool, default False
            Show a progress bar on stderr (needs the extra ``fastmha[cli]``).
        **settings
            Any other of :class:`GenerationSettings`: length_penalty, do_sample, temperature, seed,
            no_repeat_ngram_size, ...

        Returns
        -------
        list of str, in the order of `texts`

        Raises
        ------
        TypeError
            `texts` is one string, or holds something else than strings; an unknown setting.
        ValueError
            A text with more tokens than the model has positions, or with a lone surrogate, which is
            no character; a language that is not known or not said; more or fewer prefixes than
            texts, or one that leaves no room; sizes below 1.

        Warns
        -----
        UnknownCharacterWarning
            Characters that the model has never seen; the rest is translated all the same.
        """
        check_many("translate", texts)
        check_size("translate", batch_size=batch_size)
        texts = list(texts)
        options = {"src_lang": src_lang, "tgt_lang": tgt_lang, "truncate": truncate}
        sources = self._sources("translate", texts, **options)
        made = self._settings("translate", beam_size, max_new_tokens, tgt_lang, 1, settings)
        prefixes = self._prefixes("translate", prefix, made)
        # whatever is wrong with a text or a prefix shows before the work begins
        requests = list(paired("translate", zip(texts, sources, strict=True), prefixes))
        self._warn_of_unknown(texts, sources)
        found = self._best(
            requests, made, batch_size, prefixed=prefix is not None, with_scores=False
        )
        shown = tracked(found, lambda _: 1, len(texts), progress, "translating")
        return [best[0].text for best in shown]

    def translate_stream(
        self,
        texts: Iterable[str],
        *,
        beam_size: int | None = None,
        max_new_tokens: int | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | Iterable[str] | None = None,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        **settings: Any,
    ) -> Iterator[str]:
        """The same as :meth:`translate` for any number of texts in bounded memory.

        Texts are read some thousands ahead, and translations come as soon as all before them are
        finished. What is wrong with a text or its prefix, or raised by an iterator, is raised when
        those before it are through. Unknown characters are not warned of; see :meth:`unknown`.

        Yields
        ------
        str
            The translation of the next text.
        """
        options = {"src_lang": src_lang, "tgt_lang": tgt_lang, "truncate": truncate}
        found = self._n_best_stream(
            "translate_stream",
            texts,
            self._settings("translate_stream", beam_size, max_new_tokens, tgt_lang, 1, settings),
            prefix,
            batch_size,
            with_scores=False,
            **options,
        )
        return (best[0].text for best in found)

    def n_best_stream(
        self,
        texts: Iterable[str],
        count: int,
        *,
        beam_size: int | None = None,
        max_new_tokens: int | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | Iterable[str] | None = None,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        **settings: Any,
    ) -> Iterator[list[Translation]]:
        """Several translations of each text with their scores, as :meth:`translate_stream` gives
        one.

        Parameters
        ----------
        texts : iterable of str
        count : int
            How many: the best of as many beams or more (`beam_size`, `count` when not given), or so
            many samples with ``do_sample=True``.

        Yields
        ------
        list of Translation
            The best first, samples in the order of drawing. A blank text gives empty ones of score
            0; there may be fewer than `count` when there are not as many at all.
        """
        check_size("n_best_stream", count=count)
        if beam_size is None and not settings.get("do_sample", self.settings.do_sample):
            beam_size = max(self.settings.num_beams, count)
        options = {"src_lang": src_lang, "tgt_lang": tgt_lang, "truncate": truncate}
        return self._n_best_stream(
            "n_best_stream",
            texts,
            self._settings("n_best_stream", beam_size, max_new_tokens, tgt_lang, count, settings),
            prefix,
            batch_size,
            with_scores=True,
            **options,
        )

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str = "",
        truncate: bool = False,
        **settings: Any,
    ) -> Iterator[str]:
        """The translation of one text piece by piece, as it is written: greedy search, or a sample
        with ``do_sample=True``.

        Yields
        ------
        str
            What comes next; joined they are the translation. The prefix is the first of them.

        Examples
        --------
        >>> import fastmha as fm
        >>> model = fm.load(fm.demo_model_path())
        >>> list(model.stream("我想吃汉堡"))
        ['I', ' want', ' to', ' eat', ' a', ' hamburger']
        """
        check_text("stream: text", text)
        for name in ("beam_size", "num_beams"):
            if name in settings:
                raise TypeError(
                    f"stream: takes no {name}: it is greedy search, or a sample with "
                    "do_sample=True, as beams take back what they wrote; translate() has beam_size"
                )
        made = self._settings("stream", 1, max_new_tokens, tgt_lang, 1, settings)
        options = {"src_lang": src_lang, "tgt_lang": tgt_lang, "truncate": truncate}
        (source,) = self._sources("stream", [text], **options)
        self._warn_of_unknown([text], [source])
        start = self._prefix_ids("stream: prefix", prefix, made)
        ids = stream(self.network, source, made, prefix=start) if text.strip() else iter(())
        return self._growing_text(start.tolist(), ids)

    def score(
        self,
        pairs: Iterable[tuple[str | Integers, str | Integers]],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        truncate: bool = False,
    ) -> list[TargetScore]:
        """How probable given translations are.

        Parameters
        ----------
        pairs : iterable of (source, target)
            Texts, or ids as :meth:`encode_texts` and :meth:`generate` give them.
        src_lang, tgt_lang, truncate
            As for :meth:`translate`.

        Returns
        -------
        list of TargetScore
            The log-probability of every token of the target and of the end token behind it (tokens
            that are forced, as that of a language, apart), and their sum. No rule of
            :attr:`settings` is applied.

        Examples
        --------
        >>> import fastmha as fm
        >>> model = fm.load(fm.demo_model_path())
        >>> text, good, bad = "我想吃汉堡", "I want to eat a hamburger", "I want to eat a piano"
        >>> good, bad = model.score([(text, good), (text, bad)])
        >>> good.total > bad.total
        True
        """
        check_iterable("score: pairs", pairs, "an iterable of (source, target)")
        settings = self._settings("score", None, None, tgt_lang, 1, {})
        forced = _forced(settings)
        options = {"src_lang": src_lang, "tgt_lang": tgt_lang, "truncate": truncate}
        skipped = deque[int]()

        def ids() -> Iterator[tuple[Integers, Integers]]:
            for n, pair in enumerate(pairs):
                source, target = _source_and_target(n, pair)
                if isinstance(source, str):
                    (source,) = self._sources("score", [source], first=n, **options)
                skipped.append(len(forced) if isinstance(target, str) else 0)
                if isinstance(target, str):
                    check_text(f"score: target {n}", target)
                    with _called("score"):
                        (bare,) = self.texts.targets([target], first=n)
                    target = np.concatenate([forced, bare])
                yield source, target

        found = []
        for result in score(self.network, ids(), settings):
            log_probs = result.log_probs[skipped.popleft() :]
            found.append(TargetScore(log_probs, float(log_probs.sum())))
        return found

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        truncate: bool = False,
    ) -> list[Int64]:
        """The source ids of each text, with all that the model expects around them."""
        check_many("encode_texts", texts)
        options = {"src_lang": src_lang, "tgt_lang": tgt_lang, "truncate": truncate}
        return self._sources("encode_texts", list(texts), **options)

    def decode(self, ids: Integers | Sequence[int]) -> str:
        """The text of target ids, special tokens left out."""
        return self.texts.decode(check_ids("decode: ids", ids, self.network.vocab_size))

    def tokenize(self, text: str) -> list[str]:
        """The source tokens of `text`, without those that the model expects around them."""
        check_text("tokenize: text", text)
        (ids,) = self.texts.source.encode([text])
        return self.texts.source.labels(ids)

    def unknown(self, text: str) -> list[UnknownCharacter]:
        """The pieces of `text` that the model has never seen."""
        check_text("unknown: text", text)
        return self.texts.source.unknown(text)

    def attention(
        self,
        text: str,
        *,
        beam_size: int | None = None,
        max_new_tokens: int | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **settings: Any,
    ) -> AttentionMaps:
        """Translate one sentence, as :meth:`translate` does, and return the weights of every head
        of every layer.

        Raises
        ------
        ValueError
            A blank text, or one longer than the model has positions.
        """
        check_text("attention: text", text)
        if not text.strip():
            raise ValueError("attention: the text is blank")
        made = self._settings("attention", beam_size, max_new_tokens, tgt_lang, 1, settings)
        (source,) = self._sources("attention", [text], src_lang=src_lang, tgt_lang=tgt_lang)
        ((target, *_),) = generate(self.network, [source], made)
        # the decoder reads the start token and what it wrote, as far as it has positions
        read = np.concatenate([[made.decoder_start_token_id], target.ids])
        read = read[: self.network.max_target_length]
        encoder, decoder, cross = self.network.attention_weights(source, read)
        return AttentionMaps(
            tuple(self.texts.source.labels(source.tolist())),
            tuple(self.texts.target.labels(read.tolist())),
            self.texts.decode(target.ids),
            encoder,
            decoder,
            cross,
        )

    # ---- ids ------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        token_ids: TokenIds,
        *,
        beam_size: int | None = ...,
        max_new_tokens: int | None = ...,
        return_scores: Literal[False] = ...,
        prefix: Integers | Sequence[int] | None = ...,
        batch_size: int = ...,
        progress: bool = ...,
        **settings: Any,
    ) -> list[Int64]: ...
    @overload
    def generate(
        self,
        token_ids: TokenIds,
        *,
        beam_size: int | None = ...,
        max_new_tokens: int | None = ...,
        return_scores: Literal[True],
        prefix: Integers | Sequence[int] | None = ...,
        batch_size: int = ...,
        progress: bool = ...,
        **settings: Any,
    ) -> tuple[list[Int64], list[float]]: ...
    def generate(
        self,
        token_ids: TokenIds,
        *,
        beam_size: int | None = None,
        max_new_tokens: int | None = None,
        return_scores: bool = False,
        prefix: Integers | Sequence[int] | None = None,
        batch_size: int = BATCH_SIZE,
        progress: bool = False,
        **settings: Any,
    ) -> Any:
        """Generate the target ids of sources given as ids.

        Parameters
        ----------
        token_ids : list of integer arrays
            With all that the model expects around them, as :meth:`encode_texts` gives them.
        beam_size, max_new_tokens, batch_size, progress, **settings
            As for :meth:`translate`. `max_new_tokens` does not count the start token, which is not
            generated, nor the prefix.
        return_scores : bool, default False
            Also return the score of each target: the sum of the log-probabilities of its tokens,
            the end token included, divided by their number to the power of the length penalty.
        prefix : integer array, optional
            What every target begins with, behind the start token; a forced first token has to be
            part of it.

        Returns
        -------
        list of ndarray of int64
            Without start token, end token and padding. With ``num_return_sequences=n`` above 1 in
            `settings`, n of each source next to each other, as in transformers; where there are not
            so many targets at all, empty ones of score -inf.
        list of float
            Only with `return_scores`.

        Raises
        ------
        TypeError
            Ids that are not integers, an unknown setting.
        ValueError
            An id outside the vocabulary, an empty source, more tokens than the model has positions;
            sizes below 1.
        """
        count = settings.pop("num_return_sequences", None)
        made = self._replaced(
            "generate", beam_size, max_new_tokens, 1 if count is None else count, settings
        )
        sources = check_sources("generate", self.network, token_ids)
        check_size("generate", batch_size=batch_size)
        found = generate(
            self.network,
            sources,
            made,
            prefixes=None if prefix is None else [prefix] * len(sources),
            with_scores=return_scores,
            batch_size=batch_size,
        )
        shown = tracked(found, lambda _: 1, len(sources), progress, "generating")
        # a flat list tells which source a target is of by its place alone
        none = Hypothesis(np.empty(0, np.int64), -math.inf)
        rows = ([*best, *repeat(none, made.num_return_sequences - len(best))] for best in shown)
        targets = [target for row in rows for target in row]
        ids = [target.ids for target in targets]
        return (ids, [target.score for target in targets]) if return_scores else ids

    def forward(self, token_ids: TokenIds) -> list[Float32]:
        """The encoder's output for each source, (L_n, d_model); all sources run together, without
        padding."""
        sources = check_sources("forward", self.network, token_ids)
        if not sources:
            return []
        bounds = cumulative(np.array([source.size for source in sources]))
        memory = self.network.encode(np.concatenate(sources), bounds)
        return np.split(memory, bounds[1:-1])

    def fingerprint(self) -> str:
        """What tells models and instruction sets apart: the bits of one source's memory and of the
        first logits."""
        (source,) = self.encode_texts([PROBE], truncate=True)
        memory = self.network.encode(source, np.array([0, source.size]))
        start = np.array([self.settings.decoder_start_token_id])
        bounds = np.array([0, source.size]), np.array([0, 1])
        logits = self.network.target_logits(memory, bounds[0], start, bounds[1])
        return hashlib.sha256(memory.tobytes() + logits.tobytes()).hexdigest()

    # ---- between them ---------------------------------------------------------------------------

    def _replaced(
        self,
        operation: str,
        beam_size: int | None,
        max_new_tokens: int | None,
        count: int,
        settings: Mapping[str, Any],
    ) -> GenerationSettings:
        """The checkpoint's settings with those of a call."""
        for name, size in (("beam_size", beam_size), ("max_new_tokens", max_new_tokens)):
            if size is not None:
                check_size(operation, **{name: size})
        if "num_beams" in settings:
            raise TypeError(f"{operation}: num_beams is called beam_size here")
        if "num_return_sequences" in settings:
            raise TypeError(
                f"{operation}: num_return_sequences is for generate(); n_best_stream(texts, count) "
                "gives several translations of each text"
            )
        beams = self.settings.num_beams if beam_size is None else beam_size
        sampled = settings.get("do_sample")
        if sampled is None:
            sampled = self.settings.do_sample
        # GenerationSettings would refuse these, too, but by names that no call here has
        if sampled is True and beams > 1:
            says = "the checkpoint says" if beam_size is None else "got"
            raise ValueError(
                f"{operation}: sampling with beams is not done here; set beam_size=1 ({says} "
                f"{beams}), or do_sample=False"
            )
        if not sampled and count > beams:
            name = "num_return_sequences" if operation == "generate" else "count"
            raise ValueError(
                f"{operation}: {name} ({count}) must be at most beam_size ({beams}), or set "
                "do_sample=True"
            )
        with _called(operation):
            made = self.settings.replace(
                num_beams=beam_size,
                max_new_tokens=max_new_tokens,
                num_return_sequences=count,
                **settings,
            )
        most, least = made.max_new_tokens, made.min_new_tokens
        # what the files say is left alone, as by transformers, where the greatest length wins
        given = settings.get("min_new_tokens") is not None
        if given and most is not None and least is not None and least > most:
            raise ValueError(
                f"{operation}: min_new_tokens ({least}) must be at most max_new_tokens ({most})"
            )
        return made

    def _settings(
        self,
        operation: str,
        beam_size: int | None,
        max_new_tokens: int | None,
        tgt_lang: str | None,
        count: int,
        settings: Mapping[str, Any],
    ) -> GenerationSettings:
        """The same, for targets of a language."""
        with _called(operation):
            language = self.texts.start(tgt_lang, self.settings)
            made = self._replaced(
                operation, beam_size, max_new_tokens, count, {**language, **settings}
            )
            # too long a target shows before the work
            made.longest(1, self.network.max_target_length)
        return made

    def _sources(self, operation: str, texts: Sequence[str], **options: Any) -> list[Int64]:
        """The ids of source texts; options are those of :meth:`TranslationTexts.sources`."""
        with _called(operation):
            return self.texts.sources(texts, longest=self.network.max_source_length, **options)

    def _n_best_stream(
        self,
        operation: str,
        texts: Iterable[str],
        settings: GenerationSettings,
        prefix: str | Iterable[str] | None,
        batch_size: int,
        *,
        with_scores: bool,
        **options: Any,
    ) -> Iterator[list[Translation]]:
        check_many(operation, texts)
        check_size(operation, batch_size=batch_size)

        def encode(part: list[str], first: int) -> list[Int64]:
            return self._sources(operation, part, first=first, **options)

        encode([], 0)  # a language that is not known shows here
        prefixes = self._prefixes(operation, prefix, settings)
        reader = Reader(operation, texts, encode, prefixes)
        prefixed = prefix is not None
        best = self._best(reader, settings, batch_size, prefixed=prefixed, with_scores=with_scores)
        return then_raise(best, reader)

    def _best(
        self,
        requests: Iterable[Request],
        settings: GenerationSettings,
        batch_size: int,
        *,
        prefixed: bool,
        with_scores: bool,
    ) -> Iterator[list[Translation]]:
        """The translations of each text."""
        queue = Queue(requests, batch_size)
        if settings.seed is None:  # all runs of the search draw from the same streams
            settings = settings.replace(seed=secrets.randbits(63))

        def search() -> Iterator[list[Hypothesis]]:
            return generate(
                self.network,
                queue.sources(),
                settings,
                prefixes=queue.prefixes() if prefixed else None,
                with_scores=with_scores,
                batch_size=batch_size,
                first_index=queue.read,
            )

        # the first begins here: what is wrong with the settings shows before the work
        return self._in_order(search(), search, queue, settings.num_return_sequences)

    def _in_order(
        self,
        found: Iterator[list[Hypothesis]],
        search: Callable[[], Iterator[list[Hypothesis]]],
        queue: Queue,
        count: int,
    ) -> Iterator[list[Translation]]:
        """What `found` holds, then what `search` finds as long as there are texts, and the blank
        ones between."""
        while True:
            for best in found:
                yield from _nothing(queue.blanks(), count)
                yield [Translation(self.texts.decode(h.ids), h.score, h.ids) for h in best]
            yield from _nothing(queue.blanks(), count)
            if queue.exhausted:
                return
            found = search()

    def _prefixes(
        self, operation: str, prefix: str | Iterable[str] | None, settings: GenerationSettings
    ) -> Iterator[Int64 | None]:
        """The ids that each target begins with: one prefix, or none, is repeated for ever."""
        if prefix is None:
            return repeat(None)
        if isinstance(prefix, str):
            return repeat(self._prefix_ids(f"{operation}: prefix", prefix, settings))
        check_iterable(f"{operation}: prefix", prefix, "a str, or an iterable of one for each text")
        return (
            self._prefix_ids(f"{operation}: prefix[{n}]", each, settings)
            for n, each in enumerate(prefix)
        )

    def _prefix_ids(self, what: str, prefix: str, settings: GenerationSettings) -> Int64:
        """What a target begins with; nothing at all for an empty prefix, so that what is forced to
        come first is."""
        check_text(what, prefix)
        with _called(what):
            (ids,) = self.texts.targets([prefix])
        unknown_id = self.texts.target.unknown_id
        if unknown_id is not None and unknown_id in ids:
            warnings.warn(
                f"{what} {prefix!r:.80} holds characters unknown to the model, and not in the "
                "result",
                UnknownCharacterWarning,
                stacklevel=2,
            )
        ids = np.concatenate([_forced(settings), ids]) if ids.size else ids
        try:  # here, where it is known which of them it is
            settings.longest(1 + ids.size, self.network.max_target_length)
        except ValueError as error:
            reason = str(error).removeprefix("generate: ")
            raise ValueError(f"{what} is too long: {reason}") from None
        return ids

    def _growing_text(self, ids: list[int], more: Iterator[int]) -> Iterator[str]:
        """The text of ids that come one by one, as far as later ones cannot change it."""
        shown = ""
        clean_up = self.texts.target.clean_up

        def news() -> str:
            text = self.texts.target.decode(ids)
            if clean_up:  # it takes the last space away when a comma follows
                text = text.rpartition(" ")[0]
            ready = text.startswith(shown) and not text.endswith("\ufffd")  # half a character
            return text[len(shown) :] if ready else ""

        if piece := news():
            yield piece
            shown += piece
        for id_ in more:
            ids.append(id_)
            if piece := news():
                yield piece
                shown += piece
        if rest := self.texts.target.decode(ids)[len(shown) :]:
            yield rest

    def _warn_of_unknown(self, texts: Sequence[str], sources: Sequence[Int64]) -> None:
        unknown_id = self.texts.source.unknown_id
        if unknown_id is None:
            return
        unknown = [
            f"text {n}: {piece}"
            for n, (text, ids) in enumerate(zip(texts, sources, strict=True))
            if (ids == unknown_id).any()
            for piece in self.unknown(text)
        ]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            warnings.warn(
                "characters unknown to the model: " + "; ".join(unknown[:5]) + more,
                UnknownCharacterWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        name = type(self.config).__name__.removesuffix("Config")
        encoder, decoder = self.network.encoder.layers, self.network.decoder.layers
        return (
            f"TranslationModel({name}, {self.network.vocab_size} tokens, "
            f"d_model={self.network.d_model}, {len(encoder)} + {len(decoder)} blocks)"
        )


def _nothing(texts: int, count: int) -> Iterator[list[Translation]]:
    """What so many blank texts give."""
    for _ in range(texts):
        yield [Translation("", 0.0, np.empty(0, np.int64))] * count


@contextmanager
def _called(operation: str) -> Iterator[None]:
    """What is refused further down is refused in the name of the call."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error)
        for name in ("translate: ", "generate: ", "encode_texts: "):
            if message.startswith(name):
                error.args = (f"{operation}: {message.removeprefix(name)}",)
        raise


def _source_and_target(n: int, pair: Any) -> tuple[str | Integers, str | Integers]:
    """A pair for score(), which is neither a text of two characters nor anything else."""
    try:
        source, target = [pair] if isinstance(pair, str) else [*pair]
    except (TypeError, ValueError):
        raise TypeError(f"score: pair {n} must be (source, target), got {pair!r:.80}") from None
    for name, value in (("source", source), ("target", target)):
        if value is None or isinstance(value, bytes):
            raise TypeError(f"score: {name} {n} must be a str or ids, got {type(value).__name__}")
    return source, target


def _forced(settings: GenerationSettings) -> Int64:
    """The token that comes first whatever the network says, if there is one."""
    token = settings.forced_bos_token_id
    return np.array([] if token is None else [token], np.int64)
