"""A recorded case that is missing from a case set that is there is a failure, not a skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import places


def test_only_a_whole_case_set_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PARITY", tmp_path)
    assert places.load(tmp_path / "eva" / "cases.json", {}) == {}
    (tmp_path / "eva").mkdir()
    with pytest.raises(FileNotFoundError):
        places.load(tmp_path / "eva" / "cases.json", {})
