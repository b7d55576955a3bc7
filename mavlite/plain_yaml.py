"""YAML as nested mappings of plain values, and nothing more: no tags, no aliases, no key twice."""

import yaml

from mavlite.errors import MavliteError

LARGEST = 100_000                            # characters of a file: the shipped ones have some thousand


def merge(base, override):
    """Two nested mappings; the second wins key by key."""
    merged = dict(base)
    for key, value in override.items():
        section = isinstance(merged.get(key), dict)
        if section and value is None:                        # an empty block changes nothing
            continue
        merged[key] = merge(merged[key], value) if section and isinstance(value, dict) else value
    return merged


class PlainLoader(yaml.SafeLoader):
    """YAML without tags, without aliases (which nest and multiply) and without a key twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken; write the values out")
        if self.peek_event().tag is not None:                # even plain ones: !!bool x is a KeyError in yaml
            raise yaml.YAMLError("tags are not taken; write the value alone")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise yaml.YAMLError(f"key {twice!r} stands there twice")
        return super().construct_mapping(node, deep)


def _plain_yaml(text, name):
    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:     # of dates and numbers
        reason = " ".join(str(error).split())[:200]
        raise MavliteError(f"{name}: is not plain YAML ({reason})") from None


def read_yaml(path):
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise MavliteError(f"{path}: no such configuration file") from None
    except (OSError, ValueError) as error:                   # ValueError: not UTF-8, or a null in the path
        raise MavliteError(f"{path}: cannot be read ({error})") from None
    if len(text) > LARGEST:
        raise MavliteError(f"{path}: has more than {LARGEST:,} characters; no configuration is that long")
    content = _plain_yaml(text, path)
    if not isinstance(content, dict):
        raise MavliteError(f"{path}: must hold sections of keys")
    return content


def parse_overrides(pairs):
    """["train.steps=500", ...] -> {"train": {"steps": 500}, ...}."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise MavliteError(f"--set {pair}: must look like section.key=value, such as train.steps=500")
        overrides = merge(overrides, {section: {name: _plain_yaml(value, f"--set {pair}")}})
    return overrides
