"""The smallest network and family that a stage can train: letters in, letters out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hanmo.data.rows.dataset import RowDataset
from hanmo.families.base import Family
from hanmo.nn.row_model import RowModel
from hanmo.records import Dialogue, Record
from hanmo.rows import IGNORE, Part, Row

LETTERS = 64


class ToyConfig(PretrainedConfig):
    model_type = "toy"

    def __init__(self, vocab_size: int = LETTERS, hidden_size: int = 8, dropout: float = 0.0, **kwargs: Any):
        super().__init__(tie_word_embeddings=False, **kwargs)
        self.vocab_size, self.hidden_size, self.dropout = vocab_size, hidden_size, dropout


class ToyModel(RowModel):
    """Predicts the next letter from the mean of those so far, through two layers."""

    config_class = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=0.5)

    def backbone(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids) * attention_mask[..., None]
        hidden = hidden.cumsum(1) / attention_mask.cumsum(1)[..., None]
        for layer in self.layers:
            hidden = hidden + self.dropout(torch.tanh(layer(hidden)))
        return self.norm(hidden)

    def prefill(self, **inputs: Tensor) -> Any:
        raise NotImplementedError

    def step(self, *inputs: Any) -> Any:
        raise NotImplementedError


class ToyFamily(Family):
    """Code points modulo the vocabulary; the last turn is learned, each example's tokens weighing 1 in all."""

    name = "toy"
    config_class = ToyConfig
    network_class = ToyModel
    lora_targets = ("layers.0", "layers.1")

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        assert isinstance(record, Dialogue)
        parts = [Part(tuple(ord(letter) % LETTERS for letter in turn), False) for turn in record.turns]
        parts[-1] = Part(parts[-1].ids, True)
        return [parts] if sum(len(part.ids) for part in parts) <= limit else []

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        ids = torch.tensor([id_ for part in parts for id_ in part.ids])
        scored = torch.tensor([part.scored for part in parts for _ in part.ids])[1:]
        weights = scored.float() / scored.sum().clamp_min(1)
        inputs = {"input_ids": ids[:-1], "attention_mask": torch.ones_like(ids[:-1])}
        return Row(inputs, torch.where(scored, ids[1:], IGNORE), weights, len(ids) - 2)

    def prompt(self, context_ids: Sequence[int]) -> Any:
        raise NotImplementedError

    def context(self, record: Record, limit: int) -> Any:
        raise NotImplementedError


def toy_rows(count: int, seed: int = 0) -> RowDataset:
    """Random dialogues of differing lengths as rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = RowDataset(ToyFamily(ToyConfig(), None))  # type: ignore[arg-type]
    for place in range(count):
        lengths = torch.randint(1, 9, (2,), generator=generator).tolist()
        ids = [torch.randint(0, LETTERS, (length,), generator=generator).tolist() for length in lengths]
        rows.append([Part(tuple(ids[0]), False), Part(tuple(ids[1]), True)], f"toy.txt:{place + 1}")
    return rows


def toy_model(dropout: float = 0.0, seed: int = 0) -> ToyModel:
    torch.manual_seed(seed)
    return ToyModel(ToyConfig(dropout=dropout))
