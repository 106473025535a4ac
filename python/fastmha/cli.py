"""The entry point of the command ``fastmha``; the commands themselves are in commands.py."""

import sys


def main() -> None:
    """Run the command line, or say which extra brings it."""
    try:
        from fastmha.commands import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit(
            f"fastmha: the command line needs the package {error.name!r}: "
            'pip install "fastmha[cli]"'
        )
    app(prog_name="fastmha")


if __name__ == "__main__":
    main()
