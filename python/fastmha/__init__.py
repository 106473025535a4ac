"""Multi-head attention and whole Transformers on CPUs: NumPy in, NumPy out.

functional   attention and row-wise operations as functions of arrays
cache        keys and values that grow while a decoder generates
nn           blocks and models, with torch's names and weights
decoding     searches: greedy, beams, samples
models       checkpoints from disk: load, encode, translate, generate
runtime      threads, instruction sets, facts of this build

Importing fastmha needs NumPy alone. Reading checkpoints needs the extra ``fastmha[text]``, the
command line ``fastmha[cli]``.
"""

from fastmha import _openmp as _openmp  # first: it loads the core
from fastmha._core import __version__
from fastmha.cache import KVCache
from fastmha.decoding import GenerationSettings
from fastmha.encoder_model import EncoderModel
from fastmha.functional import (
    attention_with_kvcache,
    gelu,
    layer_norm,
    relu,
    rms_norm,
    scaled_dot_product_attention,
    silu,
    softmax,
    varlen_attention,
)
from fastmha.models import demo_model_path, load
from fastmha.nn import (
    Decoder,
    DecoderBlock,
    DecoderBlockCache,
    DecoderCache,
    Embedding,
    Encoder,
    EncoderBlock,
    FeedForward,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    RMSNorm,
    Transformer,
)
from fastmha.runtime import (
    available_isas,
    get_cmake_dir,
    get_include,
    get_num_threads,
    info,
    isa,
    release_memory,
    set_num_threads,
)
from fastmha.translation_model import TranslationModel, UnknownCharacterWarning
from fastmha.translation_results import Translation

__all__ = [
    "Decoder",
    "DecoderBlock",
    "DecoderBlockCache",
    "DecoderCache",
    "Embedding",
    "Encoder",
    "EncoderBlock",
    "EncoderModel",
    "FeedForward",
    "GenerationSettings",
    "KVCache",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "Transformer",
    "Translation",
    "TranslationModel",
    "UnknownCharacterWarning",
    "__version__",
    "attention_with_kvcache",
    "available_isas",
    "demo_model_path",
    "gelu",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "info",
    "isa",
    "layer_norm",
    "load",
    "release_memory",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "set_num_threads",
    "silu",
    "softmax",
    "varlen_attention",
]
