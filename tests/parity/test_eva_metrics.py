"""EVA's recorded metric values, in the published reading."""

from typing import Any

import pytest

from hanmo import metrics
from hanmo.errors import UnsupportedError
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("eva")
CASES = load(PARITY / "eva" / "metrics.json")
TOLERANCE = 1e-12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_values(case: dict[str, Any]) -> None:
    hypotheses, references = case["hyps"], case["refs"]
    for k, value in case.get("bleu", {}).items():
        assert metrics.bleu(hypotheses, references)[int(k) - 1] == pytest.approx(value, abs=TOLERANCE), f"bleu-{k}"
    for k, value in case.get("dist", {}).items():
        assert metrics.distinct(hypotheses, int(k), published=True) == pytest.approx(value, abs=TOLERANCE), f"dist-{k}"
    for n in (1, 2):
        if f"rouge_{n}" in case:
            value = metrics.rouge_n_published(hypotheses, references, n)
            assert value == pytest.approx(case[f"rouge_{n}"], abs=TOLERANCE), f"rouge-{n}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("name, function", [("f1", metrics.unigram_f1), ("rouge_l", metrics.rouge_l)])
def test_mean_and_each_sample(case: dict[str, Any], name: str, function: Any) -> None:
    hypotheses, references = case["hyps"], case["refs"]
    if isinstance(case[name], str):  # the original stops here
        with pytest.raises(UnsupportedError, match="empty reference"):
            function(hypotheses, references, published=True)
        assert 0 <= function(hypotheses, references) <= 1
        return
    assert function(hypotheses, references, published=True) == pytest.approx(case[name], abs=TOLERANCE)
    each = [function([said], [options], published=True) for said, options in zip(hypotheses, references, strict=True)]
    assert each == pytest.approx(case[f"{name}_each"], abs=TOLERANCE)
