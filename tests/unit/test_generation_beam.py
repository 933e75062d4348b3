"""Beam bookkeeping: hand-computed searches, and the recorded steps of an old beam scorer."""

import math

import pytest

from hanmo.errors import ConfigError
from hanmo.families.decoding import SearchConventions
from hanmo.generation.beam import DEAD, BeamSearch, Hypotheses
from hanmo.generation.settings import Settings
from tests.places import PARITY, load, needs_parity

STOP, A, B, C = 9, 1, 2, 3
# transformers before the current step counted, as a scorer recorded with Transformer-XL does
OLD = SearchConventions(length="with_prompt", lookahead=0, stop_is_open=True)
SCORER = load(PARITY / "transformer_xl" / "decode" / "beam_scorer.json")


def search(form=None, samples=1, **settings) -> BeamSearch:
    settings = Settings(**{"num_beams": 2, "min_new_tokens": 1, **settings})
    return BeamSearch(samples, settings, form or SearchConventions(), (STOP,), prompt_width=4, pad_id=0)


def test_only_the_first_beam_is_alive_at_first():
    assert search().totals == [0.0, DEAD]
    assert search(SearchConventions(first_beam_only=False)).totals == [0.0, 0.0]


def test_a_search_by_hand():
    """Two beams over three steps; scores divide by the number of tokens, the stop token among them."""
    beams = search()
    # Step 1: all candidates come from the first beam; the stop token ranks second, so its reply is stored.
    assert beams.advance([[0, 0, 0, 1]], [[A, STOP, B, A]], [[-0.5, -1.0, -1.5, DEAD]]) == ([0, 0], [A, B])
    assert beams.generated == [[A], [B]] and beams.totals == [-0.5, -1.5] and not beams.finished
    # Step 2: both go on from the first beam; the stop token ranks third of two beams: passed over.
    assert beams.advance([[0, 0, 1, 0]], [[C, A, STOP, B]], [[-0.7, -0.9, -1.6, -2.0]]) == ([0, 0], [C, A])
    assert beams.generated == [[A, C], [A, A]]
    # Step 3: the stop token is best: -0.8 / 3 is stored. Kept: -1.0 and -0.267. The best open beam can get
    # -1.2 / 3 = -0.4, which is above the worst kept.
    assert beams.advance([[0, 1, 0, 1]], [[STOP, B, A, C]], [[-0.8, -1.2, -1.3, -3.0]]) == ([1, 0], [B, A])
    assert not beams.finished
    # Step 4: open beams get -2.4 / 4 = -0.6; -1.3 / 4 = -0.325 replaces -1.0: nothing open is better any more.
    assert beams.advance([[1, 0, 0, 1]], [[STOP, A, B, C]], [[-1.3, -2.4, -2.5, -3.0]]) == ([], [])
    assert beams.finished and beams.live == []
    [kept] = beams.results()
    assert [one.ids for one in kept] == [(A, C), (A, C, A)]
    assert [one.score for one in kept] == pytest.approx([-0.8 / 3, -1.3 / 4])
    assert all(one.finished for one in kept)


def test_open_beams_are_offered_at_the_end():
    beams = search(length_penalty=2.0)
    beams.advance([[0, 0, 0, 0]], [[A, B, C, STOP]], [[-1.0, -2.0, -3.0, -4.0]])
    [kept] = beams.results()
    assert [(one.ids, one.score, one.finished) for one in kept] == [((A,), -1.0, False), ((B,), -2.0, False)]


@pytest.mark.parametrize(
    ("length", "expected"), [("with_stop", -3.0 / 3), ("without_stop", -3.0 / 2), ("with_prompt", -3.0 / 6)]
)
def test_what_a_length_counts(length, expected):
    beams = search(SearchConventions(length=length))
    for candidates in ([A, B, C, 4], [A, B, C, 4]):
        beams.advance([[0, 0, 0, 0]], [candidates], [[-0.1, -0.2, -0.3, -0.4]])
    beams.advance([[0, 0, 0, 0]], [[STOP, A, B, C]], [[-3.0, -30.0, -31.0, -32.0]])
    assert max(one.score for one in beams.results()[0] if one.finished) == pytest.approx(expected)


def test_early_stopping_ends_with_enough_replies():
    beams = search(early_stopping=True)
    beams.advance([[0, 0, 0, 0]], [[STOP, A, B, C]], [[-5.0, -5.1, -5.2, -5.3]])
    assert not beams.finished
    beams.advance([[0, 1, 0, 1]], [[A, STOP, B, C]], [[-5.2, -5.3, -5.4, -5.5]])
    assert beams.finished
    assert [one.ids for one in beams.results()[0]] == [(B,), ()]


