"""EVA's score rules, filters and hypothesis list against the recorded units."""

import functools

import pytest
import torch

from hanmo.families.decoding import SearchConventions
from hanmo.families.eva.decoding import EvaLogitsProcessor, Vocabulary, read_antonyms
from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.generation.beam import Hypotheses
from hanmo.generation.processors import top_k, top_p
from hanmo.generation.settings import Settings
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("eva")
EVA = PARITY / "eva"
ANTONYMS = EvaFamily.asset_files["antonyms"]
UNITS = load(EVA / "rules_units.json", {"postprocess": [], "filters": [], "beam_hypotheses": []})


@functools.cache
def book(vocab: str, rules: str | None) -> Vocabulary:
    return Vocabulary(EvaTokenizer(str(EVA / vocab)), read_antonyms(EVA / rules / ANTONYMS) if rules else ())


def base_scores(rows: int, vocabulary: int) -> torch.Tensor:
    """The formula of the file."""
    row, token = torch.arange(rows)[:, None], torch.arange(vocabulary)
    return ((token * 7919 + row * 104729) % 1009).float() / 64 - 9


def split(ids: list[int], new: int) -> tuple[list[int], list[int]]:
    """The unit knows only all ids and how many of them were generated."""
    return ids[: len(ids) - new], ids[len(ids) - new :]


@pytest.mark.parametrize("unit", UNITS["postprocess"], ids=lambda unit: unit["id"])
def test_postprocess(unit):
    vocabulary = book(unit["vocab"], unit["rules"] if unit["antonyms"] else None)
    settings = Settings(
        repetition_penalty=unit["repetition_penalty"],
        no_repeat_ngram_size=unit["no_repeat_ngram_size"],
        min_new_tokens=unit["min_length"],
        published=True,
    )
    # cur_len counts generated tokens and may exceed the ids of the unit; then all of them are generated ones.
    new = unit["cur_len"]
    rows = unit["input_ids"]
    expected = base_scores(len(rows), len(vocabulary.texts))
    for row, changes in enumerate(unit["changed"]):
        for token, score in changes:
            expected[row, token] = score
    if new > min(map(len, rows)):
        assert new >= unit["min_length"], "the length rule does not depend on more than the ids there are"
        settings = settings.change(min_new_tokens=0)
        new = min(map(len, rows))
    contexts, generated = zip(*(split(ids, new) for ids in rows), strict=True)
    processor = EvaLogitsProcessor(vocabulary, settings, contexts)
    scores = processor(generated, range(len(rows)), base_scores(len(rows), len(vocabulary.texts)))
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("unit", UNITS["postprocess"], ids=lambda unit: unit["id"])
def test_bans_alone(unit):
    vocabulary = book(unit["vocab"], unit["rules"] if unit["antonyms"] else None)
    processor = EvaLogitsProcessor(
        vocabulary, Settings(no_repeat_ngram_size=unit["no_repeat_ngram_size"]), unit["input_ids"]
    )
    if unit["banned_ngram"] is not None:
        assert [sorted(state.repetitions([])) for state in processor._contexts] == unit["banned_ngram"]
    if unit["banned_antonym"] is not None:
        shared = sorted(set().union(*(state.antonyms([]) for state in processor._contexts)))
        assert [shared] * len(unit["input_ids"]) == unit["banned_antonym"]


@pytest.mark.parametrize(
    "unit", UNITS["filters"], ids=lambda unit: f"{unit.get('V', 'ties')}-{unit['top_k']}-{unit['top_p']}"
)
def test_filters(unit):
    if "values" in unit:
        scores = torch.tensor(unit["values"])
    else:
        scores = base_scores(unit["rows"], unit["V"]) / 2 + torch.arange(unit["V"]).float() * 1e-4
    cut = SearchConventions().cut
    kept = top_p(top_k(scores, unit["top_k"], cut), unit["top_p"], cut) > cut
    found = [row.nonzero()[:, 0].tolist() for row in kept]
    expected = unit["kept"] if isinstance(unit["kept"][0], list) else [unit["kept"]]
    assert found == expected


@pytest.mark.parametrize("unit", UNITS["beam_hypotheses"], ids=str)
def test_hypotheses(unit):
    kept = Hypotheses(unit["num_beams"], unit["length_penalty"], unit["early_stopping"])
    for event in unit["events"]:
        kept.add(list(range(event["add_len"])), event["add_sum_logprobs"], event["add_len"])
        assert [hypothesis.score for hypothesis in kept.kept] == pytest.approx(event["kept"], abs=1e-12)
        assert kept.kept[0].score == pytest.approx(event["worst_score"], abs=1e-12)
        query = event["is_done_query"]
        assert kept.is_done(query["best_sum_logprobs"], query["cur_len"]) == event["is_done"]
