"""transformers' generate: PyTorch with its fused attention and a cache, in inference mode."""

from functools import lru_cache
from typing import Any

import torch
import transformers

from bench import problems
from bench.marian import Marian
from bench.rivals import Call, Calls
from bench.rivals import torch as pytorch

NAME = "transformers"
# tied to model.shared.weight, or computed from the sizes
DERIVED = ("embed_tokens.weight", "lm_head.weight", "embed_positions.weight")


def version() -> str:
    return transformers.__version__


def prepare(threads: int) -> None:
    pytorch.prepare(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@lru_cache(maxsize=1)
def model_of(network: Marian) -> Any:
    """MarianMTModel with the network's weights, all of them."""
    model = transformers.MarianMTModel(transformers.MarianConfig(**network.config)).eval()
    state = {name: torch.from_numpy(weight) for name, weight in network.weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = [name for name in missing if not name.endswith(DERIVED)]
    if absent or unexpected:
        raise ValueError(f"MarianMTModel lacks {absent} and does not know {unexpected}")
    return model


def calls(problem: problems.Problem) -> Calls:
    if not isinstance(problem, problems.Generation):
        raise NotImplementedError
    model, p = model_of(problem.network), problem
    sources = torch.from_numpy(p.sources)
    options = {
        "attention_mask": torch.ones_like(sources),  # else it looks for padding
        "num_beams": p.beam_size,
        "max_new_tokens": p.count,
        "do_sample": False,
    }

    def without_start(tokens: Any) -> Any:
        return tokens[:, 1:]

    return {"": Call(lambda: model.generate(sources, **options), without_start)}
