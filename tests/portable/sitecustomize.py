"""Loads `uploader.portable` as on a system without what only some systems have.

`make test-portable` puts this folder on PYTHONPATH, so every process of the tests does it. Only
while that module is loaded are the modules and names hidden: the standard library keeps them.
Locks are the one thing that has no portable way: LockFileEx of Windows is played by flock.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HIDDEN_MODULES = ("fcntl", "resource")
HIDDEN_NAMES = {
    os: "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_PATH RWF_NOWAIT fchmod geteuid killpg "
    "preadv readv register_at_fork setsid",
    signal: "SIGCHLD SIGHUP",
}


class _Hiding:
    """A finder for one module; its loader is the usual one, with names hidden meanwhile."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "uploader.portable":
            return None
        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _execute(execute, module)  # type: ignore[method-assign]
        return spec


def _execute(execute: object, module: ModuleType) -> None:
    import fcntl

    modules = {name: sys.modules.get(name) for name in HIDDEN_MODULES}
    hidden = [(of, name, getattr(of, name)) for of, names in HIDDEN_NAMES.items()
              for name in names.split() if hasattr(of, name)]  # fmt: skip
    for of, name, _ in hidden:
        delattr(of, name)
    sys.modules.update(dict.fromkeys(HIDDEN_MODULES))  # type: ignore[arg-type]
    try:
        execute(module)  # type: ignore[operator]
    finally:
        for of, name, value in hidden:
            setattr(of, name, value)
        for name, found in modules.items():
            sys.modules.pop(name)
            if found is not None:
                sys.modules[name] = found

    def lock_in_windows(descriptor: int, *, shared: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    module._lock_in_windows = lock_in_windows  # type: ignore[attr-defined]


sys.meta_path.insert(0, _Hiding())
