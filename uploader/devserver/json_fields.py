"""Values from JSON objects whose names are the fields of a dataclass, checked by their types."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], values: object, what: str) -> T:
    """Return a `kind` with these fields.

    Raises: ValueError for anything but an object, for unknown names and for values of other types.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}s are JSON objects")
    hints = get_type_hints(kind)
    if unknown := values.keys() - hints.keys():
        raise ValueError(f"unknown {what}: {', '.join(sorted(unknown))}")
    try:
        return kind(**{name: _value_of(value, hints[name]) for name, value in values.items()})
    except TypeError as error:  # a field is missing, or has the type of another
        raise ValueError(f"unusable {what}: {error}") from error


def _value_of(value: object, hint: Any) -> Any:  # noqa: ANN401 - any field's
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_of(value, inner)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return tuple(map(_value_of, value, kinds))
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if _is_plain(value, hint):
        return value
    raise TypeError(f"{value!r} is not {getattr(hint, '__name__', hint)}")


def _is_plain(value: object, hint: Any) -> bool:  # noqa: ANN401 - any field's
    origin = get_origin(hint)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, origin or hint) and (hint is bool) == isinstance(value, bool)


def _first_of(value: object, kinds: tuple[Any, ...]) -> Any:  # noqa: ANN401 - any field's
    for kind in kinds:
        try:
            return _value_of(value, kind)
        except TypeError:
            continue
    raise TypeError(f"{value!r} is none of {', '.join(map(str, kinds))}")
