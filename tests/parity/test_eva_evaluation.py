"""Whole runs of EVA's published evaluation: loss, metrics and every generated reply."""

from functools import cache
from typing import Any

import pytest

from hanmo.evaluation.dialogue import DialogueResult, evaluate
from hanmo.records import iter_records
from tests.parity.eva_models import EVA, opened, settings
from tests.places import load, needs_parity

pytestmark = needs_parity("eva")
CASES = load(EVA / "evaluation.json")
LOSS = 1e-4  # absolute, as for logits
METRIC = 1e-9  # of values x 100: the same texts must give the same numbers


@cache
def result(number: int) -> DialogueResult:
    case = CASES[number]
    return evaluate(
        opened(case["model"], case["args"]["rule_path"]),
        list(iter_records(EVA / case["file"])),
        settings(case["args"]),
        limit=case["enc_len"],
        response_limit=case["dec_len"],
        batch_size=case["eval_batch_size"],
        published=True,
    )


each_case = pytest.mark.parametrize("number", range(len(CASES)), ids=[case["id"] for case in CASES])


@each_case
def test_samples_and_replies(number: int) -> None:
    case, found = CASES[number], result(number)
    assert len(found.samples) == case["num_samples_in_dataset"]
    full = found.about["samples in the published reading"]
    assert full == case["num_batches"] * case["eval_batch_size"]
    said = [
        {"context": one.context, "response": one.response, "generation": one.generation} for one in found.samples[:full]
    ]
    assert said == case["generation"]


@each_case
def test_metrics(number: int) -> None:
    case, found = CASES[number], result(number)
    expected: dict[str, Any] = dict(case["metrics"])
    assert found.published["loss"] == pytest.approx(expected.pop("loss"), abs=LOSS)
    assert found.published["loss"] == pytest.approx(case["loss"], abs=LOSS)
    assert {name: found.published[name] for name in expected} == pytest.approx(expected, abs=METRIC)


@each_case
def test_corrected_reading_counts_every_sample(number: int) -> None:
    case, found = CASES[number], result(number)
    losses = [sample.nll / sample.tokens for sample in found.samples]
    assert found.corrected["loss"] == pytest.approx(sum(losses) / case["num_samples_in_dataset"], abs=1e-12)
    if case["num_samples_in_dataset"] % case["eval_batch_size"]:
        assert found.corrected["loss"] != pytest.approx(case["loss"], abs=LOSS)
