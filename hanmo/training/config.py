"""The settings that stages of training have in common."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hanmo import config as settings
from hanmo.errors import ConfigError
from hanmo.training.arguments import TRAINER, default_settings
from hanmo.training.data_files import DataFiles, find_files, name_files
from hanmo.training.schedules import Schedule
from hanmo.training.trainable import LoraSettings

RESERVED = TRAINER["reserved"]
ARGUMENTS = settings.settings_of("transformers.TrainingArguments", **RESERVED["every stage"])
MERGED: Literal["merged"] = "merged"
ADAPTER: Literal["adapter"] = "adapter"
LORA = settings.settings_of("hanmo.training.trainable.LoraSettings")


@dataclass(frozen=True)
class RunConfig:
    """Settings of every stage.

    Attributes:
        model: the model to start from, or ``init:SIZE``: random weights in the shape of a released size.
        data: a folder with train.* and, if there is one, valid.* or dev.*; or the training file; or a list of them,
            e.g. [a.jsonl, b.jsonl], with shares [a.jsonl:0.7, b.jsonl:0.3] (docs/training.md says what they mean).
        out: the run's folder.
        valid: the validation file, if it is not in the data folder.
        size: the released size of an original checkpoint, if its files do not determine it.
        original_config: the model configuration (JSON) of an original checkpoint.
        vocab: the vocabulary file of an original checkpoint that has none beside its weights, or of a new model.
        rules: a folder of EVA's score rules (antonyms), which is saved with the model.
        adapter: a folder with a LoRA adapter in peft's form, which is merged into the model at the start.
        template: arguments of the model's chat template, e.g. ``{enable_thinking: false}``.
        shape: changes to the configuration of the size, for a new model, e.g. ``{num_layers: 2}``.
        limit: the longest row; for encoder-decoders, the longest encoder input. Longer records are left out and listed
            in rejects.jsonl. [tokens]
        response_limit: the longest decoder input, for encoder-decoders; null: ``limit``. [tokens]
        schedule: a learning-rate schedule of the original systems; null: trainer.lr_scheduler_type.
        skip_bad: leave out bad records and list them in rejects.jsonl, instead of stopping at the first.
        selective_checkpointing: keep for the backward pass only the results of matrix products and attention, and
            compute the rest of every layer again there (Korthikanti et al. 2022).
        tensor_parallel: parts that the model is split into, each in its own process (set by --tensor-parallel). [ranks]
        trainer: settings of transformers.TrainingArguments.
    """

    model: str
    data: str | tuple[str, ...]
    out: str = "runs/run"
    valid: str | None = None
    size: str | None = None
    original_config: str | None = None
    vocab: str | None = None
    rules: str | None = None
    adapter: str | None = None
    template: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    limit: int = 512
    response_limit: int | None = None
    schedule: Schedule | None = None
    skip_bad: bool = False
    selective_checkpointing: bool = False
    tensor_parallel: int = 1
    trainer: dict[str, Any] = field(default_factory=dict, metadata=ARGUMENTS)

    def __post_init__(self) -> None:
        self.require(
            limit=(self.limit >= 2, "at least 2"),
            response_limit=(self.response_limit is None or self.response_limit >= 2, "at least 2"),
            tensor_parallel=(self.tensor_parallel >= 1, "at least 1"),
        )
        full = self._trainer_has("activation_checkpointing", "gradient_checkpointing")
        if self.selective_checkpointing and full:
            raise ConfigError(f"selective_checkpointing and trainer.{full}: the latter keeps less; give one of them")
        other = self._trainer_has("deepspeed", "fsdp")
        if self.tensor_parallel > 1 and other:
            raise ConfigError(f"tensor_parallel={self.tensor_parallel} and trainer.{other}: give one of them")

    def _trainer_has(self, *names: str) -> str | None:
        return next((name for name in names if self.trainer.get(name)), None)

    def require(self, **checks: tuple[bool, str]) -> None:
        """Raise ConfigError for the first setting whose check, (passed, expected value), fails."""
        settings.require(self, **checks)

    def files(self) -> DataFiles:
        """The training and the validation files."""
        return name_files(self.data, self.find, self.skip_bad)

    def find(self, place: str) -> tuple[Path, Path | None]:
        """Training and validation file of one place that ``data`` names."""
        return find_files(place, self.valid)

    def trainer_settings(self, has_valid: bool) -> dict[str, Any]:
        """``trainer`` with the stage's defaults where a setting is not given."""
        return default_settings(self.trainer, has_valid)


@dataclass(frozen=True)
class TuningConfig(RunConfig):
    """Settings of the stages that change a model a little; see ``RunConfig`` for the others.

    Attributes:
        lora: settings of LoRA adapters, which are trained instead of the weights. {}: no adapters.
        save: what a run with adapters leaves: "merged" a model with the adapters in its weights (RUN/model), "adapter" the
            adapters alone in peft's form (RUN/adapter), "both" both.
    """

    lora: dict[str, Any] = field(default_factory=dict, metadata=LORA)
    save: Literal["merged", "adapter", "both"] = MERGED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora:
            LoraSettings(**self.lora)
        elif self.save != MERGED:
            raise ConfigError(f"save={self.save}: this run trains no adapters; give lora.rank=8, or leave save out")
        if self.adapter and self.save != MERGED:
            raise ConfigError(
                f"save={self.save}: the new adapter would stand on {self.model} with {self.adapter}, and an adapter names "
                "one model: merge the first one (hanmo convert MODEL FOLDER --adapter FOLDER) and train on that"
            )


@dataclass(frozen=True)
class AlignmentConfig(TuningConfig):
    """Settings of every alignment stage; see ``TuningConfig`` for the others.

    Attributes:
        trained_layers: how many of the last layers of every stack are trained: below 1 a share, rounded down to whole
            layers (0.3 of 32 is 9), from 1 on a number; null or less than one layer: all. Embeddings, norms and heads
            are always trained. [layers, or a share of them]
    """

    trained_layers: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.trained_layers
        self.require(
            trained_layers=(layers is None or layers >= 0, "a share, a number of layers or null"),
            tensor_parallel=(
                self.tensor_parallel == 1,
                "1: value heads, references and replies need the whole network in every process; use --nproc",
            ),
        )
        if layers is not None and self.lora:
            raise ConfigError("trained_layers and lora: LoRA already freezes all layers; give one of them")
