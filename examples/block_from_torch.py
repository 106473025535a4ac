"""An encoder block with the weights and settings of a torch.nn module.

python examples/block_from_torch.py
"""

import fastmha as fm
import numpy as np
import torch


def main():
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(
        d_model=512, nhead=8, dim_feedforward=2048, activation="gelu", batch_first=True
    ).eval()
    ours = fm.EncoderBlock.from_torch(theirs)
    print(ours)

    # Three sentences of 5, 3 and 9 tokens end to end: no padding, none of its work.
    lengths = [5, 3, 9]
    bounds = np.cumsum([0, *lengths])
    x = np.random.default_rng(0).standard_normal((bounds[-1], 512), dtype=np.float32)
    out = ours(x, cu_seqlens=bounds)

    for n, length in enumerate(lengths):
        rows = slice(bounds[n], bounds[n + 1])
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x[rows])[None])[0].numpy()
        difference = np.abs(out[rows] - expected).max()
        print(f"sentence {n}, {length} tokens: largest difference to torch {difference:.1e}")


if __name__ == "__main__":
    main()
