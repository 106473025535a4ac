"""Families of Hugging Face encoder checkpoints; docs/families.md says how to add one.

networks   what they are built from
settings   which fields of config.json are understood
family     config.json and *.safetensors -> a network with its weights
bert ...   one family each
"""

from fastmha.families.bert import BERT
from fastmha.families.distilbert import DISTILBERT
from fastmha.families.family import Family
from fastmha.families.modernbert import MODERNBERT
from fastmha.families.mpnet import MPNET
from fastmha.families.networks import Network
from fastmha.families.roberta import ROBERTA

__all__ = ["FAMILIES", "Family", "Network"]

# config.json's model_type -> the family
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    "mpnet": MPNET,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}
