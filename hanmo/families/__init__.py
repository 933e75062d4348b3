"""The model families. One folder each; adding a family is adding a folder and its name here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hanmo.errors import UnsupportedError, unknown

if TYPE_CHECKING:
    from hanmo.families.base import Family

NAMES = ("eva", "transformer_xl", "pangu", "glm")


def load(name: str) -> type[Family]:
    """The Family class of a name in ``NAMES``; imports its folder (and torch) only now.

    Raises:
        UnsupportedError: no family has this name.
    """
    if name not in NAMES:
        raise UnsupportedError(unknown("family", name, NAMES))
    return import_module(f"hanmo.families.{name}.family").FAMILY
