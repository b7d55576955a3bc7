"""The values of a configuration, checked by name and type: what a wrong one is told, in one line."""

import reprlib
import types
import typing
from pathlib import Path

from mavlite.errors import MavliteError


def require(condition, message):
    if not condition:
        raise MavliteError(message)


def within(section, config, **bounds):
    """Require low <= config.name <= high for each name=(low, high); a list's items each."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        for item in value if isinstance(value, list) else [value]:
            require(low <= item <= high, f"{section}.{name}: {item} is not within {low} ... {high}")


def stays_inside(name, path):
    """A path in a configuration goes down from where it starts: configurations come with others' weights."""
    require(path is None or ".." not in Path(path).parts,
            f"{name}: {path!r} climbs out of its folder; write the whole path, without ..")


def shown(value):
    """A value for a message: never long, however large it is."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:                                       # Python writes out no number of 5000 digits
        return "a number of thousands of digits"


def named(key):
    """A key for a message: as it stands in the file, if it is text."""
    return key[:60] if isinstance(key, str) else shown(key)


def fill(kind, mapping, path):
    """A dataclass from a mapping, every key and type checked."""
    require(isinstance(mapping, dict), f"{path}: must be a section of keys, not {shown(mapping)}")
    hints = typing.get_type_hints(kind)
    for key in mapping:
        require(key in hints, f"unknown key {path}.{named(key)}; {path} has {', '.join(hints)}")
    return kind(**{key: check(hints[key], value, f"{path}.{key}") for key, value in mapping.items()})


def check(kind, value, path):
    """value, if it is of that type (a float may be an int, or text); else MavliteError naming `path`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:                            # X | None
        return None if value is None else check(arguments[0], value, path)
    if origin is list:
        require(isinstance(value, list), f"{path}: must be a list, not {shown(value)}")
        require(len(value) <= 64, f"{path}: {len(value)} values are more than any list here takes")
        return [check(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if kind is float:
        if isinstance(value, str):                           # YAML 1.1 reads 1e-3 as text
            try:
                value = float(value)
            except ValueError:
                pass
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
        require(ok, f"{path}: must be a number, not {shown(value)}")
        return float(value)
    if kind is int:
        require(isinstance(value, int) and not isinstance(value, bool),
                f"{path}: must be a whole number, not {shown(value)}")
        require(abs(value) < 2**31, f"{path}: {shown(value)} is too large")
    else:
        require(isinstance(value, kind), f"{path}: must be a {kind.__name__}, not {shown(value)}")
        require(kind is not str or len(value) < 1000, f"{path}: {shown(value)} is too long")
    return value
