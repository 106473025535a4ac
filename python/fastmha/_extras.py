"""Packages beyond NumPy: imported where they are used, with an error that names the extra to
install."""

import importlib
from types import ModuleType


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of fastmha brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is there, something it needs itself is not
        raise ModuleNotFoundError(
            f'{purpose} needs the package {package!r}: pip install "fastmha[{extra}]"',
            name=error.name,
        ) from error
