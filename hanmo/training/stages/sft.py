"""Fine-tune a model on dialogues, or on prompts and responses.

Data is tab-separated turns, one dialogue a line (train.txt), or JSON lines: {"turns": [...]}, messages with roles,
{"prompt", "response"}, {"instruction", "input", "output"}. The run's folder holds the model at the end; Ctrl-C
saves and stops.

Example: hanmo train sft models/eva2.0-base data/kdconv runs/kdconv limit=256 trainer.num_train_epochs=5
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from hanmo.data.rows.dataset import Rows, make_rows
from hanmo.data.rows.documents import StreamRows
from hanmo.data.rows.packing import PackedRows
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.records import Rejects
from hanmo.training import supervised
from hanmo.training.config import TuningConfig
from hanmo.training.data_files import DataFiles, require_some
from hanmo.training.lifecycle import Ready, Stage
from hanmo.training.streams import StreamTrainer
from hanmo.training.trainable import adapted, freeze_layers
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class SftConfig(TuningConfig):
    """Settings of supervised fine-tuning; see ``TuningConfig`` for the others.

    Attributes:
        packing: let short examples share a row without seeing each other.
        streams: lay the examples end to end as streams that carry memory, as published for Transformer-XL; ``limit`` is
            then a segment's length.
        published: the schedule as published, which with accumulation does not reach its end.
        freeze: the share of the layers, from the first, that are not trained. [share]
    """

    out: str = "runs/sft"
    packing: bool = False
    streams: bool = False
    published: bool = False
    freeze: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(freeze=(0 <= self.freeze < 1, "from 0 to below 1, e.g. 0.7"))
        if self.packing and self.streams:
            raise ConfigError("packing and streams: in streams nothing is padding; give one of them")
        if self.freeze and self.lora:
            raise ConfigError("freeze and lora: LoRA already freezes all layers; give one of them")


def build(opened: OpenedModel, config: SftConfig, files: DataFiles) -> Ready:
    if config.streams and not opened.family.streams:
        raise ConfigError(f"streams: {opened.family.name} carries no memory from row to row; streams=false")
    train, valid, rejects = files.read(lambda file, rejects: _rows(file, files, opened, config, rejects))
    freeze_layers(opened.network, config.freeze)
    trainer = StreamTrainer if config.streams else RowTrainer
    return Ready(adapted(opened, config.lora), trainer, train, valid, rejects, published=config.published)


def _rows(file: Path, files: DataFiles, opened: OpenedModel, config: SftConfig, rejects: Rejects) -> Rows:
    limits = (sys.maxsize, None) if config.streams else (config.limit, config.response_limit)
    rows = make_rows(files.records(file, rejects, reply="needed"), opened.family, *limits, rejects)
    require_some(rows, file, "nothing to learn from", rejects)
    seed = config.trainer.get("seed", 42)
    if config.streams:
        return StreamRows(rows, opened.family, config.limit, seed)
    return PackedRows(rows, config.limit, config.response_limit, seed) if config.packing else rows


THEN = ("hanmo chat {model}", "hanmo eval dialogue {model} FILE")
STAGE = sft = Stage("sft", "Supervised fine-tuning", SftConfig, build, supervised.RESULTS, THEN)
