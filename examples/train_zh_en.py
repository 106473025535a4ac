"""Train the Chinese-to-English demo model of fastmha from nothing.

    python examples/train_zh_en.py --out my_model            # the full run: minutes on 2 cores
    python examples/train_zh_en.py --out my_model --short    # seconds; shows the way, learns little

What it does, in this order: draws sentence pairs from a grammar of everyday sentences
(zh_en/grammar.py), sets aside a held-out test set that no training set can contain (zh_en/data.py),
builds a character tokeniser for Chinese and a word tokeniser for English, trains a small
Transformer with PyTorch (zh_en/model.py), writes

    config.json  model.safetensors  source_tokenizer.json  target_tokenizer.json

and translates the whole held-out set greedily to count exact matches. `fastmha.load("my_model")`
reads the directory. Needs PyTorch and `pip install "fastmha[text]"`.

The data depend on the seed alone. The weights depend on the seed, the torch version and the
machine's arithmetic. The held-out set is always the same, whatever the seed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer
from torch import Tensor, nn
from zh_en import data, grammar
from zh_en.model import Config, Transformer, greedy, pad


@dataclass(frozen=True)
class Plan:
    """Everything that decides a training run."""

    seed: int = 0
    steps: int = 5000
    batch_tokens: int = 3000  # source and target tokens in a batch, about 150 sentences
    learning_rate: float = 1.5e-3
    warmup: int = 400
    dropout: float = 0.0
    training_pairs: int = 400_000
    held_out_pairs: int = data.HELD_OUT_PAIRS
    d_model: int = 128
    d_ff: int = 512
    layers: int = 2


SHORT = Plan(
    steps=80,
    batch_tokens=1000,
    learning_rate=4e-3,
    warmup=10,
    training_pairs=8000,
    held_out_pairs=200,
    d_model=64,
    d_ff=128,
    layers=1,
)

Example = tuple[list[int], list[int]]  # source ids with </s>, target ids with <s> and </s>


def encode(pairs: Sequence[data.Pair], source: Tokenizer, target: Tokenizer) -> list[Example]:
    sources = source.encode_batch_fast([zh for zh, _ in pairs])
    targets = target.encode_batch_fast([en for _, en in pairs])
    return [(a.ids, b.ids) for a, b in zip(sources, targets, strict=True)]


def batches(examples: Sequence[Example], batch_tokens: int, rng: Random) -> Iterator[list[Example]]:
    """Endless batches of sentences of similar length, so that little padding is computed."""
    while True:
        # A little noise on the length changes the partners of a sentence from epoch to epoch.
        order = sorted(examples, key=lambda pair: len(pair[0]) + len(pair[1]) + 2 * rng.random())
        epoch: list[list[Example]] = []
        batch: list[Example] = []
        size = 0
        for example in order:
            batch.append(example)
            size += len(example[0]) + len(example[1])
            if size >= batch_tokens:
                epoch.append(batch)
                batch, size = [], 0
        rng.shuffle(epoch)
        yield from epoch


def learning_rate(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model: Transformer, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of each next target token."""
    source, target = pad([pair[0] for pair in batch]), pad([pair[1] for pair in batch])
    logits = model(source, target[:, :-1])
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=data.PAD
    )


