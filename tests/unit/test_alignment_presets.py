"""The published settings of the alignment stages: every preset loads, and is what was recorded."""

from pathlib import Path
from typing import Any

import pytest

from hanmo.cli.train import read_settings
from hanmo.config import load
from hanmo.errors import ConfigError
from hanmo.families import NAMES, presets
from hanmo.training import stages
from hanmo.training.stages.dpo import DpoConfig
from hanmo.training.stages.grpo import GrpoConfig
from hanmo.training.stages.ppo import PpoConfig
from hanmo.training.stages.reward import RewardConfig
from tests.places import PARITY
from tests.places import load as load_json
from tests.unit.alignment_cases import starts

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


# What makes each method of GRPO's kin, in the words of its publication: (baseline, scale, loss, ratio, clip_high, beta == 0)
KIN = {
    "grpo": ("group", True, "reply", "token", None, False),
    "dapo": ("group", True, "token", "token", 0.28, True),
    "dr_grpo": ("group", False, "constant", "token", None, True),
    "gspo": ("group", True, "reply", "reply", 4e-4, True),
    "rloo": ("leave_one_out", False, "constant", "token", None, False),
}


def test_methods_are_presets_of_every_family(tmp_path: Path) -> None:
    """The command line goes over them; a name that neither stage nor family has is answered with those that they have."""
    assert stages.presets("grpo").keys() == KIN.keys() and stages.presets("ppo") == {}
    stage = stages.load_stage("grpo")
    for family in ("pangu", "huggingface"):
        model = str(starts(tmp_path / family, family))
        for name, expected in KIN.items():
            config = read_settings(stage, model, "d", ["rewards=[a:b]", "group=4"], None, name)
            found = (config.baseline, config.scale, config.loss, config.ratio, config.clip_high, config.beta == 0)
            assert found == expected and config.group == 4
            assert (config.mask_truncated, config.resample > 0) == ((True, True) if name == "dapo" else (False, False))
        assert read_settings(stage, model, "d", ["rewards=[a:b]"], None, None) == stage.config(
            model, "d", rewards=("a:b",)
        )
    with pytest.raises(ConfigError, match="dr_grpo"):
        read_settings(stage, model, "d", ["rewards=[a:b]"], None, "drgrpo")


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
