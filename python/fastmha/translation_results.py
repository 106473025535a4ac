"""What models that translate give back: translations, and what attended to what."""

from dataclasses import dataclass

from fastmha._types import Float32, Int64

__all__ = ["AttentionMaps", "Translation"]


@dataclass(frozen=True)
class Translation:
    """One translation of a text.

    Attributes
    ----------
    text : str
    score : float
        The sum of the log-probabilities of its tokens, the end token included, divided by their
        number to the power of the length penalty.
    ids : ndarray of int64
        Without start and end token.

    Examples
    --------
    >>> import fastmha as fm
    >>> model = fm.load(fm.demo_model_path())
    >>> ((best, second),) = model.n_best_stream(["我想吃汉堡"], 2)
    >>> best.text, best.score > second.score
    ('I want to eat a hamburger', True)
    """

    text: str
    score: float
    ids: Int64


@dataclass(frozen=True)
class AttentionMaps:
    """Every attention weight of one translated sentence; row = the token that looks, column = the
    token looked at.

    Attributes
    ----------
    source, target : tuple of str
        Tokens of the source, and of the decoder's input (the start token, then the translation).
    translation : str
    encoder, decoder, cross : list of ndarray of float32
        Per layer (heads, S, S), (heads, T, T) and (heads, T, S).
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    translation: str
    encoder: list[Float32]
    decoder: list[Float32]
    cross: list[Float32]
