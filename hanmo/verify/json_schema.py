"""The verifier of JSON: whether a reply is a value that a schema describes."""

import json
import re
from collections.abc import Mapping
from typing import Any

from hanmo.errors import ConfigError, unknown
from hanmo.files import data_of
from hanmo.verify.texts import final

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "number": (int, float), "integer": (int,),
}  # fmt: skip
_KEYS = {"type", "required", "properties", "additionalProperties", "items", "enum"}
_REMARKS = {"$schema", "title", "description"}
_FENCE = re.compile(r"```(?:json|JSON)?[^\S\n]*\n?(.*?)```", re.DOTALL)


def json_schema(reply: str, schema: Mapping[str, Any]) -> bool:
    """Whether the reply, or the one block between ``` in it, is JSON as the schema describes it.

    Of JSON Schema (draft 2020-12, "Validation") there are type, required, properties, additionalProperties (true or false),
    items and enum. ConfigError for any other keyword, which would otherwise be ignored.
    """
    check_schema(schema, "schema")
    text = final(reply)
    blocks = _FENCE.findall(text)
    try:
        value = data_of(blocks[0] if len(blocks) == 1 else text)
        json.dumps(value, allow_nan=False)
    except ValueError:  # no JSON, or NaN, which is none
        return False
    return _fits(value, schema)


def check_schema(schema: Any, name: str) -> None:
    """Raise ConfigError for what is no schema of these keywords; ``name``: what the message calls it."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{name}: expected a mapping of keywords, found {type(schema).__name__}")
    for key in schema.keys() - _KEYS - _REMARKS:
        raise ConfigError(f"{name}: {unknown('keyword', str(key), _KEYS)}")
    for kind in _kinds(schema):
        if kind not in _TYPES:
            raise ConfigError(f"{name}.type: {unknown('type', str(kind), _TYPES)}")
    for key, expected in (("required", list), ("enum", list), ("properties", Mapping), ("additionalProperties", bool)):
        if key in schema and not isinstance(schema[key], expected):
            raise ConfigError(f"{name}.{key}: expected {_NAMES[key]}, found {schema[key]!r:.80}")
    for key, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{name}.properties.{key}")
    if "items" in schema:
        check_schema(schema["items"], f"{name}.items")


_NAMES = {
    "required": "a list of names", "enum": "a list of values", "properties": "a mapping of schemas",
    "additionalProperties": "true or false",
}  # fmt: skip


def _kinds(schema: Mapping[str, Any]) -> list[Any]:
    kinds = schema.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if "type" in schema and not any(_is(value, kind) for kind in _kinds(schema)):
        return False
    if "enum" in schema and not any(_equal(value, one) for one in schema["enum"]):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if not value.keys() >= set(schema.get("required", [])):
            return False
        if schema.get("additionalProperties") is False and value.keys() - known.keys():
            return False
        return all(_fits(value[key], known[key]) for key in value.keys() & known.keys())
    return not isinstance(value, list) or all(_fits(item, schema.get("items", {})) for item in value)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _TYPES[kind])


def _equal(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
