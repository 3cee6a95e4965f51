"""The command `vodup`. Nothing heavy is loaded before a command needs it."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    from uploader.cli.app import run

    run()
