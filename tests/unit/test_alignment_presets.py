"""The published settings of the alignment stages: every preset loads, and is what was recorded."""

from typing import Any

import pytest

from hanmo.config import load
from hanmo.families import NAMES, presets
from hanmo.training.stages.dpo import DpoConfig
from hanmo.training.stages.grpo import GrpoConfig
from hanmo.training.stages.ppo import PpoConfig
from hanmo.training.stages.reward import RewardConfig
from tests.places import PARITY
from tests.places import load as load_json

STAGES: dict[str, Any] = {"reward": RewardConfig, "dpo": DpoConfig, "grpo": GrpoConfig, "ppo": PpoConfig}
SHIPPED = [(family, stage, name) for family in NAMES for stage in STAGES for name in presets(family).get(stage, {})]
RECORDED = load_json(PARITY / "clue" / "rl" / "configs.json", {})
OURS = {"pangu-2.6B": ("pangu", "published"), "pangu-350M": ("pangu", "350m"), "glm-350M-chinese": ("glm", "published")}


@pytest.mark.parametrize(("family", "stage", "name"), SHIPPED)
def test_presets_are_settings(family: str, stage: str, name: str) -> None:
    preset = presets(family)[stage][name]
    needed = ["model=m", "data=d", *(["rewards=[a:b]"] if stage in ("ppo", "grpo") else [])]
    config = load(STAGES[stage], preset, overrides=needed)
    assert {key: getattr(config, key) for key in preset} == preset


@pytest.mark.parametrize("recorded", OURS)
def test_ppo_as_recorded(recorded: str) -> None:
    found = next((value for key, value in RECORDED.items() if key.startswith(f"ppo_config_{recorded} ")), None)
    if found is None:
        pytest.skip("no recorded configuration")
    family, name = OURS[recorded]
    ours, method, train = presets(family)["ppo"][name], found["method"], found["train"]
    same = {"samples": "num_rollouts", "epochs": "ppo_epochs", "beta": "init_kl_coef", "kl_target": "target"}
    same |= {"kl_horizon": "horizon", "gamma": "gamma", "lam": "lam", "clip": "cliprange", "value_weight": "vf_coef"}
    same |= {"clip_value": "cliprange_value", "clip_reward": "cliprange_reward", "rollout_batch": "chunk_size"}
    assert {key: ours[key] for key in same} == {key: method[theirs] for key, theirs in same.items()}
    assert ours["trainer"]["per_device_train_batch_size"] == train["batch_size"]
    assert ours["trainer"]["learning_rate"] == found["optimizer"]["kwargs"]["lr"]
    assert ours["generation"] == {key: method["gen_kwargs"][key] for key in ours["generation"]}
    steps = ours["rounds"] * ours["samples"] * ours["epochs"] / train["batch_size"]
    assert train["total_steps"] <= steps < train["total_steps"] + ours["samples"]
    assert ours["limit"] + ours["generation"]["max_new_tokens"] == train["seq_length"]
