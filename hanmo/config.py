"""Settings of a stage: a dataclass, filled from its defaults, a preset, a YAML file and ``key=value`` overrides."""

import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from enum import EnumMeta
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hanmo.errors import ConfigError, unknown
from hanmo.files import write_text

T = TypeVar("T")
# What yaml raises, too, for the date 2024-13-01, for numbers of thousands of digits and for what is nested too deeply.
NO_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError)
NAMES: dict[Any, str] = {  # of types, in messages
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    list: "a list",
    dict: "a mapping",
    Mapping: "a mapping",
}


def settings_of(path: str, **reserved: str) -> dict[str, Any]:
    """Metadata of a ``dict`` field for settings of the dataclass at ``path``, imported only if such a key is given.

    ``reserved``: the settings that cannot be given there, each with what to use instead.
    """
    return {"settings_of": path, "reserved": reserved}


def load(
    kind: type[T],
    preset: Mapping[str, Any] | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> T:
    """An instance of the dataclass ``kind``. Overrides win over the file (a mapping in YAML), the file over the preset.

    ``overrides``: ``key=value`` or, for a key in a mapping, ``outer.inner=value``; values are read as YAML. ConfigError
    for an unknown key, a value of the wrong type, a required setting that is missing, and a bad file.
    """
    layers: list[tuple[Mapping[str, Any], str]] = [(preset or {}, "preset")]
    if file is not None:
        content = read_yaml(Path(file))
        if not isinstance(content, dict | None):
            raise ConfigError(f"{file}: expected a mapping of settings, found {type(content).__name__}")
        layers.append((content or {}, str(file)))
    layers += [(_parse(override), f"override {override!r}") for override in overrides]
    values: dict[str, Any] = {}
    for layer, source in layers:
        for key, value in _checked(kind, layer, source).items():
            both = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = {**values[key], **value} if both else value
    needed = (field for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING)  # type: ignore[arg-type]
    if missing := [field.name for field in needed if field.name not in values]:
        raise ConfigError(f"{', '.join(missing)}: not given, and there is no default")
    return kind(**values)


def require(config: Any, **checks: tuple[bool, str]) -> None:
    """Raise ConfigError for the first setting whose check, (passed, expected value), fails."""
    for name, (good, expected) in checks.items():
        if not good:
            raise ConfigError(f"{name}={getattr(config, name)}: must be {expected}")


def dump(config: Any) -> str:
    """A configuration as YAML that ``load`` reads back to an equal one."""
    from pydantic_core import to_jsonable_python

    return yaml.safe_dump(to_jsonable_python(asdict(config)), allow_unicode=True, sort_keys=False)


def save(config: Any, path: str | Path) -> None:
    write_text(path, dump(config))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], outer: str = "") -> Iterator[str]:
    """What has changed between two mappings of settings, each setting by its full name."""
    for key in {**before, **now}:
        name, old, new = f"{outer}{key}", before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{name}.")
        elif old != new:
            was, is_now = ("not given" if value is None else f"{value!r}" for value in (old, new))
            yield f"{name} was {was} and is now {is_now}"


def named_function(name: str, setting: str) -> Callable[..., Any]:
    """The function that a setting names as ``module:function`` or ``file.py:function``.

    A module that is not installed is taken from the current folder. That folder, or the file's, is searched after
    everything else, and only for this import, so that no file in it passes for a library. ConfigError if there is no such
    function, or its module fails.
    """
    module, _, function = name.rpartition(":") if ".py:" in name else name.partition(":")
    here = str(Path(module).resolve().parent if module.endswith(".py") else Path.cwd())
    expected = f"expected module:function, its module installed or in {here}, or file.py:function"
    added = [] if here in sys.path else [here]
    sys.path += added
    try:
        found = _module_at(Path(module).resolve()) if module.endswith(".py") else import_module(module)
    except Exception as error:
        raise ConfigError(f"{setting}: {name}: {type(error).__name__}: {error}; {expected}") from error
    finally:
        for path in added:
            sys.path.remove(path)
    if not callable(called := getattr(found, function, None)):
        raise ConfigError(f"{setting}: {name}: no function {function!r} in {found.__file__}; {expected}")
    return called


def _module_at(path: Path) -> types.ModuleType:
    """The module in a file, which is run once."""
    name = str(path.with_suffix(""))
    if name not in sys.modules:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of a user; ConfigError if there is no such file, or it is not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except NO_YAML as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None


