"""How to generate: the fields of generation_config.json, checked, with per-call overrides.

Names and defaults are those of transformers' ``GenerationConfig``. Each of its fields is in exactly
one of three places: a field of :class:`GenerationSettings` (honoured), HARMLESS (how transformers
computes or what it returns beside the ids; nothing here depends on it), or NEUTRAL (would change
the ids in a way that is not done here: refused by name unless it is at a value that asks for
nothing).
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastmha.config import read_json

__all__ = ["HARMLESS", "NEUTRAL", "GenerationSettings"]

# Values of fields that change no id: caches, compilation, what is returned beside the ids, and the
# settings of assistants, which do nothing as long as there is no assistant.
HARMLESS = frozenset(
    {
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
        *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "transformers_version", "_from_model_config", "_commit_hash"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_lookbehind"),
        *("assistant_confidence_threshold", "target_lookbehind", "max_matching_ngram_size"),
    }
)

# What is not done, and the values that ask for nothing; None (not given) always does.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"num_beam_groups": (1,), "diversity_penalty": (0,), "penalty_alpha": (0,)},
    **{"constraints": ([],), "force_words_ids": ([],), "dola_layers": ()},
    **{"sequence_bias": (), "exponential_decay_length_penalty": ()},
    **{"encoder_repetition_penalty": (1,), "encoder_no_repeat_ngram_size": (0,)},
    **{"guidance_scale": (1,), "watermarking_config": (), "token_healing": (False,)},
    **{"max_time": (), "stop_strings": ([],), "use_mtp": (False,), "speculation_type": ()},
    **{"is_assistant": (False,), "assistant_early_exit": (), "assistant_ensemble_weight": ()},
    "prompt_lookup_num_tokens": (),
}
# These are read only when sampling: refused then, ignored otherwise, as transformers ignores them.
NEUTRAL_WHEN_SAMPLING: Mapping[str, float] = {
    **{"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    "top_h": 1.0,
}


@dataclass(frozen=True)
class GenerationSettings:
    """What is generated and by which rules; made by :meth:`from_checkpoint`.

    Parameters
    ----------
    decoder_start_token_id : int
        The token that every target starts with; it is not counted and not returned.
    eos_token_id : tuple of int
        Tokens that end a target; none at all when empty. An int or a list is taken, too.
    pad_token_id, bos_token_id : int, optional
        Known, but nothing is padded.
    max_new_tokens, max_length : int, optional
        The most tokens that are generated, the end token included; or that there are with start
        token and prefix. `max_new_tokens` wins. With neither, as many as the network has positions.
    min_new_tokens, min_length : int, optional
        Before that many the target does not end; counted in the same ways.
    num_beams : int, default 1
        Hypotheses kept for each source.
    num_return_sequences : int, default 1
        Targets returned for each source: the best of `num_beams`, or that many samples.
    length_penalty : float, default 1.0
        Scores are divided by the number of generated tokens to this power.
    early_stopping : bool or "never", default False
        When a source is done that has `num_beams` finished hypotheses: at once (True), when its
        best running one scores no better at its present length (False), or when it could not score
        better at any length ("never").
    do_sample : bool, default False
        Draw each token instead of taking the most probable one.
    temperature, top_k, top_p, min_p
        The distribution that is drawn from, in this order; `top_k` 0 or None takes all tokens.
    seed : int, optional
        Where the draws come from; each source has its own stream. New ones each time when None.
    repetition_penalty : float, default 1.0
        Makes tokens that the target holds already less probable.
    no_repeat_ngram_size : int, default 0
        No sequence of so many tokens comes twice.
    bad_words_ids : tuple of tuples of int
        Sequences that never come.
    suppress_tokens, begin_suppress_tokens : tuple of int
        Tokens that never come, and that do not come first.
    forced_bos_token_id : int, optional
        The first token of a target without prefix.
    forced_eos_token_id : tuple of int
        The last token of a target that reaches its greatest length.
    remove_invalid_values, renormalize_logits : bool, default False
        As in transformers: NaN becomes 0 and infinities large numbers; log-probabilities are
        normalised again behind the rules.

    Raises
    ------
    ValueError
        A value out of its range, or settings that contradict each other.
    TypeError
        A value of another type.

    Examples
    --------
    >>> from fastmha.decoding import GenerationSettings
    >>> settings = GenerationSettings(decoder_start_token_id=0, eos_token_id=2, num_beams=4)
    >>> settings.replace(max_new_tokens=20, length_penalty=None).max_new_tokens
    20
    """

    decoder_start_token_id: int
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_h: float = 1.0

    def __post_init__(self) -> None:
        for name, convert in _CONVERSIONS.items():
            object.__setattr__(self, name, convert(f"generate: {name}", getattr(self, name)))
        self._check_ranges()
        self._check_together()

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], *, where: str = "generate"
    ) -> "GenerationSettings":
        """Settings from a mapping with the names of ``GenerationConfig``; null means not given.

        Names that ``GenerationConfig`` does not know are left alone, as transformers leaves them.

        Raises
        ------
        ValueError
            A field asks for something that is not done here, or none says how a target starts.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        for name, allowed in NEUTRAL.items():
            if name in given and given[name] not in allowed:
                supported = " or ".join(map(repr, allowed)) if allowed else "leaving it out"
                raise ValueError(
                    f"{where}: {name} is {given[name]!r}, which is not done here; "
                    f"supported is {supported}"
                )
        if "decoder_start_token_id" not in given:
            if "bos_token_id" not in given:
                raise ValueError(
                    f"{where}: decoder_start_token_id (or bos_token_id) must say which token a "
                    "target starts with"
                )
            given["decoder_start_token_id"] = given["bos_token_id"]
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in given.items() if name in names})
        except (TypeError, ValueError) as error:
            message = str(error).removeprefix("generate: ")
            raise type(error)(f"{where}: {message}") from error

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> "GenerationSettings":
        """Settings from generation_config.json, or from config.json where there is none.

        Parameters
        ----------
        directory : path
            The checkpoint.
        config : mapping
            Its config.json, where older checkpoints hold these fields, too. Next to a
            generation_config.json only the special tokens that it leaves out are taken from there.
        defaults : mapping, optional
            What the family's config has where the files say nothing.

        Raises
        ------
        FileNotFoundError
            There is no such directory.
        TypeError
            `config` is no mapping.
        ValueError
            The file is broken, or a field asks for something that is not done here.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is not a directory with a checkpoint")
        if not isinstance(config, Mapping):
            raise TypeError(
                "GenerationSettings.from_checkpoint: config must be what config.json holds, a "
                f"mapping, got {type(config).__name__}"
            )
        file = directory / "generation_config.json"
        if file.is_file():
            fields = read_json(file)
            fallback = {name: config.get(name) for name in SPECIAL_TOKENS}
        else:
            file = directory / "config.json"
            fields = dict(config)
            fallback = {}
            if fields.get("force_bos_token_to_be_generated"):  # BART, before forced_bos_token_id
                fallback["forced_bos_token_id"] = fields.get("bos_token_id")
        for more in (fallback, defaults or {}):
            for name, value in more.items():
                if fields.get(name) is None:
                    fields[name] = value
        return cls.from_fields(fields, where=str(file))

    def replace(self, **changes: Any) -> "GenerationSettings":
        """The same settings with `changes`; those that are None are not given.

        Raises
        ------
        TypeError
            A name that is no setting.
        ValueError
            A setting that is not supported, or a value out of its range.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        for name, value in given.items():
            if name in _CONVERSIONS:
                continue
            if name in HARMLESS or (name in NEUTRAL and value in NEUTRAL[name]):
                continue
            if name in NEUTRAL:
                raise ValueError(f"generate: {name} is not done here, got {value!r}")
            raise TypeError(f"generate: there is no setting {name!r}")
        given = {name: value for name, value in given.items() if name in _CONVERSIONS}
        if "max_length" in given and "max_new_tokens" not in given:
            given["max_new_tokens"] = None  # what the call says wins over what the checkpoint says
        if "min_length" in given and "min_new_tokens" not in given:
            given["min_new_tokens"] = None
        return dataclasses.replace(self, **given)

    def longest(self, prompt: int, positions: int | None) -> int:
        """The most tokens, start token and prefix (`prompt` together) included, that a target may
        have.

        Raises
        ------
        ValueError
            More than a network with that many positions can read, or no room behind the prompt.
        """
        # The last token is never read: the target may be one longer than there are positions.
        room = DEFAULT_LENGTH if positions is None else positions + 1
        if self.max_new_tokens is not None:
            if positions is not None and prompt + self.max_new_tokens > room:
                behind = f" behind a prefix of {prompt - 1}" if prompt > 1 else ""
                raise ValueError(
                    f"generate: the model has {positions} positions, so it generates at most "
                    f"{max(room - prompt, 0)} tokens{behind}; got max_new_tokens="
                    f"{self.max_new_tokens}"
                )
            return prompt + self.max_new_tokens
        longest = room if self.max_length is None else min(self.max_length, room)
        if self.max_length is not None and positions is None:
            longest = self.max_length
        if longest <= prompt:
            raise ValueError(
                f"generate: a prefix of {prompt - 1} tokens with the start token leaves no room in "
                f"a target of at most {longest} tokens; raise max_length or shorten the prefix"
            )
        return longest

    def _check_ranges(self) -> None:
        if self.num_beams > _MOST_BEAMS:
            raise ValueError(
                f"generate: num_beams must be at most {_MOST_BEAMS}, got {self.num_beams}"
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"generate: {name} must be at least {least}, got {value}")
        # Checkpoints that do not sample may hold a temperature of 0: it is not read then.
        for name in ("repetition_penalty", "temperature")[: 1 + self.do_sample]:
            if not _TINY <= getattr(self, name) <= 1 / _TINY:
                raise ValueError(
                    f"generate: {name} must lie in {_TINY:g} .. {1 / _TINY:g}, "
                    f"got {getattr(self, name)}"
                )
        for name in ("top_p", "min_p"):
            if self.do_sample and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"generate: {name} must lie in 0 .. 1, got {getattr(self, name)}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                "generate: early_stopping must be True, False or 'never', "
                f"got {self.early_stopping!r}"
            )
        if not abs(self.length_penalty) <= _STEEPEST:
            raise ValueError(
                f"generate: length_penalty must lie in -{_STEEPEST} .. {_STEEPEST}, "
                f"got {self.length_penalty}"
            )
        if any(len(word) == 0 for word in self.bad_words_ids):
            raise ValueError("generate: bad_words_ids holds an empty sequence")

    def _check_together(self) -> None:
        if self.do_sample:
            if self.num_beams > 1:
                raise ValueError(
                    f"generate: sampling with beams is not done here (do_sample with num_beams="
                    f"{self.num_beams}); set num_beams=1, or num_return_sequences for more samples"
                )
            for name, neutral in NEUTRAL_WHEN_SAMPLING.items():
                if getattr(self, name) != neutral:
                    raise ValueError(
                        f"generate: {name} is {getattr(self, name)}, which is not done here; "
                        f"supported with do_sample is {neutral}"
                    )
        elif self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"generate: num_return_sequences ({self.num_return_sequences}) must be at most "
                f"num_beams ({self.num_beams}), or set do_sample"
            )
        first = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        forced = {"forced_bos_token_id": first, "forced_eos_token_id": self.forced_eos_token_id}
        for name, tokens in forced.items():
            if tokens and set(tokens) <= set(self.suppress_tokens):
                raise ValueError(
                    f"generate: {name} {sorted(tokens)} is among suppress_tokens: nothing would be "
                    "left to choose"
                )


