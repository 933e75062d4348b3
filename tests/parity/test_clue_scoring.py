"""Candidate scoring through the recorded PanGu and GLM checkpoints: as published, corrected, and as multiple choice."""

import math
from typing import Any

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.evaluation.engine.candidates import score_alone, score_candidates
from hanmo.evaluation.suites.clue import published_scores
from hanmo.families.base import OpenedModel
from hanmo.nn.prenorm import GELUS
from hanmo.rows import Part
from tests.originals import network
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = [needs_parity("pangu"), needs_parity("glm")]
PANGU = load(PARITY / "pangu/ppl_scoring.json", {"text_cases": [], "synthetic_cases": []})
GLM = load(PARITY / "glm/text_end_to_end.json", {"multiple_choice": [], "candidate_ppl": {"cases": []}})


@pytest.fixture(scope="module")
def pangu() -> OpenedModel:
    folder = PARITY / "pangu" / PANGU["text_checkpoint"]
    return open_model(str(folder), vocab=VOCAB / "pangu/vocab.model", dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def glm() -> OpenedModel:
    folder = PARITY / "glm" / GLM["checkpoint"]
    opened = open_model(str(folder), vocab=VOCAB / "cog-pretrain.model", dtype="fp32", device="cpu")
    for block in opened.network.layers:  # recorded with the port, whose GELU is the exact one
        block.activation = GELUS["gelu"]()
    return opened


def gap(values: list[float]) -> float:
    """By how much the best is better than the next: what rounding cannot turn around."""
    best = sorted(values)
    return best[1] - best[0] if len(best) > 1 else 0.0


@pytest.mark.parametrize("case", PANGU["text_cases"], ids=lambda case: case["task"])
def test_pangu_prompts(case: dict[str, Any], pangu: OpenedModel) -> None:
    encoded = [published_scores.encode(pangu, prompt, case["max_length"]) for prompt in case["prompts"]]
    for ids, expected, mask in zip(encoded, case["input_ids"], case["attention_mask"], strict=True):
        assert ids == expected[: sum(mask)]
    found = dict(published_scores.score_prompts(pangu, case["prompts"], case["max_length"]))
    ppls = [found[place].ppl for place in range(len(encoded))]
    assert ppls == pytest.approx(case["as_written_ppl"], abs=0.2)
    if case["pred_as_written"] is not None and gap(case["as_written_ppl"]) > 0.4:
        assert ppls.index(min(ppls)) == case["pred_as_written"]
    nll = [found[place].nll for place in range(len(encoded))]
    assert nll == pytest.approx(case["shifted_mean_nll"], abs=1e-4)
    assert [math.exp(value) for value in nll] == pytest.approx(case["shifted_ppl"], rel=1e-4)
    assert nll.index(min(nll)) == case["pred_shifted"]


@pytest.mark.parametrize("case", PANGU["text_cases"], ids=lambda case: case["task"])
def test_pangu_corrected_scores_by_the_shared_prefix(case: dict[str, Any], pangu: OpenedModel) -> None:
    """What all prompts begin with adds the same to each sum: the recorded means are the sums of both."""
    encoded = [published_scores.encode(pangu, prompt, case["max_length"]) for prompt in case["prompts"]]
    whole = [[Part((ids[0],), False), Part(tuple(ids[1:]), True)] for ids in encoded]
    for score, expected in zip(score_candidates(pangu, [whole])[0], case["shifted_mean_nll"], strict=True):
        assert score.nll / score.tokens == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("case", PANGU["synthetic_cases"], ids=lambda case: case["checkpoint"])
def test_pangu_synthetic(case: dict[str, Any]) -> None:
    model = network(PARITY / "pangu" / case["checkpoint"])
    found = []
    for ids, mask in zip(case["input_ids"], case["attention_mask"], strict=True):
        real = torch.tensor(ids[: sum(mask)])
        with torch.no_grad():
            logits = model(input_ids=real[None]).logits[0]
        found.append(published_scores.published_score(logits, real, model.config.pad_token_id))
    assert [score.ppl for score in found] == pytest.approx(case["as_written_ppl"], rel=1e-5)
    assert [score.nll for score in found] == pytest.approx(case["shifted_mean_nll"], abs=1e-4)
    ppls = [score.ppl for score in found]
    assert ppls.index(min(ppls)) == case["pred_as_written"]


@pytest.mark.parametrize("case", GLM["candidate_ppl"]["cases"], ids=lambda case: case["task"])
def test_glm_prompts(case: dict[str, Any], glm: OpenedModel) -> None:
    for prompt, expected, mask in zip(case["prompts"], case["input_ids"], case["attention_mask"], strict=True):
        assert published_scores.encode(glm, prompt, case["max_length"]) == expected[: sum(mask)]
    found = dict(published_scores.score_prompts(glm, case["prompts"], case["max_length"]))
    ppls = [found[place].ppl for place in range(len(case["prompts"]))]
    assert ppls == pytest.approx(case["as_written_ppl"], abs=2)


@pytest.mark.parametrize("case", GLM["multiple_choice"], ids=lambda case: case["texts"][0])
def test_glm_multiple_choice(case: dict[str, Any], glm: OpenedModel) -> None:
    """Questions with unlike numbers of choices, which the original could not batch, are scored as well."""
    questions = []
    for text, choices in zip(case["texts"], case["choices"], strict=True):
        before, _, after = text.partition("[MASK]")
        questions.append(glm.family.cloze(before, choices, after))
    found = score_candidates(glm, questions)
    for together, question in zip(found, questions, strict=True):
        for one, other in zip(together, score_alone(glm, question), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    if "error" in case:
        return
    for question, ids in zip(questions, case["inputs"]["choice_ids"], strict=True):
        assert [list(parts[-1].ids) for parts in question] == ids
    got = [[-score.nll for score in scores] for scores in found]
    for values, expected in zip(got, case["log_probs"], strict=True):
        assert values == pytest.approx(expected, abs=1e-4)
    loss = torch.nn.functional.cross_entropy(torch.tensor(got), torch.tensor(case["labels"]))
    assert loss.item() == pytest.approx(case["loss"], abs=1e-4)
