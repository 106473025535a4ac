"""What bounds the workloads that miss a target, said beside each miss: by profile or by a count.

Parts are percent of the time, found by leaving one thing out of the kernel at a time and timing it
in turns with the whole one on the same shape (bench/README.md, "Where the time goes"). "At the
peak" is what the multiply-adds alone would take; what the parts leave is the start and end of
register tiles. What nobody has profiled yet begins with "probably".
"""

# The beginning of a workload's name, and what bounds those that begin so; the first that fits. Rows
# are looked at anew when a kernel changes: a cause that no longer holds goes.
BOUNDS = (
    (
        "attention 1024 x 8 x 5",
        "moving the 42 MB in this order 60 parts, scores 10, softmax 5, transposes 3, tasks 4; "
        "the limit is a sequential copy",
    ),
    ("attention 128 x 8 x 5", "moving 52, scores 17, transposes and softmax 8, tasks 7 parts"),
    (
        "attention 1 x 8 x 5 x",
        "the call: of 1.5 us Python, NumPy and the binding are 0.75, checks and plan 0.15, "
        "the kernel 0.6",
    ),
    (
        "attention 1 x 2 x 8192 x 64, window 256",
        "flex_attention's error is half of that of PyTorch's other ways, which ours is like",
    ),
    (
        "attention 32 x 12 x 128 x 64, causal",
        "57 parts at the peak, diagonal 7 (1.12 pairs computed for one), Q and output 9, memory 9, "
        "exp 4, ALiBi 2; in a cache 1.35x of plain",
    ),
    (
        "attention 32 x 12 x 128 x 64, bool mask",
        "72 parts at the peak; reading and transposing the mask 10, exp 4, Q and output 6",
    ),
    (
        "attention 32 x 12 x 128",
        "79 parts at the peak; Q and output 7, exp 5, memory 4",
    ),
    (
        "attention 1 x 8 x 128",
        "81 parts at the peak; Q and output transposed 6, exp 5, fetching 2, fork and tasks 2",
    ),
    (
        "attention 1 x 8 x 512 x 64, causal",
        "80 parts at the peak; exp 5, diagonal 3 (1.03 pairs computed for one), Q and output 3",
    ),
    ("attention 1 x 8 x 512", "87 parts at the peak; exp 6, Q and output 2"),
    (
        "attention 1 x 8 x 2048 x 128, causal",
        "85 parts at the peak; exp 3, Q and output 4, diagonal 1",
    ),
    ("attention 1 x 8 x 2048 x 128", "89 parts at the peak; exp 3, Q and output 2"),
    ("attention 1 x 8 x 2048 x 64, bool mask", "probably reading the mask, a byte for each pair"),
    (
        "attention 1 x 8 x 2048 x 64, causal",
        "83 parts at the peak; exp 5, Q and output 4, diagonal 1",
    ),
    ("attention 1 x 8 x 2048 x 64, ", "probably what bounds the plain call"),
    ("attention 1 x 8 x 2048 x 64", "84 to 87 parts at the peak; exp 6, Q and output 3"),
    ("attention 1 x", "probably exp, and queries and output transposed"),
    ("ragged attention", "79 parts at the peak; exp 4, Q and output 3, half-filled panels 1"),
    (
        "decode 1 x 32/8",
        "a plain read of the same pieces takes 79 to 92 parts, exp 3; four heads a row",
    ),
    ("decode", "memory: a plain read of the same pieces takes 96 parts, exp none"),
    ("linear 1 x", "memory"),
    ("linear 2 x", "memory"),
    ("linear 4 x 4096", "memory: 4 rows take 1.06 times as long as 1"),
    ("linear 4 x 768", "4 rows take 1.07 to 1.11 times as long as 1: 200 GB/s of L3, 220 with one"),
    (
        "layer_norm 4096 x 768",
        "arithmetic from L1 141 us, a copy from L3 136, half of it hidden; leaving out the "
        "variance saves 16 parts",
    ),
    (
        "layer_norm",
        "memory: a copy by the same code takes 79 to 96 parts; the variance pass 1 to 9",
    ),
    ("add + norm 4096 x 768", "memory past L3 (38 MB): without the variance pass 93 to 95 parts"),
    ("add + norm", "memory: without the variance pass 96 parts; as many bytes a second as a copy"),
    (
        "softmax 4096 x 768",
        "arithmetic from L1 243 of 265 us, exp 40 parts; memory is hidden behind it",
    ),
    ("softmax", "memory: without exp the same time; arithmetic from L1 45 parts"),
    ("gelu 4096 x 768", "the arithmetic from L1 is 90 parts: erf's polynomial and exponential"),
    ("gelu", "memory: a copy by the same code takes as long; arithmetic from L1 68 parts"),
    (
        "EncoderBlock 512/8/2048, 1 x 5",
        "maps 94 parts, at 160 to 175 GB/s of L3; attention 2, norms 2, 7 barriers 3",
    ),
    (
        "DecoderBlock 512/8/2048, 1 x 5",
        "16.8 MB of weights at 140 GB/s of L3, 12 barriers of 0.3 us",
    ),
    (
        "EncoderBlock 768/12/3072, 1 x 5",
        "maps 98 parts, at 95 to 145 GB/s: 28 MB of weights are most of L3",
    ),
    ("DecoderBlock 768/12/3072, 1 x 5", "38 MB of weights, more than L3, at 83 GB/s"),
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
    (
        "generate 1 x 20 -> 32, greedy",
        "memory, for CTranslate2 too: 3 times its speed is beyond the read limit",
    ),
    (
        "generate 1 x 20 -> 32, beam 4",
        "memory (82% of read where it was slower); search 6 parts, encoder 3",
    ),
    (
        "generate 16 x 20 -> 32, beam 4",
        "maps 82 parts, at 85% of the peak as their weights come from memory; attention 7, "
        "encoder 7, search 4",
    ),
    ("EncoderBlock", "1 x 128: maps 94 parts, at 90% of the peak, attention 4, norms 1"),
    ("DecoderBlock", "probably attention and norms between the maps, which reach 90 to 95%"),
)


def bound(name: str) -> str:
    """What bounds a workload, "" where nobody has looked."""
    return next((cause for start, cause in BOUNDS if name.startswith(start)), "")
