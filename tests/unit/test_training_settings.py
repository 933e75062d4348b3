"""Settings of the stages that are numbers keep to their bounds: the last value that is taken, and the first that is not."""

from typing import Any

import pytest

from hanmo.config import load
from hanmo.errors import ConfigError
from hanmo.training.stages.dpo import DpoConfig
from hanmo.training.stages.grpo import GrpoConfig
from hanmo.training.stages.ppo import PpoConfig
from hanmo.training.stages.pretrain import PretrainConfig
from hanmo.training.stages.reward import RewardConfig
from hanmo.training.stages.sft import SftConfig

GIVEN = ["model=m", "data=d"]
REWARDED = [*GIVEN, "rewards=[a:b]"]
# stage, setting, values at the edge that are taken, values beyond it
BOUNDS: list[tuple[Any, str, tuple[str, ...], tuple[str, ...]]] = [
    (SftConfig, "limit", ("2",), ("1", "0", "-5")),
    (SftConfig, "response_limit", ("2", "null"), ("1",)),
    (SftConfig, "tensor_parallel", ("1", "2"), ("0",)),
    (SftConfig, "freeze", ("0", "0.99"), ("-0.1", "1")),
    (PretrainConfig, "objectives.document", ("0", "0.5"), ("-0.1",)),
    (RewardConfig, "trained_layers", ("0", "0.3", "null"), ("-1",)),
    (RewardConfig, "tensor_parallel", ("1",), ("2",)),
    (DpoConfig, "beta", ("0.001",), ("0", "-1")),
    (DpoConfig, "label_smoothing", ("0", "0.49"), ("-0.1", "0.5")),
    (DpoConfig, "sft_weight", ("0",), ("-0.1",)),
    (GrpoConfig, "group", ("2",), ("1", "0")),
    (GrpoConfig, "samples", ("4", "16"), ("1", "6")),
    (GrpoConfig, "rounds", ("1",), ("0",)),
    (GrpoConfig, "epochs", ("1",), ("0",)),
    (GrpoConfig, "rollout_batch", ("1",), ("0",)),
    (GrpoConfig, "beta", ("0",), ("-0.1",)),
    (GrpoConfig, "clip", ("0.01", "0.99"), ("0", "1")),
    (GrpoConfig, "show_rounds", ("1",), ("0",)),
    (GrpoConfig, "save_rounds", ("0", "1"), ("-1",)),
    (GrpoConfig, "max_kl", ("null", "0.001"), ("0", "-1")),
    (PpoConfig, "samples", ("2",), ("1", "0")),
    (PpoConfig, "gamma", ("0.01", "1"), ("0", "1.01")),
    (PpoConfig, "lam", ("0", "1"), ("-0.01", "1.01")),
    (PpoConfig, "clip_value", ("0.01",), ("0",)),
    (PpoConfig, "clip_reward", ("0",), ("-1",)),
    (PpoConfig, "kl_target", ("null", "0.01"), ("0", "-1")),
    (PpoConfig, "kl_horizon", ("1",), ("0", "-1")),
    (PpoConfig, "value_weight", ("0",), ("-1",)),
]


@pytest.mark.parametrize(
    ("stage", "setting", "taken", "refused"), BOUNDS, ids=lambda one: getattr(one, "__name__", None)
)
def test_settings_keep_to_their_bounds(
    stage: Any, setting: str, taken: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    given = REWARDED if stage in (GrpoConfig, PpoConfig) else GIVEN
    group = ["group=4"] if (stage, setting) == (GrpoConfig, "samples") else []
    for value in taken:
        load(stage, None, overrides=[*given, *group, f"{setting}={value}"])
    for value in refused:
        with pytest.raises(ConfigError, match=f"^{setting.partition('.')[0]}"):
            load(stage, None, overrides=[*given, *group, f"{setting}={value}"])
