"""vodup: the package `uploader`, under the name that it is installed by.

The wheel installs this folder as `vodup`. `vodup` is `uploader`, and `vodup.errors` is
`uploader.errors`: the same module objects under a second name. Other projects have an `uploader`
too; if Python finds one of them, importing `vodup` says so.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from uploader import *  # noqa: F403
    from uploader import __version__ as __version__
else:
    import uploader  # noqa: F401 - looked up in sys.modules


class _Alias:
    """Finds `vodup.x` as `uploader.x`. A finder and a loader, as `importlib` describes them."""

    def __init__(self) -> None:
        self._own_specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a spec for a submodule; `python -m vodup` runs `__main__` under its own name."""
        if not name.startswith("vodup.") or name == "vodup.__main__":
            return None
        return ModuleSpec(name, self)  # type: ignore[arg-type]  # it is a loader by its methods

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module of `uploader`."""
        module = import_module(f"uploader{spec.name.removeprefix('vodup')}")
        self._own_specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back; it has run already."""
        assert module.__spec__ is not None  # noqa: S101 - the import system has just set it
        module.__spec__ = self._own_specs.pop(module.__spec__.name)


def _take_over() -> None:
    found = sys.modules["uploader"]
    if "UploadGrant" not in getattr(found, "__all__", ()):
        place = getattr(found, "__file__", None) or list(getattr(found, "__path__", ()))
        raise ImportError(
            f"vodup needs its package `uploader`, but Python finds another one: {place}. Rename "
            "that file, uninstall the other package of this name, or use an environment of its own "
            "for vodup."
        )
    sys.meta_path.insert(0, _Alias())
    sys.modules["vodup"] = found


if __name__ == "vodup":  # and not where it is read as a part of `uploader`
    _take_over()
