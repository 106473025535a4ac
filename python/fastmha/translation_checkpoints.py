"""Encoder-decoders in directories: config.json and weights -> network, tokenizers, settings."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fastmha.config import config_from
from fastmha.decoding import GenerationSettings
from fastmha.families import SEQ2SEQ_FAMILIES
from fastmha.nn.encoder_decoder import EncoderDecoder
from fastmha.nn.module import UNSET
from fastmha.nn.transformer import Transformer
from fastmha.tensors import Tensors
from fastmha.translation_texts import TranslationTexts, read_pair, read_translation_texts
from fastmha.weights import read_safetensors

__all__ = ["OWN_TYPE", "TranslationConfig", "open_checkpoint"]

OWN_TYPE = "fastmha-transformer"
# What the network took from config.json, the network, texts <-> ids, how it generates.
Parts: TypeAlias = tuple[Any, EncoderDecoder, TranslationTexts, GenerationSettings]
# Special tokens that config.json may leave out, because transformers' classes have them.
FAIRSEQ_TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
T5_TOKENS = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
SPECIAL_TOKENS: Mapping[str, Mapping[str, int]] = {
    "bart": {**FAIRSEQ_TOKENS, "decoder_start_token_id": 2},
    "m2m_100": {**FAIRSEQ_TOKENS, "decoder_start_token_id": 2},
    "marian": {"decoder_start_token_id": 58100, "pad_token_id": 58100, "eos_token_id": 0},
    **{"mbart": FAIRSEQ_TOKENS, "mt5": T5_TOKENS, "t5": T5_TOKENS},
}
# Of these the last token that the length allows is the end token, when no file says otherwise.
FORCED_END = ("bart", "marian", "mbart")


@dataclass(frozen=True)
class TranslationConfig:
    """config.json of ``"model_type": "fastmha-transformer"``."""

    src_vocab_size: int
    tgt_vocab_size: int
    d_model: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    d_ff: int
    activation: str = "relu"
    norm_first: bool = False
    final_norm: bool = True
    norm_eps: float = 1e-5
    positions: str = "sinusoidal"
    scale_embedding: bool = True
    max_positions: int = 512
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int = 3

    def build(self) -> Transformer:
        """The model without its weights."""
        settings = dataclasses.asdict(self)
        del settings["unk_token_id"]  # the tokenizers' affair
        return Transformer(**settings, seed=UNSET)

    @property
    def generation(self) -> GenerationSettings:
        return GenerationSettings(
            decoder_start_token_id=self.bos_token_id,
            eos_token_id=(self.eos_token_id,),
            pad_token_id=self.pad_token_id,
        )


def open_checkpoint(path: Path, config: dict[str, Any]) -> Parts:
    """What a translation model is made of, from a directory whose config.json holds `config`."""
    model_type = config["model_type"]
    if model_type == OWN_TYPE:
        return _own_model(path, config)
    family = SEQ2SEQ_FAMILIES[model_type]
    tensors = Tensors(path)
    kept, network = family.build(config, path / "config.json", tensors)
    settings = GenerationSettings.from_checkpoint(path, config, _defaults(path, model_type))
    texts = read_translation_texts(path, config, network.source_vocab_size, network.vocab_size)
    family.load(network, tensors, path)
    return kept, network, texts, settings


def _own_model(path: Path, config: dict[str, Any]) -> Parts:
    settings = config_from(TranslationConfig, config, path / "config.json")
    try:
        transformer = settings.build()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
    texts = read_pair(
        path,
        settings.src_vocab_size,
        settings.tgt_vocab_size,
        end=settings.eos_token_id,
        unknown=settings.unk_token_id,
    )
    weights = read_safetensors(path)
    try:
        transformer.load_state_dict(weights)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error
    return settings, transformer, texts, settings.generation


def _defaults(path: Path, model_type: str) -> dict[str, int]:
    """What a checkpoint may leave unsaid."""
    defaults = dict(SPECIAL_TOKENS[model_type])
    if model_type in FORCED_END and not (path / "generation_config.json").is_file():
        defaults["forced_eos_token_id"] = defaults["eos_token_id"]
    return defaults
