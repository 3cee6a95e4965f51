"""The command `vodup`. Nothing heavy is loaded before a command needs it."""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    # Imports make many objects and no garbage: looking for it takes a fifth of the start.
    gc.set_threshold(50_000, 20, 20)
    from uploader.cli.printing import Outputs

    outputs = Outputs()
    from uploader.cli.app import run

    try:
        run()
    except SystemExit as end:
        raise SystemExit(outputs.close(int(end.code or 0))) from None