def test_samples_are_independent_and_finished_ones_leave():
    beams = search(samples=2, early_stopping=True, num_beams=1)
    assert beams.advance([[0, 0], [0, 0]], [[STOP, A], [B, C]], [[-1, -2], [-1, -2]]) == ([1], [B])
    assert beams.live == [1] and beams.done == [True, False]
    assert beams.advance([[0, 0]], [[STOP, A]], [[-1.5, -2]]) == ([], [])
    assert [[one.ids for one in kept] for kept in beams.results()] == [[()], [(B,)]]


def test_finished_samples_may_stay_as_padding():
    """As in EVA's original: a last real step, then the ids of the batch's first row and padding."""
    form = SearchConventions(keeps_finished=True, length="without_stop", lookahead=0)
    beams = search(form, samples=2, early_stopping=True, num_beams=1)
    beams.advance([[0, 0], [0, 0]], [[A, B], [B, C]], [[-1, -2], [-1, -2]])
    assert beams.advance([[0, 0], [0, 0]], [[C, A], [STOP, A]], [[-1, -2], [-1, -2]]) == ([0, 1], [C, A])
    assert beams.done == [False, True] and beams.generated == [[A, C], [B, A]]
    assert beams.advance([[0, 0], [0, 0]], [[B, A], [A, A]], [[-1, -2], [-1, -2]]) == ([0, 1], [B, 0])
    assert beams.generated == [[A, C, B], [A, C, 0]] and beams.totals == [-1, 0.0]


def test_too_few_candidates_leave_dead_beams():
    """A narrow filter may leave one candidate: the other beam waits until there are more."""
    beams = search()
    beams.advance([[0, 0, 0, 1]], [[A, B, C, A]], [[-1.0, DEAD, DEAD, DEAD]])
    assert beams.totals == [-1.0, DEAD] and not beams.finished
    beams.advance([[0, 0, 1, 1]], [[B, C, A, B]], [[-1.5, -2.0, DEAD, DEAD]])
    assert beams.generated == [[A, B], [A, C]]
    assert len(beams.results()[0]) == 2


def test_ties_count_as_done_only_within_the_tolerance():
    nearly = -1.0 - 1e-7
    for tie, expected in ((0.0, False), (1e-5, True)):
        kept = Hypotheses(1, 1.0, False, tie)
        kept.add([A], nearly, 1)
        assert kept.is_done(-1.0, 1) is expected


def test_the_worst_goes_and_of_equals_the_older_stays():
    kept = Hypotheses(2, 1.0, False)
    for ids, total in (([A], -1.0), ([B], -3.0), ([C], -2.0), ([4], -2.0)):
        kept.add(ids, total, 1)
    assert [one.ids for one in kept.kept] == [(C,), (A,)]


def test_a_length_that_could_be_zero_is_refused():
    with pytest.raises(ConfigError, match="min_new_tokens=0"):
        search(SearchConventions(length="without_stop"), min_new_tokens=0)


@needs_parity("transformer_xl")
@pytest.mark.parametrize("case", SCORER, ids=lambda case: f"{case['num_beams']}-{case['length_penalty']}")
def test_recorded_scorer(case):
    beams, samples = case["num_beams"], case["batch_size"]
    settings = Settings(num_beams=beams, length_penalty=case["length_penalty"], early_stopping=case["early_stopping"])
    prompt = case["steps"][0]["input_ids"][0]
    running = BeamSearch(samples, settings, OLD, (case["eos"],), prompt_width=len(prompt))
    width = running.width
    for step in case["steps"]:
        # The recorded scorer is asked about finished samples as well; our batch has only the others.
        live = list(running.live)
        rows = [row for sample in live for row in range(sample * beams, (sample + 1) * beams)]
        first = [step["input_ids"][sample * beams][: len(prompt)] for sample in live for _ in range(beams)]
        assert [step["input_ids"][row] for row in rows] == [
            [*p, *s] for p, s in zip(first, running.generated, strict=True)
        ]
        ids = [
            [step[name][sample][:width] for sample in live] for name in ("next_indices", "next_tokens", "next_scores")
        ]
        _, tokens = running.advance(*ids)
        assert running.done == step["done"]
        rows = [row for sample in running.live for row in range(sample * beams, (sample + 1) * beams)]
        assert tokens == [step["out_tokens"][row] for row in rows]
        assert running.totals == pytest.approx([step["out_scores"][row] for row in rows])
    for found, sample in zip(running.results(), range(samples), strict=True):
        start = case["steps"][0]["input_ids"][sample * beams]
        recorded = sorted(case["hypotheses"][sample])
        assert sorted(one.score for one in found) == pytest.approx([score for score, _ in recorded])
        assert sorted([*start, *one.ids] for one in found) == sorted(ids for _, ids in recorded)
        assert all(math.isfinite(one.score) for one in found)
