"""Blocks and models, composed of fused operations: each file stands on the ones before it.

layers           linear maps with packed weights, norms, embeddings
attention        multi-head attention
blocks           feed-forward, encoder and decoder blocks, stacks
encoder_decoder  what decodes: encoder, decoder, logits
transformer      the whole model of the paper
"""

from fastmha.nn.attention import MultiHeadAttention
from fastmha.nn.blocks import Decoder, DecoderBlock, Encoder, EncoderBlock, FeedForward
from fastmha.nn.decoder_cache import DecoderBlockCache, DecoderCache
from fastmha.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from fastmha.nn.module import Module
from fastmha.nn.transformer import Transformer

__all__ = [
    "Decoder",
    "DecoderBlock",
    "DecoderBlockCache",
    "DecoderCache",
    "Embedding",
    "Encoder",
    "EncoderBlock",
    "FeedForward",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "RMSNorm",
    "Transformer",
]