def _parse(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, e.g. trainer.learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except NO_YAML as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    for name, inner in value.items() if isinstance(value, dict) else ():
        if inner is None and ":" in str(name):  # {a:1} is the name "a:1" without a value
            outer, _, text = str(name).partition(":")
            raise ConfigError(
                f"override {override!r}: YAML needs a space after a colon; or use {key.strip()}.{outer}={text}"
            )
    for name in reversed(key.strip().split(".")):
        value = {name: value}
    return value


def _checked(
    kind: type[Any], layer: Mapping[str, Any], source: str, outer: str = "", reserved: Any = ()
) -> dict[str, Any]:
    """The settings of a layer, each with the type that ``kind`` declares; ``outer``: the setting whose value they are."""
    if not isinstance(layer, Mapping):
        raise ConfigError(f"{source}: expected settings by name, found {layer!r:.80}")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind) if field.init}
    checked = {}
    for key, value in layer.items():
        name = f"{outer}.{key}" if outer else key
        if key in reserved:
            raise ConfigError(f"{source}: {name} cannot be set: {reserved[key]}")
        if key not in known:
            of = f"setting of {outer}" if outer else "setting"
            raise ConfigError(f"{source}: {unknown(of, str(key), known.keys() - reserved)}")
        nested = known[key].metadata
        if "settings_of" in nested and isinstance(value, Mapping):
            checked[key] = _checked(resolve_name(nested["settings_of"]), value, source, name, nested["reserved"])
        else:
            checked[key] = _converted(value, hints[key], name, source)
    return checked


def check_fields(kind: type[Any], values: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for a value that is not of the type that ``kind`` itself, not a base of it, declares."""
    hints = inspect.get_annotations(kind, eval_str=True)
    for key in hints.keys() & values.keys():
        _converted(values[key], hints[key], key, source)


def _converted(value: Any, hint: Any, key: str, source: str) -> Any:
    """``value`` as the type ``hint``, or a ConfigError that names the innermost value that does not fit."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    config = ConfigDict(arbitrary_types_allowed=True)
    try:
        return TypeAdapter(_yaml_type(hint), config=config).validate_python(value)
    except ValidationError as error:
        for part in error.errors()[0]["loc"]:
            origin = get_origin(hint)
            if origin in (list, tuple, Sequence):
                key, hint, value = f"{key}[{part}]", get_args(hint)[0], value[part]
            elif origin in (dict, Mapping):
                key, hint, value = f"{key}.{part}", get_args(hint)[1], value[part]
        raise ConfigError(f"{source}: {key}={value!r}: expected {describe_type(hint)}, found {_found(value)}") from None


def _yaml_type(hint: Any) -> Any:
    """The type for pydantic, which reads a path, an enum or 1e-4 (a string in YAML) from text, and a tuple from a list.

    It must not read a number from true, an int from text, NaN or infinity.
    """
    from pydantic import AfterValidator, BeforeValidator, Strict

    if hint is bool:
        return Annotated[bool, Strict()]
    if hint in (int, float):
        refused = bool if hint is float else (bool, str)
        kind = Annotated[hint, BeforeValidator(lambda value: None if isinstance(value, refused) else value)]
        return Annotated[kind, AfterValidator(_finite)] if hint is float else kind
    if options := _options(hint):
        return Union[tuple(map(_yaml_type, options))]  # noqa: UP007
    if isinstance(hint, EnumMeta):  # one of whose values may be "no", which YAML takes for false
        return Annotated[hint, BeforeValidator(lambda value: "no" if value is False else value)]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (dict, Mapping):
        return dict[Any, _yaml_type(arguments[1])]  # type: ignore[misc]
    return origin[tuple(map(_yaml_type, arguments))] if origin in (list, tuple, Sequence) else hint


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("no finite number")
    return value


def _options(hint: Any) -> list[Any]:
    """The types of a union, empty for other types; for "Enum | str" only the enum, whose values can be listed."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return [option for option in options if option is not str or not any(isinstance(one, EnumMeta) for one in options)]


def describe_type(hint: Any) -> str:
    """The values that a type accepts."""
    origin, arguments = get_origin(hint), get_args(hint)
    if options := _options(hint):
        return " or ".join(map(describe_type, options))
    if origin is Literal or isinstance(hint, EnumMeta):
        return " or ".join(str(getattr(option, "value", option)) for option in arguments or hint)
    if origin in (list, tuple, Sequence):
        return f"a list of {describe_type(arguments[0])}"
    return NAMES.get(origin or hint, getattr(hint, "__name__", str(hint)))


def _found(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity"
    return "true/false" if isinstance(value, bool) else NAMES.get(type(value), type(value).__name__)
