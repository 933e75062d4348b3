"""The map from an original checkpoint's tensors to ours, as data for reading, writing, splitting and merging.

A family's ``original_format.py`` holds
    SIZES        name -> Size: the released models
    LAYOUTS      the on-disk forms of the weights
    read_config  the original's configuration (a dict) as our configuration's keyword arguments
    dimensions   (optional) the settings that follow from the shapes of whole tensors, by the original's names; they
                 suffice as a configuration if the released sizes differ in nothing else

Its ``original_format.yaml``, which ``read_format`` reads, holds
    sizes        name -> the fields of a ``Size``
    layouts      name -> the fields of a ``Layout``, with ``tensors`` in place of ``entries``: a list of tables
                 ``theirs: {fields of a TensorMapping}``; ``cut`` is rows or columns
    settings     the keys of the original's configuration that are ours too, with the defaults if it has any
``NAME.*`` is the weight and the bias of a module; a bias is cut with the rows. ``{i}`` runs over ``num_layers`` by default.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import yaml


@dataclass(frozen=True)
class TensorMapping:
    """One tensor of the original, named with ``{i}`` for the layer, and the tensors of ours that it consists of."""

    theirs: str
    ours: tuple[str, ...]  # one after the other on dimension 0 (queries, keys and values are fused there)
    #: the dimension that tensor parallelism cuts, each of our parts by itself; None: every rank holds it whole
    cut: int | None = None
    #: nonzero if the rows are the vocabulary's: if the ranks do not divide them, zeros are added until each rank has
    #: a multiple of this, as in the original's programs
    vocabulary: int = 0
    copies: tuple[str, ...] = ()  # further names under which the original stores the very same tensor
    optional: bool = False  # the file may lack it; ours is then zero
    over: str = ""  # attribute of our configuration that counts the layers ``{i}``; empty for a single tensor
    #: "last": the last of these layers, whose own name has no ``{i}``; "others": all but the last
    only: Literal["", "last", "others"] = ""


@dataclass(frozen=True)
class Layout:
    """One on-disk form of a family's weights.

    Containers: "megatron" is a folder with a tracker file and mp_rank_XX files whose dict has ``module``; "megatron-lm" one
    with mp_rank_XX folders whose file has ``model`` and in it ``language_model``; "bin" one with config.json and
    pytorch_model.bin. ``implies`` and ``in_half`` are keyword arguments of our configuration.
    """

    name: str
    container: Literal["megatron", "megatron-lm", "bin"]
    entries: tuple[TensorMapping, ...]
    signature: tuple[str, ...]  # names that occur in this layout alone
    prefixes: tuple[str, ...] = ("",)  # the names may all start with one of these
    ignored: tuple[str, ...] = ()  # patterns of names that carry no weights (masks stored as buffers)
    needs: tuple[str, ...] = ()  # keys that config.json must have; otherwise the names belong to another model
    implies: dict[str, Any] = field(default_factory=dict)  # implied by these tensors (a reward model's head)
    in_half: dict[str, Any] = field(default_factory=dict)  # implied by storage in fp16
    nests: tuple[
        str, ...
    ] = ()  # of "megatron-lm": modules that are dictionaries of their own inside ``language_model``

    @property
    def splits(self) -> bool:
        """Whether the weights may be split over tensor-parallel ranks."""
        return self.container != "bin"


@dataclass(frozen=True)
class Size:
    """A released size: keyword arguments of the family's configuration, other names, published parameter count."""

    config: dict[str, Any]
    parameters: int
    aliases: tuple[str, ...] = ()


NO_ORIGINAL = SimpleNamespace(SIZES={}, LAYOUTS=(), read_config=dict)  # of families whose files transformers reads

_CUTS = {None: None, "rows": 0, "columns": 1}


def read_format(path: Path) -> tuple[dict[str, Size], dict[str, Layout], Any]:
    """The released sizes and the layouts, by name, and the settings."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    sizes = {name: Size(_tuples(size.pop("config")), **_tuples(size)) for name, size in content["sizes"].items()}
    layouts = {}
    for name, fields in content["layouts"].items():
        tables = fields.pop("tensors")
        entries = tuple(entry for table in tables for theirs, one in table.items() for entry in _entries(theirs, one))
        layouts[name] = Layout(name=name, entries=entries, **_tuples(fields))
    return sizes, layouts, content.get("settings")


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


def rows_of_a_rank(rows: int, ranks: int, multiple: int) -> int:
    """Rows of the vocabulary on each rank; in total more than ``rows`` if the ranks do not divide them."""
    return rows // ranks if rows % ranks == 0 else -(-rows // (ranks * multiple)) * multiple


def expand(entries: Iterable[TensorMapping], config: Any) -> list[TensorMapping]:
    """The entries with ``{i}`` filled in for every layer that ``config`` counts."""
    return [_fill(entry, layer) for entry in entries for layer in _layers(entry, config)]


def _layers(entry: TensorMapping, config: Any) -> Sequence[int]:
    layers = range(getattr(config, entry.over) if entry.over else 1)
    return {"": layers, "last": layers[-1:], "others": layers[:-1]}[entry.only]


def _fill(entry: TensorMapping, layer: int) -> TensorMapping:
    theirs, *names = (name.replace("{i}", str(layer)) for name in (entry.theirs, *entry.ours, *entry.copies))
    ours = len(entry.ours)
    return replace(entry, theirs=theirs, ours=tuple(names[:ours]), copies=tuple(names[ours:]))
