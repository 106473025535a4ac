"""Small sentencepiece models, trained on made-up lines, and tokenizer files made of them as the
checkpoints of each family have them."""

import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
from fastmha.translation_texts import M2M100
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SYLLABLES = ("ka", "lo", "mi", "ne", "tu", "ra", "shi", "po", "de", "fru", "gan", "vo", "é", "ü")
SIZE = 150  # pieces
# what transformers calls the tokenizers, and the files of a checkpoint without tokenizer.json
KINDS = {
    "bart": "BartTokenizer",
    "marian": "MarianTokenizer",
    "m2m_100": "M2M100Tokenizer",
    "mbart": "MBartTokenizer",
    "mbart50": "MBart50Tokenizer",
    "nllb": "NllbTokenizer",
    "t5": "T5Tokenizer",
}


def made_up_lines(count, seed=0):
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 5))) for _ in range(200)]
    return [
        " ".join(rng.choice(words, rng.integers(2, 10))) + str(rng.choice([".", "!", " , x", ""]))
        for _ in range(count)
    ]


def train(directory, name, *, seed=0, **options):
    """Train directory/name.model; its path."""
    text = Path(directory, f"{name}.txt")
    text.write_text("\n".join(made_up_lines(400, seed)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        **{"input": str(text), "model_prefix": str(Path(directory, name)), "vocab_size": SIZE},
        **{"num_threads": 1, "minloglevel": 2, **options},
    )
    return Path(directory, f"{name}.model")


class Models:
    """Trained once for all tests."""

    def __init__(self, directory):
        self.source = train(directory, "source")
        self.target = train(directory, "target", seed=1)
        self.bpe = train(directory, "bpe", model_type="bpe")
        self.t5 = train(directory, "t5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def pieces_of(model):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.id_to_piece(n) for n in range(processor.get_piece_size())][3:]


def write_tokenizer(directory, family, trained, **settings):
    """The files of a tokenizer as the checkpoints of the family have them, and its size."""
    directory.mkdir(exist_ok=True)
    config = {"tokenizer_class": KINDS[family], **settings}
    if family == "marian":
        # one vocabulary for both languages, in an order of its own
        pieces = sorted({*pieces_of(trained.source), *pieces_of(trained.target)})
        tokens = ["</s>", "<unk>", *pieces, ">>fra<<", ">>deu<<", "<pad>"]
        if settings.get("separate_vocabs"):
            tokens = ["</s>", "<unk>", *pieces_of(trained.source), "<pad>"]
            others = ["</s>", "<unk>", *pieces_of(trained.target)[::-1], "<pad>"]
            (directory / "target_vocab.json").write_text(numbered(others))
        (directory / "vocab.json").write_text(numbered(tokens))
        shutil.copy(trained.source, directory / "source.spm")
        shutil.copy(trained.target, directory / "target.spm")
        size = len(tokens)
    elif family == "bart":
        size = byte_level(directory / "tokenizer.json")
    elif family == "m2m_100":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces_of(trained.bpe)[:-5]]
        (directory / "vocab.json").write_text(numbered(tokens))
        shutil.copy(trained.bpe, directory / "sentencepiece.bpe.model")
        config["extra_special_tokens"] = [f"__{code}__" for code in M2M100]
        size = len(tokens) + 100
    elif family == "t5":
        config = {"extra_ids": 10, **config}
        shutil.copy(trained.t5, directory / "spiece.model")
        size = SIZE + 10
    else:
        model = trained.bpe if family == "nllb" else trained.source
        shutil.copy(model, directory / "sentencepiece.bpe.model")
        size = SIZE + 1 + {"mbart": 26, "mbart50": 53, "nllb": 4}[family]
        if family == "nllb":
            added = ["eng_Latn", "fra_Latn", "zho_Hans", "<mask>"]
            config["extra_special_tokens"] = added[:3]
            config["added_tokens_decoder"] = {
                str(SIZE + 1 + n): {"content": token, "special": True, "normalized": False}
                for n, token in enumerate(added)
            }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return size


def byte_level(file):
    """A byte-level BPE as BART has it; its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(made_up_lines(200), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(file))
    return tokenizer.get_vocab_size()


def numbered(tokens):
    return json.dumps({token: n for n, token in enumerate(tokens)}, ensure_ascii=False)
