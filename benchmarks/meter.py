"""Run one command and write down what it cost: `meter.py RESULT TIMEOUT-S COMMAND…`.

Started with -I -S and importing next to nothing, for a process inherits the peak RSS of
the one it is forked from: measured from a large parent, small commands would look large.
"""

import os
import signal
import sys
import time


def _run(argv: list[str]) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()  # so that the whole group can be ended
        try:
            os.execvp(argv[0], argv)  # noqa: S606 (there is no shell on purpose)
        finally:
            os._exit(127)
    return child


def main() -> None:
    """Run it, end it after the time-out, and write one line of JSON."""
    result, timeout_s, argv = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    began = time.monotonic()
    child = _run(argv)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    _, status, used = os.wait4(child, 0)
    seconds = time.monotonic() - began
    with open(result, "w") as file:
        file.write(
            f'{{"began_s": {began:.6f}, "wall_s": {seconds:.6f}, "user_s": {used.ru_utime:.6f}, '
            f'"system_s": {used.ru_stime:.6f}, "peak_kib": {used.ru_maxrss}, '
            f'"voluntary": {used.ru_nvcsw}, "involuntary": {used.ru_nivcsw}, '
            f'"exit_code": {os.waitstatus_to_exitcode(status)}}}'
        )


main()
