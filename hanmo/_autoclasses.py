"""Makes ``import hanmo`` enough for ``AutoModel*.from_pretrained`` on our folders, without importing transformers.

transformers imports its auto classes when they are first asked for; at that moment our families are registered with
them. (Importing transformers here would cost every ``hanmo --help`` a second.) Where the asking happens while a module of
ours is itself being imported, the registration, which imports our families, waits until that is complete.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# module of transformers -> what hanmo.families does once it is there
WATCHED = {
    "transformers.models.auto.modeling_auto": "register_networks",
    "transformers.models.auto.tokenization_auto": "register_tokenizers",
}


class _Watch(MetaPathFinder):
    """Finds the modules it watches as they would be found anyway, and notices when they are complete."""

    def __init__(self) -> None:
        self.looking: set[str] = set()
        self.importing = 0  # watched imports under way, one inside the other
        self.pending: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in self.looking or not (name in WATCHED or name.startswith("hanmo.")):
            return None
        self.looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Noticing(spec.loader, self)
        return spec

    def complete(self, name: str) -> None:
        if name in WATCHED:
            self.pending.append(name)
        while self.pending and not self.importing:
            register = WATCHED[self.pending.pop()]
            getattr(importlib.import_module("hanmo.families"), register)()


class _Noticing(Loader):
    """The module's own loader, and a word to the watch."""

    def __init__(self, loader: Loader, watch: _Watch):
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)  # resources, sources, file names

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.watch.importing += 1
        try:
            self.loader.exec_module(module)
        finally:
            self.watch.importing -= 1
        self.watch.complete(module.__name__)


def watch() -> None:
    """Register with the auto classes that are loaded already, and with the others when they are."""
    finder = _Watch()
    sys.meta_path.insert(0, finder)
    for module in WATCHED:
        if module in sys.modules:
            finder.complete(module)
