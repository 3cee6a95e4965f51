"""The command `vodup`. Nothing heavy is loaded before a command needs it."""

from __future__ import annotations

import gc
import os

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    # Imports make many objects and no garbage: looking for it takes a fifth of the start.
    gc.disable()
    from uploader.cli.printing import Outputs

    is_completing = "_VODUP_COMPLETE" in os.environ  # then click writes bytes, for a shell
    outputs = None if is_completing else Outputs()
    from uploader.cli.app import run

    try:
        run()
    except SystemExit as end:
        code = int(end.code or 0)
        raise SystemExit(outputs.close(code) if outputs else code) from None
