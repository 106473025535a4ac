"""What bounds the workloads that miss a target, said beside each miss: by profile or by a count.

What nobody has profiled yet begins with "probably".
"""

# The beginning of a workload's name, and what bounds those that begin so; the first that fits. Rows
# are looked at anew when a kernel changes: a cause that no longer holds goes.
BOUNDS = (
    (
        "attention 1024 x 8 x 5",
        "probably few queries: transposes and exp, not memory; 42 MB lie half in L3",
    ),
    (
        "attention 1 x 2 x 8192 x 64, window 256",
        "flex_attention's error is half of that of PyTorch's other ways, which ours is like",
    ),
    ("attention 32 x 12 x 128 x 64, causal", "the diagonal: 56% of the tiles for 50% of the pairs"),
    (
        "attention 32 x 12 x 128",
        "probably exp and mask on the ports of the multiply-adds; K, V from memory",
    ),
    ("attention 1 x 8 x 128", "probably transposes of Q and the output once for few keys; exp"),
    (
        "attention 1 x 8 x 512 x 64, causal",
        "probably the diagonal (6% of the tiles), exp; 8 heads, 2 threads",
    ),
    ("attention 1 x 8 x 2048 x 64, bool mask", "probably reading the mask, a byte for each pair"),
    ("attention 128 x 8 x 5", "probably few queries: transposes and exp"),
    ("attention 1 x", "exp and maximum, on the ports of the multiply-adds: 11% at head_dim 64"),
    ("decode", "probably more than memory: the share is of a plain read in turns"),
    ("linear 1 x", "memory"),
    ("linear 2 x", "memory"),
    ("linear 4 x", "memory"),
    ("layer_norm", "three passes: arithmetic of 118 us from L1, a copy of 101 us"),
    ("add + norm", "probably two reads and two passes"),
    ("softmax", "exp"),
    ("gelu", "erf's polynomial"),
    (
        "EncoderBlock 512/8/2048, 1 x 5",
        "probably 12.6 MB of weights from L3 in 60 us; barriers, attention",
    ),
    (
        "DecoderBlock 512/8/2048, 1 x 5",
        "probably fork and join of each step, 1 us; three calls from Python",
    ),
    ("EncoderBlock 768/12/3072, 1 x 5", "probably 28 MB of weights: most of L3"),
    ("DecoderBlock 768/12/3072, 1 x 5", "probably 38 MB of weights: more than L3"),
    (
        "all-MiniLM-L6-v2, 1 text of 8",
        "products of 8 rows: 0.45 ms at 370 GFLOP/s, weights in a cache; reading 42 MB of weights",
    ),
    (
        "all-MiniLM-L6-v2, 1 text of 128",
        "products at 506 GFLOP/s, with gelu 478 (83% of the time); attention 393 (6%); between 10%",
    ),
    (
        "all-MiniLM-L6-v2",
        "products at 490 to 520 GFLOP/s (over 75% of the time); attention at 330 to 440",
    ),
    ("generate 1 x", "memory, for CTranslate2 too: 3 times its speed is beyond the read limit"),
    ("generate 16 x", "attention of each hypothesis over its own keys; the maps reach the peak"),
    ("EncoderBlock", "probably attention and norms between the maps, which reach 90 to 95%"),
    ("DecoderBlock", "probably attention and norms between the maps, which reach 90 to 95%"),
)


def bound(name: str) -> str:
    """What bounds a workload, "" where nobody has looked."""
    return next((cause for start, cause in BOUNDS if name.startswith(start)), "")
