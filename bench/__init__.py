"""Side-by-side benchmarks; ``python -m bench`` runs them, README.md says how to read them."""

import os

# Read when NumPy loads OpenBLAS. Its idle threads spin for some 100 ms by default, and whoever
# comes next in turn shares the cores with them: twice the time in the median. After 2^20 cycles,
# 0.4 ms, they sleep: long enough to be awake for NumPy's own next call.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
