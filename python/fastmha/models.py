"""Whole models from checkpoint directories: config.json, weights in safetensors, tokenizers.

Encoders are in encoder_model.py, models that translate (or write) in translation_model.py. A new
kind of model is a class with `from_directory` and one line in MODEL_TYPES.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmha._types import Float32Type, is_float32
from fastmha.config import read_json
from fastmha.encoder_model import EncoderModel
from fastmha.families import FAMILIES, SEQ2SEQ_FAMILIES
from fastmha.sentence import read_sentence_settings
from fastmha.translation_checkpoints import OWN_TYPE
from fastmha.translation_model import TranslationModel

__all__ = ["demo_model_path", "load"]

MODEL_TYPES: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    **dict.fromkeys((OWN_TYPE, *SEQ2SEQ_FAMILIES), TranslationModel.from_directory),
    **dict.fromkeys(FAMILIES, EncoderModel.from_directory),
}


def load(path: str | os.PathLike[str], dtype: Float32Type = "float32") -> Any:
    """Load a model from a checkpoint directory: config.json, ``*.safetensors`` and tokenizers.

    Parameters
    ----------
    path : path
        The directory. config.json's ``model_type`` says what it holds: one of the families of
        Hugging Face encoders ("bert", "roberta", ...), with the files of sentence-transformers
        where present; one of the families of encoder-decoders ("marian", "t5", ...); or
        "fastmha-transformer", the model that comes along.
    dtype : dtype, default "float32"
        How the weights are kept; float32 is the only one so far.

    Returns
    -------
    EncoderModel or TranslationModel

    Raises
    ------
    ModuleNotFoundError
        safetensors, tokenizers or sentencepiece is not installed; ``pip install "fastmha[text]"``
        brings them.
    FileNotFoundError
        The directory or one of its files does not exist; weights in pickles are not opened.
    TypeError
        `path` is no path.
    ValueError
        An unknown model type or dtype, a broken file, weights that do not fit the config, a field
        of the config that asks for what is not done here.

    Notes
    -----
    Weights are mapped from the files, and tables stay mapped: do not overwrite the files in place
    while the model is in use.

    Examples
    --------
    >>> import fastmha as fm
    >>> model = fm.load(fm.demo_model_path())
    >>> model.translate(["我想吃汉堡"], beam_size=4)
    ['I want to eat a hamburger']
    """
    if not is_float32(dtype):
        raise ValueError(f"load: dtype must be 'float32', got {dtype!r}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load: path must be a str or a path, got {type(path).__name__}")
    directory = Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"load: {directory} is not a directory with a checkpoint")
    directory = directory.resolve()  # errors say where "." is
    if (directory / "modules.json").is_file():  # the encoder may be in a directory of its own
        file = read_sentence_settings(directory).directory / "config.json"
    else:
        file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"load: {file} does not exist")
    config = read_json(file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ValueError(
            f"{file}: model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}"
        )
    return MODEL_TYPES[model_type](directory, config)


def demo_model_path() -> Path:
    """The directory of the small Chinese-to-English model that comes with the package.

    Examples
    --------
    >>> import fastmha as fm
    >>> (fm.demo_model_path() / "config.json").is_file()
    True
    """
    return Path(__file__).resolve().parent / "data" / "zh_en"
