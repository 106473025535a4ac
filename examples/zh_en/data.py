"""Sentence pairs for training and for the held-out test, and the two tokenisers.

Whether a sentence is held out depends on the sentence alone (a hash of its Chinese text), not on
the seed or on the order of drawing: no training set, whatever its seed and size, can contain a
held-out sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from . import grammar

Pair = tuple[str, str]

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")

HELD_OUT_PAIRS = 5000
_HELD_OUT_SHARE = 16  # one sentence in so many is held out


class AmbiguousSentence(ValueError):
    """The grammar gave one Chinese sentence two translations."""


def is_held_out(source: str) -> bool:
    """Whether this Chinese sentence belongs to the test set; the same on every machine."""
    return hashlib.sha256(source.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def _draw(seed: str, *, held_out: bool) -> Iterator[Pair]:
    """Endless pairs of one side of the split, each as often as the grammar says it."""
    rng = Random(seed)
    targets: dict[str, str] = {}
    while True:
        source, target = grammar.sample(rng)
        if is_held_out(source) != held_out:
            continue
        if targets.setdefault(source, target) != target:
            raise AmbiguousSentence(f"{source!r} means both {targets[source]!r} and {target!r}")
        yield source, target


def training_pairs(count: int, seed: int = 0) -> list[Pair]:
    """`count` training pairs (Chinese, English), the same ones for the same seed.

    Short common sentences are repeated. That is on purpose: drawn once only, 现在几点 would be one
    of hundreds of thousands of sentences and would not be learned.
    """
    return list(islice(_draw(f"zh-en training {seed}", held_out=False), count))


def held_out_pairs(count: int = HELD_OUT_PAIRS, seed: int = 0) -> list[Pair]:
    """`count` different pairs whose Chinese side never occurs in any training set."""
    pairs: dict[str, str] = {}
    for source, target in _draw(f"zh-en held out {seed}", held_out=True):
        pairs[source] = target
        if len(pairs) == count:
            break
    return list(pairs.items())


def fingerprint(pairs: Iterable[Pair]) -> str:
    """A hash of the pairs: a checkpoint names by it the sentences that it was tested on."""
    digest = hashlib.sha256()
    for source, target in pairs:
        digest.update(f"{source}\t{target}\n".encode())
    return digest.hexdigest()


def _vocabulary(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate((*SPECIAL_TOKENS, *sorted(set(tokens))))}


def source_tokenizer(sources: Iterable[str]) -> Tokenizer:
    """One token per Chinese character, then `</s>`.

    Full-width forms are unified (NFKC), white space and final punctuation are dropped, so
    `我想吃汉堡。` and `我 想 吃 汉 堡` are the same sentence. Characters outside the vocabulary
    become `<unk>`. Special tokens are plain vocabulary entries here: the text "</s>" in a sentence
    is four unknown characters, not an end token.
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s+"), ""),
            normalizers.Replace(Regex(r"[。.!?]+$"), ""),
        ]
    )
    characters = set(normalizer.normalize_str("".join(sources)))
    tokenizer = Tokenizer(WordLevel(_vocabulary(characters), unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def target_tokenizer(targets: Iterable[str]) -> Tokenizer:
    """One token per English word; `?`, `,` and `'s` are tokens of their own.

    `encode` gives `<s> ... </s>`; `decode` joins words by single spaces and attaches `?`, `,` and
    `'s` to the word before, so that decode(encode(text)) == text for every sentence of the grammar.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[?,]|'s(?=[?,]|$)"), "isolated"),
        ]
    )
    tokens = (word for target in targets for word, _ in splitter.pre_tokenize_str(target))
    tokenizer = Tokenizer(WordLevel(_vocabulary(tokens), unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer
