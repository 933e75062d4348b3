"""Every family still computes what it computed when its recorded cases passed; needs nothing beside the clone."""

import json
from typing import Any

import pytest

from hanmo.checkpoints import open_model
from tests.golden.make import FOLDER, compute
from tests.unit.tiny import NAMES


def close(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, abs=2e-5, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    golden = json.loads((FOLDER / name / "golden.json").read_text(encoding="utf-8"))
    numbers = compute(open_model(FOLDER / name, dtype="fp32", device="cpu"))
    for exact in ("rows", "labels", "contexts", "replies"):
        assert numbers[exact] == golden[exact], exact
    for nearly in ("logprob", "entropy"):
        assert close(numbers[nearly], golden[nearly]), nearly
    for name_ in ("loss", "gradient_norm"):
        assert numbers[name_] == pytest.approx(golden[name_], rel=1e-4), name_
    for name_, scores in golden["scores"].items():
        assert numbers["scores"][name_] == pytest.approx(scores, abs=1e-4), name_
