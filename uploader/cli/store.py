"""The state store as the flags name it, and uploads in it as users name them."""

from __future__ import annotations

from uploader.cli.options import Store
from uploader.errors import ConfigurationError
from uploader.state import StateStore, UploadRecord, open_state

__all__ = ["find_record", "open_store"]


def open_store(store: Store) -> StateStore:
    """Return the checkpoint store, not entered yet."""
    return open_state(store.state or None)


async def find_record(state: StateStore, name: str) -> UploadRecord:
    """Return the record with this key or VideoId.

    Raises:
        ConfigurationError: there is none.
    """
    found = await state.find(key=name) or await state.find(video_id=name)
    if found is None:
        raise ConfigurationError(
            f"There is no upload {name!r} in this state.",
            next_step="`vodup status` lists them; --state names another one.",
        )
    return found
