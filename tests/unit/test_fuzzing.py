"""Damaged files of every class that hanmo reads: nothing in them runs, and each ends in one message, within 10 seconds and 1 GB."""

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hanmo.errors import HanmoError
from tests import fuzzing
from tests.fuzzing import CANARY, OK, Kind, damaged, fuzz, table
from tests.unit import fuzzed_data, fuzzed_models

FAMILIES = ("eva", "transformer_xl", "pangu", "glm")
ALL: dict[str, Callable[[Path], Kind]] = {
    "records": fuzzed_data.records,
    "prompts": fuzzed_data.prompts,
    "sources": fuzzed_data.sources,
    "suites": fuzzed_data.suites,
    "ratings": fuzzed_data.ratings,
    "settings": fuzzed_data.settings,
    "results": fuzzed_data.results,
    "answers": fuzzed_data.answers,
    "stores": fuzzed_data.stores,
    "runs": fuzzed_data.runs,
    "rounds": fuzzed_data.rounds,
    "adapters": fuzzed_models.adapters,
    "hub": fuzzed_models.hub,
    **{f"original {name}": partial(fuzzed_models.original, name) for name in FAMILIES},
    **{f"converted {name}": partial(fuzzed_models.converted, name) for name in FAMILIES},
    "transformers": fuzzed_models.split_transformers,
    "transformers mt5": fuzzed_models.sequences,
}


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_files(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = {name: make(tmp_path / f"honest {name}") for name, make in ALL.items()}
    found = fuzz(kinds, count, tmp_path)
    print(table(found))
    bad = [f"{one.name} {one.number}: {one.kind}\n{one.printed}" for one in found if one.kind not in OK]
    assert not bad, "\n\n".join([table(found), *bad])
    assert len(found) == count and any(one.kind == "message" for one in found)


def test_damage_is_a_function_of_the_number() -> None:
    data = fuzzed_data.LINES.encode()
    assert damaged(data, random.Random(3)) == damaged(data, random.Random(3)) != data


def test_what_the_fuzzer_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 1)
    monkeypatch.setattr(fuzzing, "MEMORY", 100 << 20)
    honest = tmp_path / "honest one"
    honest.mkdir()
    (honest / "file").write_text("some text\n" * 9)

    def endless() -> None:
        while True:
            pass

    def refuse() -> None:
        raise HanmoError("no")

    does: dict[str, Callable[[], object]] = {
        "memory": lambda: b"1" * (200 << 20),
        "traceback": lambda: {}["key"],
        "hung": endless,
        "executed": Path(CANARY).touch,
        "crashed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "message": refuse,
        "fine": lambda: None,
    }

    def kind(bad: Callable[[], object]) -> Kind:
        def read(folder: Path, name: str) -> None:
            if folder.name != "honest":
                bad()

        return Kind(honest, ("file",), (read,))

    found = fuzz({name: kind(bad) for name, bad in does.items()}, len(does), tmp_path)
    assert [(one.name, one.kind) for one in found] == [(name, name) for name in does]
