"""Sampled decoding with the recorded draws replayed: ids exact, and the probabilities that were drawn from."""

import pytest
import torch
from safetensors.torch import load_file

from hanmo.generation.decode import generate
from tests.parity.eva_models import EVA, MODELS, contexts, opened, settings
from tests.places import load, needs_parity
from tests.searching import drawing

pytestmark = needs_parity("eva")
CASES = [(model, case) for model in MODELS for case in load(EVA / f"sampling_{model}.json")]
TOLERANCE = 1e-5


class Replay:
    """Gives the recorded draws and keeps the probabilities it was asked to draw from."""

    def __init__(self, draws):
        self.draws = draws
        self.probs = {}

    def __call__(self, step, samples, probs, count):
        for row, sample in enumerate(samples):
            self.probs[step, sample] = probs[row].clone()
        drawn = torch.tensor([self.draws[step][sample] for sample in samples])
        return drawn.view(len(samples), count)


@pytest.mark.parametrize(("model", "case"), CASES, ids=lambda value: value["id"] if isinstance(value, dict) else value)
def test_replayed_draws(model, case):
    eva = opened(model, case["args"]["rule_path"])
    replay = Replay(case["draws"])
    with drawing(replay):
        said = generate(eva, contexts(case, eva.tokenizer), settings(case["args"]))
    assert [list(one.ids) for one in said] == case["output_ids"]

    recorded = load_file(EVA / f"sampling_{model}.safetensors")
    compared = 0
    for (step, row), probs in replay.probs.items():
        name = f"{case['id']}/step{step}/row{row}"
        if f"{name}/ids" not in recorded:
            continue
        expected = torch.zeros_like(probs)
        expected[recorded[f"{name}/ids"].long()] = recorded[f"{name}/probs"]
        assert (probs - expected).abs().max() < TOLERANCE, name
        assert (probs > 0).equal(expected > 0), name
        compared += 1
    assert compared >= len(case["recorded_steps"])
