"""Every stage with every family on a pretended device: nothing mixes devices, and what is learned is what a CPU learns."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.devices.pretended import pretended
from tests.devices.stages import PAIRS, STAGES, prepare, run_stage
from tests.unit.tiny import NAMES

# Not AdamW, by which a weight whose gradient is 0 but for rounding (a key's bias) moves as far as any other.
SGD = {"optim": "sgd", "learning_rate": 0.1}
TIMES = {"time", "rollout_share"}
# Further forms of a stage that differ little from family to family: one family each runs with the fast tests.
FAST_FORMS = {
    ("sft, packing", "pangu"),
    ("sft, LoRA", "huggingface"),
    ("sft, streams", "transformer_xl"),
    ("reward, tokenwise", "glm"),
    ("dpo, LoRA", "eva"),
}


def _cases() -> list[Any]:
    """With the fast tests each stage of each family runs on one of the two devices, by turns; the rest is slow."""
    cases = []
    for stage, family in PAIRS:
        turn = (list(STAGES).index(stage) + NAMES.index(family)) % 2
        for kind in ("cuda", "mps"):
            base = "," not in stage or (stage, family) in FAST_FORMS
            slow = not base or kind != ("cuda", "mps")[turn]
            cases.append(pytest.param(stage, family, kind, marks=[pytest.mark.slow] if slow else []))
    return cases


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of each family's model and data, made when it is first asked for."""

    @functools.cache
    def folder(family: str) -> Path:
        made = tmp_path_factory.mktemp(family)
        prepare(made, family)
        return made

    return folder


def figures(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("runtime", "per_second")
    return [
        {name: value for name, value in entry.items() if name not in TIMES and not any(part in name for part in timed)}
        for entry in entries
    ]


@pytest.mark.parametrize(("stage", "family", "kind"), _cases())
def test_a_stage_on_a_device(stage: str, family: str, kind: str, prepared: Any, tmp_path: Path) -> None:
    expected = figures(run_stage(stage, prepared(family), tmp_path / "cpu", use_cpu=True, **SGD))
    with pretended(kind):
        found = figures(run_stage(stage, prepared(family), tmp_path / kind, **SGD))
    assert sum("loss" in entry for entry in expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    weights, wanted = (load_file(tmp_path / name / "model" / "model.safetensors") for name in (kind, "cpu"))
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
