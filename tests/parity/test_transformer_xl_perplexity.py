"""Recorded perplexities of prompts and texts through our evaluation, which reads a record as one segment.

Cases with a temperature or a filter change the distribution itself and are no perplexity of the model; the decoding
tests replay them. A text longer than what the original's memory held is another computation there.
"""

import math
from typing import Any

import pytest

from hanmo.evaluation.perplexity import evaluate
from hanmo.families.base import OpenedModel
from hanmo.records import PromptResponse
from tests.parity.transformer_xl_models import FOLDER, VOCABULARY, family, network
from tests.places import load, needs_parity

pytestmark = [
    needs_parity("transformer_xl"),
    pytest.mark.skipif(not VOCABULARY.is_file(), reason=f"no vocabulary at {VOCABULARY}"),
]
CASES = [
    case
    for case in load(FOLDER / "perplexity" / "cases.json", {"cases": []})["cases"]
    if (case["temperature"], case["top_k"], case["top_p"]) == (1, 0, 0)
]
TOKEN = 2e-4  # the specification's tolerance of a token's loss


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['checkpoint'].split()[0]}-{case['seq_length']}")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_perplexity(case: dict[str, Any], batch_size: int) -> None:
    model = network(case["checkpoint"])
    samples = [one for one in case["samples"] if len(one["context_ids"]) + one["eval_length"] - 1 <= case["seq_length"]]
    records = [PromptResponse(one["sample"]["prompt"], one["sample"]["text"]) for one in samples]
    result = evaluate(OpenedModel(model, family(model.config), "recorded"), records, batch_size=batch_size)
    assert [record.tokens for record in result.records] == [one["eval_length"] for one in samples]
    for record, one in zip(result.records, samples, strict=True):
        assert record.nll == pytest.approx(-one["sum_logprob"], abs=TOKEN * record.tokens)
        assert math.exp(record.nll / record.tokens) == pytest.approx(one["ppl"], rel=TOKEN)
    if samples == case["samples"]:
        assert result.perplexity == pytest.approx(samples[-1]["running_ppl"], rel=TOKEN)
