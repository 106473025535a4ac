"""Attention on plain NumPy arrays, on the worked example: batch 1024, 5 tokens, 8 heads of 64.

python examples/attention_numpy.py
"""

import time

import fastmha as fm
import numpy as np

BATCH, HEADS, TOKENS, HEAD_DIM = 1024, 8, 5, 64


def plain(query, key, value):
    """The formula, as one would write it."""
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(HEAD_DIM)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ value


def best_of(function, *args, repeats=5):
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*args)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main():
    rng = np.random.default_rng(0)
    shape = (3, BATCH, HEADS, TOKENS, HEAD_DIM)
    query, key, value = rng.standard_normal(shape, dtype=np.float32)

    ours = fm.scaled_dot_product_attention(query, key, value)
    difference = np.abs(ours - plain(query, key, value)).max()
    print(f"{query.shape} -> {ours.shape}, largest difference to the formula {difference:.1e}")
    print(f"the formula in NumPy  {1e3 * best_of(plain, query, key, value):8.2f} ms")
    fused = best_of(fm.scaled_dot_product_attention, query, key, value)
    print(f"fastmha               {1e3 * fused:8.2f} ms")

    # What is masked is never read: sentences of different lengths need no cleaned-up padding.
    lengths = rng.integers(1, TOKENS + 1, BATCH)
    padded = value.copy()
    for sentence, length in zip(padded, lengths, strict=True):
        sentence[:, length:] = np.nan
    masked = fm.scaled_dot_product_attention(query, key, padded, key_lengths=lengths)
    print(f"with NaN behind every sentence: {np.isnan(masked).sum()} NaN in the result")


if __name__ == "__main__":
    main()
