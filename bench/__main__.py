"""``python -m bench``: fastmha beside NumPy, PyTorch, ONNX Runtime and OpenVINO."""

import sys

from bench.command import main

sys.exit(main())
