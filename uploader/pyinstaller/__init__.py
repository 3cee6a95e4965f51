"""Tells PyInstaller what a bundle needs, so that no flag names it (entry point `pyinstaller40`)."""


def get_hook_dirs() -> list[str]:
    """Return the folder of the hooks."""
    return list(__path__)
