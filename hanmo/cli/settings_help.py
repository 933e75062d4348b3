"""The settings of a dataclass, read from its source, so that ``hanmo train STAGE --help`` imports no torch.

A setting is described in the ``Attributes:`` section of its class or of a base, or else by a comment at the end of its
line. A unit or the paper's symbol may end the description in brackets, e.g. "limit: the longest row. [tokens]".
"""

import ast
import re
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

import hanmo

STAGES = "hanmo.training.stages"


@dataclass(frozen=True)
class Setting:
    """One field of a dataclass of settings.

    Attributes:
        unit: the unit or the paper's symbol; empty, like ``meaning``, where none is given.
        type: the values that it accepts.
        default: as YAML; None if it must be given.
        nested: the class whose settings the mapping holds, as a dotted path; None if it is no such mapping.
    """

    name: str
    meaning: str
    unit: str
    type: str
    default: str | None
    nested: str | None


def stage_settings(stage: str) -> list[Setting]:
    """The settings of a stage of training: those of the class ``...Config`` in the stage's module."""
    module = f"{STAGES}.{stage}"
    (name,) = (
        node.name for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    )
    return read_settings(f"{module}.{name}")


def read_settings(path: str) -> list[Setting]:
    """The settings of the dataclass at the dotted ``path``, those of its bases first; empty if it is not hanmo's."""
    fields: dict[str, tuple[str, ast.AnnAssign]] = {}
    meanings: dict[str, str] = {}
    for module, node in _classes(path):
        own = {
            item.target.id: (module, item)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        comments = {name: _comment(module, item) for name, (_, item) in own.items()}
        meanings |= {name: text for name, text in comments.items() if text}
        meanings |= attributes(ast.get_docstring(node) or "")
        fields |= own
    return [_setting(module, name, field, meanings.get(name, "")) for name, (module, field) in fields.items()]


class StageCommand(TyperCommand):
    """A command whose help ends with the settings of the stage of its name."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        settings = stage_settings(self.name or "")
        with formatter.section("Settings (KEY=VALUE; docs/settings.md has them in tables)"):
            formatter.write_dl([(label(setting), description(setting)) for setting in settings])


def label(setting: Setting) -> str:
    """The key and its default."""
    return setting.name if setting.default is None else f"{setting.name}={setting.default}"


def description(setting: Setting) -> str:
    """What the help tells about a setting, besides its name and default."""
    kind = setting.type
    if setting.nested is not None:
        names = ", ".join(inner.name for inner in read_settings(setting.nested))
        kind = f"{setting.name}.NAME=VALUE with the names of {setting.nested}" + (f": {names}" if names else "")
    return f"{setting.meaning.replace('``', '')} ({'; '.join(filter(None, (kind, setting.unit)))})"


def attributes(docstring: str) -> dict[str, str]:
    """The descriptions in the section ``Attributes:`` of a docstring, by name; "a, b: text" describes both."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", docstring, re.M)
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def _source(module: str) -> str:
    path = Path(hanmo.__file__).parent.joinpath(*module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


@cache
def _tree(module: str) -> ast.Module:
    """The syntax tree of a module of hanmo."""
    return ast.parse(_source(module))


def _comment(module: str, field: ast.AnnAssign) -> str:
    """The comment behind a field; empty if there is none."""
    assert field.end_lineno is not None and field.end_col_offset is not None
    line = _source(module).splitlines()[field.end_lineno - 1].encode()
    return line[field.end_col_offset :].decode().strip().removeprefix("#").strip()


def _definition(module: str, name: str) -> tuple[str, Any] | None:
    """The module that defines a name as ``module`` knows it, and its class or assigned value; None: not hanmo's."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return module, node.value
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hanmo":
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module or "", alias.name)
    return None


def _classes(path: str) -> list[tuple[str, ast.ClassDef]]:
    """A class and its bases within hanmo, the bases first, each with its module."""
    module, _, name = path.rpartition(".")
    found = _definition(module, name) if module.startswith("hanmo.") else None
    if found is None or not isinstance(found[1], ast.ClassDef):
        return []
    module, node = found
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return [each for base in bases for each in _classes(f"{module}.{base}")] + [(module, node)]


def _setting(module: str, name: str, field: ast.AnnAssign, text: str) -> Setting:
    unit = re.search(r" \[([^\]]+)\]$", text)
    default, nested = _default(module, field.value)
    return Setting(
        name, text[: unit.start()] if unit else text, unit[1] if unit else "", _type(module, field.annotation), default,
        nested,
    )  # fmt: skip


def _default(module: str, value: ast.expr | None) -> tuple[str | None, str | None]:
    """The default of a field as YAML, and the class of nested settings."""
    if value is None:
        return None, None
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "field"):
        return _yaml(value), None
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    factory = ast.unparse(given["default_factory"]) if "default_factory" in given else None
    default = {"dict": "{}", "list": "[]", None: None}.get(factory, factory)
    return _yaml(given["default"]) if "default" in given else default, _nested(module, given.get("metadata"))


def _nested(module: str, metadata: ast.expr | None) -> str | None:
    """The dotted path that ``settings_of`` was called with."""
    if isinstance(metadata, ast.Name):
        found = _definition(module, metadata.id)
        return _nested(found[0], found[1]) if found else None
    called = isinstance(metadata, ast.Call) and ast.unparse(metadata.func).endswith("settings_of")
    return ast.literal_eval(metadata.args[0]) if called and isinstance(metadata, ast.Call) else None


def _yaml(value: ast.expr) -> str:
    text = ast.unparse(value)
    known = {"None": "null", "True": "true", "False": "false", "()": "[]", "''": '""'}
    quoted = isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value
    return quoted or known.get(text, text)


def _type(module: str, annotation: ast.expr) -> str:
    """The values that an annotation accepts, in the words of ``hanmo.config``'s messages."""

    class Aliases(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            found = _definition(module, node.id)
            return node if found is None or isinstance(found[1], ast.ClassDef) else found[1]

    from hanmo.config import describe_type

    hint = ast.unparse(Aliases().visit(ast.parse(ast.unparse(annotation), mode="eval")))
    holder = type("Holder", (), {"__annotations__": {"value": hint}})
    return describe_type(typing.get_type_hints(holder, {**vars(typing), "Path": Path})["value"])
