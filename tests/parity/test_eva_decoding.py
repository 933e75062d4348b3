"""Deterministic decoding against the original, ids exact: as published, and the recorded variant of its beam search."""

from dataclasses import replace

import pytest

from hanmo.families.eva.family import EvaFamily
from hanmo.generation.decode import generate
from tests.parity.eva_models import EVA, MODELS, contexts, opened, settings
from tests.places import load, needs_parity

pytestmark = needs_parity("eva")
RECORDED = [(model, load(EVA / f"decode_{model}.json", {})) for model in MODELS]
ORIGINAL = [(model, case) for model, sets in RECORDED for case in sets.get("original", [])]
# The original's code with only the first beam alive at first: a real beam search. Test only: no switch leads here.
VARIANT = [(model, case) for model, sets in RECORDED for case in sets.get("variant_first_beam_only", [])]


def named(value):
    return value["id"] if isinstance(value, dict) else value


@pytest.mark.parametrize(("model", "case"), ORIGINAL, ids=named)
def test_original(model, case):
    eva = opened(model, case["args"]["rule_path"])
    said = generate(eva, contexts(case, eva.tokenizer), settings(case["args"]))
    assert [list(one.ids) for one in said] == case["output_ids"]
    assert [eva.family.decode(one.ids) for one in said] == case["output_text"]


@pytest.mark.parametrize(("model", "case"), VARIANT, ids=named)
def test_variant(model, case, monkeypatch):
    eva = opened(model, case["args"]["rule_path"])
    monkeypatch.setattr(
        eva.family, "published_conventions", replace(EvaFamily.published_conventions, first_beam_only=True)
    )
    said = generate(eva, contexts(case, eva.tokenizer), settings(case["args"]))
    assert [list(one.ids) for one in said] == case["output_ids"]


@pytest.mark.parametrize(("model", "case"), [(m, c) for m, c in ORIGINAL if c["is_done_ties"]], ids=named)
def test_ties_taken_as_not_done(model, case, monkeypatch):
    """The recorded other side of a tie: what comes out where rounding decides against being done."""
    eva = opened(model, case["args"]["rule_path"])
    monkeypatch.setattr(eva.family, "published_conventions", replace(EvaFamily.published_conventions, tie=-1e-5))
    said = generate(eva, contexts(case, eva.tokenizer), settings(case["args"]))
    assert [list(one.ids) for one in said] == case["output_ids_if_ties_are_not_done"]
