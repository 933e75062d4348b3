"""Settings of a stage: one dataclass, filled from its defaults, a preset, a YAML file and ``key=value`` overrides.

Later layers win. An unknown key is answered with the nearest known one and a value of the wrong type with what was
expected, both with the place they came from.

A field of type ``dict`` may hold the settings of a class that is expensive to import; its metadata says which, and
the class is imported only when such a key is given:

    trainer: dict[str, Any] = field(default_factory=dict, metadata=settings_of("transformers.TrainingArguments"))
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hanmo.errors import ConfigError, unknown
from hanmo.files import write_text

T = TypeVar("T")


def settings_of(path: str, **reserved: str) -> dict[str, Any]:
    """Field metadata: the mapping holds settings of the dataclass at the dotted ``path``.

    ``reserved`` names settings that may not be given, each with what to use instead.
    """
    return {"settings_of": path, "reserved": reserved}


def load(
    kind: type[T],
    preset: Mapping[str, Any] | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> T:
    """An instance of the dataclass ``kind``.

    Args:
        preset: a family's preset of this stage.
        file: YAML with a mapping of the same keys.
        overrides: ``key=value``; ``outer.inner=value`` reaches into a mapping. Values are read as YAML.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a required setting that is missing, a bad file.
    """
    values: dict[str, Any] = {}
    _merge(kind, values, dict(preset or {}), "preset")
    if file is not None:
        _merge(kind, values, _read(Path(file)), str(file))
    for override in overrides:
        _merge(kind, values, _parse(override), f"override {override!r}")
    missing = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not given, and there is no default")
    return kind(**values)


def dump(config: Any) -> str:
    """A configuration as YAML that ``load`` reads back to an equal one."""
    return yaml.safe_dump(_plain(asdict(config)), allow_unicode=True, sort_keys=False)


def save(config: Any, path: str | Path) -> None:
    """Write ``dump`` to a file."""
    write_text(path, dump(config))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content


def _parse(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, e.g. trainer.learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    for name, inner in value.items() if isinstance(value, dict) else ():
        if inner is None and ":" in str(name):  # {a:1} is the name "a:1" without a value
            said, _, meant = str(name).partition(":")
            raise ConfigError(
                f"override {override!r}: YAML wants a space after a colon; or say {key.strip()}.{said}={meant}"
            )
    for name in reversed(key.strip().split(".")):
        value = {name: value}
    return value


def _merge(kind: type[Any], values: dict[str, Any], layer: Mapping[str, Any], source: str) -> None:
    """Check one layer against ``kind`` and put it over ``values``."""
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for key, value in layer.items():
        if key not in known:
            raise ConfigError(f"{source}: {unknown('setting', str(key), known)}")
        metadata = known[key].metadata
        if "settings_of" in metadata and isinstance(value, Mapping):
            value = _checked_mapping(key, value, metadata, source)
        else:
            value = _fit(value, hints[key], key, source)
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            value = {**values[key], **value}
        values[key] = value


def _checked_mapping(
    outer: str, mapping: Mapping[str, Any], metadata: Mapping[str, Any], source: str
) -> dict[str, Any]:
    module, _, name = metadata["settings_of"].rpartition(".")
    kind = getattr(import_module(module), name)
    assert is_dataclass(kind)
    hints, reserved = get_type_hints(kind), metadata["reserved"]
    known = {field.name for field in fields(kind) if field.init} - set(reserved)
    checked = {}
    for key, value in mapping.items():
        if key in reserved:
            raise ConfigError(f"{source}: {outer}.{key} cannot be set: {reserved[key]}")
        if key not in known:
            raise ConfigError(f"{source}: {unknown(f'setting of {outer}', str(key), known)}")
        checked[key] = _fit(value, hints[key], f"{outer}.{key}", source)
    return checked


def _fit(value: Any, hint: Any, key: str, source: str) -> Any:
    """``value`` as the type ``hint``, converting only what YAML writes differently.

    YAML reads 1e-4 as text, a path and an enum are text, a whole number is a float, a list is a tuple.
    """
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if any(isinstance(option, type) and issubclass(option, Enum) for option in arguments):
            arguments = tuple(option for option in arguments if option is not str)  # "Enum | str": the enum's values
            hint = Union[arguments]  # noqa: UP007
        exact = [option for option in arguments if type(value) is option]
        for option in exact + list(arguments):
            try:
                return _fit(value, option, key, source)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (list, tuple, Sequence) and isinstance(value, (list, tuple)):
        items = [_fit(item, arguments[0] if arguments else Any, f"{key}[{i}]", source) for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        of = arguments[1] if arguments else Any
        return {name: _fit(item, of, f"{key}.{name}", source) for name, item in value.items()}
    elif isinstance(hint, type):
        fitted = _fit_plain(value, hint)
        if fitted is not MISSING:
            return fitted
    raise ConfigError(f"{source}: {key}={value!r}: expected {_describe(hint)}, found {_kind(value)}")


def _fit_plain(value: Any, hint: type[Any]) -> Any:
    if hint is type(None):
        return None if value is None else MISSING
    if hint in (int, float) and isinstance(value, bool):
        return MISSING
    if isinstance(value, hint):
        return value
    try:
        if hint is float and isinstance(value, (int, str)):
            return float(value)
        if hint is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if issubclass(hint, Path) and isinstance(value, str):
            return hint(value)
        if issubclass(hint, Enum):
            return hint(value)
    except ValueError:
        pass
    return MISSING


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (list, tuple, Sequence):
        return f"a list of {_describe(arguments[0])}" if arguments else "a list"
    if origin in (dict, Mapping):
        return "a mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(str(member.value) for member in hint)
    names = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if hint in (list, dict):
        return {list: "a list", dict: "a mapping"}[hint]
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true/false", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(value), "a mapping" if isinstance(value, Mapping) else type(value).__name__)


def _plain(value: Any) -> Any:
    """Only what YAML knows by itself."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
