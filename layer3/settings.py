"""Settings from a YAML file, strictly: the file's values over a dataclass's defaults, or a sentence that says why not.

A dataclass of settings checks its own values when it is built (:func:`within`, :func:`one_of`,
:func:`true_or_false`), so that a wrong one never gets as far as a decision however it came in.
What a file leaves out keeps its default; a key that nobody knows, or that stands there twice, is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from layer3.errors import ConfigurationError

__all__ = ["build", "document", "load", "one_of", "parse", "read", "text_of", "true_or_false", "unknown", "within"]

_INF = math.inf
_T = TypeVar("_T")


def within(
    config: object,
    name: str,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    whole: bool = False,
) -> None:
    """Raise unless the field is a finite number (an integer where ``whole``) between ``low`` and ``high``."""
    value = getattr(config, name)
    if (
        isinstance(value, int if whole else int | float)
        and not isinstance(value, bool)
        and -_INF < value < _INF
        and (low < value if open_low else low <= value)
        and (value < high if open_high else value <= high)
    ):
        return
    left, right = "(" if open_low else "[", ")" if open_high or high == _INF else "]"
    kind = "a whole number" if whole else "a number"
    raise ConfigurationError(
        f"{type(config).__name__}.{name} is {value!r}; it must be {kind} in {left}{low:g}, {high:g}{right}"
    )


def one_of(config: object, name: str, choices: Sequence[str]) -> None:
    """Raise unless the field is one of the words ``choices``."""
    value = getattr(config, name)
    if not isinstance(value, str) or value not in choices:
        raise ConfigurationError(f"{type(config).__name__}.{name} is {value!r}; it must be {' or '.join(choices)}")


def true_or_false(config: object, name: str) -> None:
    """Raise unless the field is a truth value."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{type(config).__name__}.{name} is {value!r}; it must be true or false")


def unknown(path: str, key: str, names: Sequence[str]) -> str:
    """The sentence for a ``key`` at ``path`` that is none of ``names``."""
    near = difflib.get_close_matches(key, names, n=1)
    return f"unknown key {path!r}; " + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}")


def load(default: _T, path: Path, what: str) -> _T:
    """The dataclass ``default`` with what the YAML file at ``path`` says put over it.

    ``what`` names the file in a message ("the sizing configuration").

    Raises
    ------
    ConfigurationError : no such file, or as :func:`parse`
    """
    return parse(default, read(path, what), str(path))


def text_of(default: object, path: Path | None, what: str) -> str:
    """The file's text, checked, so that the record of what it led to holds the settings themselves; "" for none."""
    if path is None:
        return ""
    text = read(path, what)
    parse(default, text, str(path))
    return text


def parse(default: _T, text: str, origin: str) -> _T:
    """The dataclass ``default`` with what the YAML document ``text`` says put over it; "" changes nothing.

    Raises
    ------
    ConfigurationError : not YAML, an unknown key, a key that stands there twice, a wrong type, or a value
        out of range; ``origin`` says where the text came from
    """
    found = document(text, origin)
    try:
        return build(default, found)
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}: {error}") from error


def document(text: str, origin: str) -> Mapping[str, Any]:
    """The mapping that the YAML document ``text`` is; "" is an empty one.

    Raises
    ------
    ConfigurationError : not YAML, no mapping, or a key that stands there twice; ``origin`` says where it came from
    """
    try:
        import yaml  # an extra: only who keeps a configuration file needs it
    except ImportError as error:
        raise ConfigurationError(
            f"{origin} needs PyYAML to be read, which is not installed: pip install pyyaml"
        ) from error
    try:
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader), origin)
        found = yaml.safe_load(text)
    # PyYAML lets these two out for a date that does not exist, and for brackets without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    if found is not None and not isinstance(found, Mapping):
        raise ConfigurationError(f"{origin}: the document is {found!r}; it must be a mapping of keys to values")
    return found or {}


def read(path: Path, what: str) -> str:
    """The text of the file at ``path``; a ConfigurationError where there is none, or it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    except ValueError as error:  # a name that no file can have
        raise ConfigurationError(f"cannot read {what} {str(path)!r}: {error}") from error


def _refuse_twice(node: Any, origin: str) -> None:
    """Raise where a mapping of this YAML node tree holds a key twice: PyYAML takes the last and says nothing."""
    pairs = node.value if node is not None and node.id == "mapping" else []
    seen: set[Any] = set()
    for key, value in pairs:
        if key.id == "scalar" and key.value in seen:
            where = f"line {key.start_mark.line + 1}"
            raise ConfigurationError(f"{origin}: the key {key.value!r} stands there twice ({where}); say it once")
        seen.add(key.value if key.id == "scalar" else id(key))
        _refuse_twice(value, origin)


def build(default: _T, values: object, where: str = "") -> _T:
    """The dataclass ``default`` with ``values`` put over it, recursively; ``where`` is the dotted path for messages.

    Raises
    ------
    ConfigurationError : no mapping, an unknown key, a wrong type, or a value out of range
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where or 'the document'} is {values!r}; it must be a mapping of keys to values")
    names = [f.name for f in dataclasses.fields(default)]  # type: ignore[arg-type]
    hints = get_type_hints(type(default))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            raise ConfigurationError(unknown(path, str(key), names))
        if dataclasses.is_dataclass(hints[key]):
            changes[key] = build(getattr(default, key), value, path)
        elif isinstance(value, str) and hints[key] in (int, float):
            raise ConfigurationError(
                f"{path} is the text {value!r}; it must be a number, unquoted (YAML reads 1e9 as text: write 1.0e+9)"
            )
        else:
            changes[key] = value
    try:
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}" if where else str(error)) from error
