"""The command `vodup`. Nothing heavy is loaded before a command needs it."""

from __future__ import annotations

# Built in: `signal` itself takes several milliseconds to load, without a handler for Ctrl-C.
import _signal as signal  # type: ignore[import-not-found]
import gc
import os

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    _end_at_signals()
    # Imports make many objects and no garbage: looking for it takes a fifth of the start.
    gc.disable()
    try:
        from uploader.cli.printing import Outputs

        is_completing = "_VODUP_COMPLETE" in os.environ  # then click writes bytes, for a shell
        outputs = None if is_completing else Outputs()
        from uploader.cli.app import run

        try:
            run()
        except SystemExit as end:
            code = int(end.code or 0)
            raise SystemExit(outputs.close(code) if outputs else code) from None
    except (MemoryError, ImportError, OSError, RuntimeError) as error:  # no thread, no module
        os.write(2, f"vodup: cannot start: {str(error) or 'not enough memory'}.\n".encode())
        raise SystemExit(5) from None


def _end_at_signals() -> None:
    """End at Ctrl-C and SIGTERM at once, except where a command has other handlers (`run.py`).

    Where it has none there is nothing to clean up, and an exception in the middle of an import, or
    while the interpreter ends, would print a traceback.
    """

    def end(number: int, _: object) -> None:
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