SPECIAL_TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
# The longest target of a network without positions (T5) when nothing says otherwise. transformers
# stops after 20 tokens there, in the middle of most sentences.
DEFAULT_LENGTH = 513
# A logit of thousands divided by less, or times more, would leave float32.
_TINY = 1e-30
# A target of 2^31 tokens to this power, 2^992, is still a float64, and so is one by it.
_STEEPEST = 32
# More would take gigabytes for nothing: no search is better for that many.
_MOST_BEAMS = 10_000
_LEAST = {
    **{"decoder_start_token_id": 0, "max_new_tokens": 1, "max_length": 2, "min_new_tokens": 0},
    **{"min_length": 0, "num_beams": 1, "num_return_sequences": 1, "top_k": 0, "seed": 0},
    **{"no_repeat_ngram_size": 0, "forced_bos_token_id": 0},
}


def _int(what: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, got {value!r}")
    return int(value.__index__())


def _optional_int(what: str, value: Any) -> int | None:
    return None if value is None else _int(what, value)


def _float(what: str, value: Any) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number, got {value!r}")
    return float(value)


def _bool(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, got {value!r}")
    return value


def _stopping(what: str, value: Any) -> Any:
    if value == "never" or isinstance(value, str) or value not in (True, False):
        return value  # refused later, unless it is "never"
    return bool(value)  # 0 and 1 in old files


def _token(what: str, value: Any) -> int:
    token = _int(what, value)
    if token < 0:
        raise ValueError(f"{what} must hold ids of at least 0, got {token}")
    return token


def _tokens(what: str, value: Any) -> tuple[int, ...]:
    if hasattr(value, "__index__"):
        value = (value,)
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError(f"{what} must be ids, got {value!r}")
    return tuple(_token(what, token) for token in value)


def _words(what: str, value: Any) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError(f"{what} must be lists of ids, got {value!r}")
    return tuple(_tokens(what, word) for word in value)


_CONVERSIONS: Mapping[str, Any] = {
    **dict.fromkeys(("decoder_start_token_id", "min_length", "num_beams"), _int),
    **dict.fromkeys(("num_return_sequences", "top_k", "no_repeat_ngram_size"), _int),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "forced_bos_token_id"), _optional_int),
    **dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens", "seed"), _optional_int),
    **dict.fromkeys(("length_penalty", "temperature", "top_p", "min_p"), _float),
    **dict.fromkeys(("repetition_penalty", *NEUTRAL_WHEN_SAMPLING), _float),
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits"), _bool),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id", "suppress_tokens"), _tokens),
    **{"begin_suppress_tokens": _tokens, "bad_words_ids": _words, "early_stopping": _stopping},
}
