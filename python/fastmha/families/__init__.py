"""Families of Hugging Face checkpoints; docs/families.md says how to add one.

networks    what encoders are built from
seq2seq     what encoder-decoders are built from
distances   biases by distance
settings    which fields of config.json are understood
family      config.json and *.safetensors -> a network with its weights
bert ...    one family of encoders each
bart ...    one family of encoder-decoders each
"""

from fastmha.families.bart import BART, MBART
from fastmha.families.bert import BERT
from fastmha.families.distilbert import DISTILBERT
from fastmha.families.family import Family
from fastmha.families.m2m_100 import M2M_100
from fastmha.families.marian import MARIAN
from fastmha.families.modernbert import MODERNBERT
from fastmha.families.mpnet import MPNET
from fastmha.families.networks import Network
from fastmha.families.roberta import ROBERTA
from fastmha.families.t5 import MT5, T5
from fastmha.nn.encoder_decoder import EncoderDecoder

__all__ = ["FAMILIES", "SEQ2SEQ_FAMILIES", "EncoderDecoder", "Family", "Network"]

# config.json's model_type -> the family of encoders
FAMILIES: dict[str, Family[Network]] = {
    "bert": BERT,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    "mpnet": MPNET,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}

# and of encoders with a decoder
SEQ2SEQ_FAMILIES: dict[str, Family[EncoderDecoder]] = {
    "bart": BART,
    "m2m_100": M2M_100,
    "marian": MARIAN,
    "mbart": MBART,
    "mt5": MT5,
    "t5": T5,
}