def train(
    model: Transformer, examples: Sequence[Example], plan: Plan, report_every: int = 100
) -> list[float]:
    """Train in place for a fixed number of steps; returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    stream = batches(examples, plan.batch_tokens, Random(plan.seed))
    losses: list[float] = []
    began = time.perf_counter()
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, next(stream))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % report_every == 0 or step + 1 == plan.steps:
            recent = losses[-report_every:]
            minutes = (time.perf_counter() - began) / 60
            mean = sum(recent) / len(recent)
            print(
                f"step {step + 1:5d}/{plan.steps}  loss {mean:.4f}  {minutes:.1f} min", flush=True
            )
    return losses


@dataclass(frozen=True)
class Score:
    exact: int
    total: int
    margin: (
        float  # the smallest distance between best and second-best logit over all generated tokens
    )
    mistakes: list[tuple[str, str, str]]  # source, expected, translated

    @property
    def rate(self) -> float:
        return self.exact / self.total


def evaluate(
    model: Transformer, pairs: Sequence[data.Pair], source: Tokenizer, target: Tokenizer
) -> Score:
    """Exact matches of greedy translation."""
    decoded = greedy(
        model, [encoding.ids for encoding in source.encode_batch([zh for zh, _ in pairs])]
    )
    translations = target.decode_batch(decoded.tokens)
    mistakes = [
        (zh, en, got) for (zh, en), got in zip(pairs, translations, strict=True) if en != got
    ]
    return Score(len(pairs) - len(mistakes), len(pairs), min(decoded.margins), mistakes)


def save(
    out: Path, model: Transformer, source: Tokenizer, target: Tokenizer, notes: dict[str, object]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (out / "model.safetensors").write_bytes(to_safetensors(state))
    fields = {**model.config.to_json(), **notes}
    (out / "config.json").write_text(
        json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    source.save(str(out / "source_tokenizer.json"))
    target.save(str(out / "target_tokenizer.json"))


def run(plan: Plan, out: Path) -> tuple[list[float], Score]:
    """The whole way: data, tokenisers, training, files, evaluation."""
    began = time.perf_counter()
    pairs = data.training_pairs(plan.training_pairs, plan.seed)
    held_out = data.held_out_pairs(plan.held_out_pairs)
    source = data.source_tokenizer(zh for zh, _ in pairs)
    target = data.target_tokenizer(en for _, en in pairs)
    examples = encode(pairs, source, target)
    print(
        f"{len(pairs)} training pairs, {len(held_out)} held out, "
        f"drawn in {time.perf_counter() - began:.0f} s"
    )

    torch.manual_seed(plan.seed)
    config = Config(
        source.get_vocab_size(),
        target.get_vocab_size(),
        d_model=plan.d_model,
        d_ff=plan.d_ff,
        num_encoder_layers=plan.layers,
        num_decoder_layers=plan.layers,
    )
    model = Transformer(config, plan.dropout)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{config.src_vocab_size} characters, {config.tgt_vocab_size} words, "
        f"{parameters} parameters"
    )

    losses = train(model, examples, plan)
    notes: dict[str, object] = {
        "description": "Chinese-to-English demo: everyday sentences, grammar in examples/zh_en",
        "seed": plan.seed,
        "steps": plan.steps,
        "trained_with": f"torch {torch.__version__}",
        "held_out_pairs": len(held_out),
        "held_out_sha256": data.fingerprint(held_out),
    }
    save(out, model, source, target, notes)
    score = evaluate(model, held_out, source, target)
    print(
        f"held out: {score.exact} of {score.total} exactly right ({score.rate:.2%}), "
        f"smallest margin {score.margin:.4f}"
    )
    for zh, en, got in score.mistakes[:20]:
        print(f"  {zh}\n    expected   {en}\n    translated {got}")
    sources = [encoding.ids for encoding in source.encode_batch(list(grammar.DEMO_SENTENCES))]
    for zh, ids in zip(grammar.DEMO_SENTENCES, greedy(model, sources).tokens, strict=True):
        print(f"  {zh} -> {target.decode(ids)}")
    print(f"{out}: done in {(time.perf_counter() - began) / 60:.1f} min")
    return losses, score


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory to write the checkpoint to"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of data, weights and batches (default 0)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default 5000, with --short 80)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument(
        "--short", action="store_true", help="a tiny model for a few seconds: a test of the script"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    plan = replace(SHORT if arguments.short else Plan(), seed=arguments.seed)
    if arguments.steps is not None:
        plan = replace(plan, steps=arguments.steps)
    run(plan, arguments.out)


if __name__ == "__main__":
    main()
