"""Pretrain a model on running text, or EVA on dialogues.

Data is text, a document a line, or JSON lines {"text": ...}; or a token store. Each family has its own objective:
the next token (PanGu, transformers models), streams with memory (Transformer-XL), blank filling (GLM), every reply
of a dialogue (EVA).

Example: hanmo train pretrain init:glm-335m-chinese data/corpus.jsonl runs/glm vocab=cog-pretrain.model
"""

from dataclasses import dataclass, field
from pathlib import Path

from hanmo.data.rows.dataset import Rows
from hanmo.data.rows.documents import Documents, Pieces, StoreDocuments, StreamRows, read_documents
from hanmo.data.rows.packing import PackedRows
from hanmo.data.store.token_store import ABOUT, Store
from hanmo.errors import ConfigError, unknown
from hanmo.families.base import OpenedModel
from hanmo.records import Plain, Rejects
from hanmo.training import supervised
from hanmo.training.config import RunConfig
from hanmo.training.data_files import DataFiles, require_some, several
from hanmo.training.lifecycle import Ready, Stage
from hanmo.training.streams import StreamTrainer
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Settings of pretraining; see ``RunConfig`` for the others. ``data`` and ``valid`` may also be token stores.

    Attributes:
        limit: the longest row; for networks with memory a segment, for encoder-decoders the encoder's input. [tokens]
        plain: whether a line of a plain file is running text or a dialogue.
        packing: let short documents share a row without seeing each other; null: where the network can.
        objectives: how often each of the family's objectives is drawn, if it has several; others are 0. [relative
            shares]
        published: the schedule as published, which with accumulation does not reach its end.
    """

    out: str = "runs/pretrain"
    plain: Plain = "text"
    packing: bool | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(objectives=(all(share >= 0 for share in self.objectives.values()), "shares of 0 or more"))

    def find(self, place: str) -> tuple[Path, Path | None]:
        if (Path(place) / ABOUT).is_file():
            return Path(place), Path(self.valid) if self.valid else None
        return super().find(place)


def build(opened: OpenedModel, config: PretrainConfig, files: DataFiles) -> Ready:
    family = opened.family
    for name in config.objectives:
        if not family.objectives:
            raise ConfigError(f"objectives: {family.name} has a single one; leave them out")
        if name not in family.objectives:
            raise ConfigError(unknown("objective", name, family.objectives))
    if config.objectives and not sum(config.objectives.values()):
        raise ConfigError("objectives: all shares are 0")
    train, valid, rejects = files.read(lambda path, rejects: _rows(path, files, opened, config, rejects))
    kinds = [{type(one) for one in getattr(rows, "sources", [rows])} for rows in (train, valid)]
    if valid is not None and not kinds[1] <= kinds[0]:
        names = [", ".join(map(str, several(one))) for one in (files.valid, files.train)]
        raise ConfigError(f"{names[0]}: not the kind of data that {names[1]} holds")
    trainer = StreamTrainer if isinstance(train, StreamRows) else RowTrainer
    return Ready(opened.network, trainer, train, valid, rejects, published=config.published)


def _rows(path: Path, files: DataFiles, opened: OpenedModel, config: PretrainConfig, rejects: Rejects) -> Rows:
    family, seed = opened.family, config.trainer.get("seed", 42)
    documents: Documents
    if (path / ABOUT).is_file():
        documents = StoreDocuments(Store(path, opened.tokenizer), family)
    else:
        records = files.records(path, rejects, plain=config.plain, reply="needed")
        rows, running = read_documents(records, family, config.limit, config.response_limit, rejects)
        if not running and len(rows):
            return _packed(rows, config)
        documents = rows
    if config.template:
        raise ConfigError(f"template: {path} is running text, which no chat template renders; leave it out")
    require_some(documents.lengths, path, "nothing to learn from", rejects)
    if family.streams:
        if config.packing:
            raise ConfigError(f"packing: {family.name} is pretrained on streams, in which nothing is padding")
        return StreamRows(documents, family, config.limit, seed)
    pieces = Pieces(documents, family, config.limit, config.objectives or family.objectives, seed)
    pieces.row(max(range(len(pieces)), key=pieces.lengths.__getitem__))  # fails at once if the family cannot do this
    return _packed(pieces, config)


def _packed(rows: Rows, config: PretrainConfig) -> Rows:
    packing = rows.family.packs and not rows.drawn if config.packing is None else config.packing
    seed = config.trainer.get("seed", 42)
    return PackedRows(rows, config.limit, config.response_limit, seed) if packing else rows


THEN = ("hanmo eval perplexity {model} FILE", "hanmo train sft {model} DATA")
STAGE = pretrain = Stage("pretrain", "Pretraining", PretrainConfig, build, supervised.RESULTS, THEN)
