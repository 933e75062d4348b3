"""Reads a family's ``original_format.yaml``: the released sizes, and the original names of the tensors.

    sizes:    name -> config, parameters, aliases of a ``Size``
    layouts:  name -> the fields of a ``Layout``, with ``tensors`` in place of ``entries``: a list of tables
              ``theirs: {ours, cut, vocabulary, copies, optional, over, only}``

``cut`` is rows or columns. ``NAME.*`` stands for the weight and the bias of a module; a bias is cut with the rows.
``{i}`` runs over the configuration's ``num_layers`` unless ``over`` names another count.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hanmo.families.weight_map import Layout, Size, TensorMapping

_CUTS = {None: None, "rows": 0, "columns": 1}


def read_format(path: Path) -> tuple[dict[str, Size], dict[str, Layout]]:
    """The released sizes and the layouts, by name."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    sizes = {name: Size(_tuples(size.pop("config")), **_tuples(size)) for name, size in content["sizes"].items()}
    layouts = {}
    for name, fields in content["layouts"].items():
        tables = fields.pop("tensors")
        entries = tuple(entry for table in tables for theirs, one in table.items() for entry in _entries(theirs, one))
        layouts[name] = Layout(name=name, entries=entries, **_tuples(fields))
    return sizes, layouts


def _entries(theirs: str, fields: dict[str, Any]) -> Iterator[TensorMapping]:
    ours, cut = fields["ours"], _CUTS[fields.get("cut")]
    ours = [ours] if isinstance(ours, str) else ours
    rest = _tuples({name: value for name, value in fields.items() if name not in ("ours", "cut")})
    if "{i}" in ours[0]:
        rest.setdefault("over", "num_layers")
    for kind in ("weight", "bias") if theirs.endswith(".*") else ("",):
        names = tuple(name.replace("*", kind) for name in ours)
        yield TensorMapping(theirs.replace("*", kind), names, None if kind == "bias" and cut == 1 else cut, **rest)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
