"""``python -m fastmha`` is the command ``fastmha``."""

from fastmha.cli import main

main()
