"""Small models that decode through our loop and through transformers' own generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, T5ForConditionalGeneration

from hanmo.checkpoints import save_model
from hanmo.checkpoints.convert import convert
from hanmo.families.base import Family, OpenedModel
from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.nn.causal import causal_prompt, causal_row
from hanmo.rows import Context, Part, Prompt, Row

GPT2_STOP, GPT2_SIZE = 0, 24


class WholeSequence:
    """A causal model of transformers behind our decoding protocol: it reads the whole sequence at every step."""

    def __init__(self, model: Any):
        self.model, self.training = model, False
        self.device = model.device
        self.rows_read: list[int] = []

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def prefill(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, Any]:
        state = Sequences(input_ids, attention_mask, position_ids)
        return self._logits(state), state

    def step(self, ids: Tensor, positions: Tensor, state: Any) -> Tensor:
        state.ids = torch.cat([state.ids, ids], 1)
        state.mask = torch.cat([state.mask, torch.ones_like(ids)], 1)
        state.positions = torch.cat([state.positions, positions[:, 0]], 1)
        return self._logits(state)

    def _logits(self, state: Any) -> Tensor:
        self.rows_read.append(len(state.ids))
        return self.model(state.ids, attention_mask=state.mask, position_ids=state.positions).logits[:, -1:]


class Sequences(SimpleNamespace):
    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor):
        super().__init__(ids=ids, mask=mask, positions=positions)

    def take(self, rows: Tensor) -> Sequences:
        return Sequences(self.ids[rows], self.mask[rows], self.positions[rows])


class CausalFamily(Family):
    name = "causal"
    stop_ids: tuple[int, ...] = (GPT2_STOP,)

    def parts(self, record: Any, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        raise NotImplementedError

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        return causal_row(parts, GPT2_STOP, stop, feed_stop)

    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        return causal_prompt(context_ids, self.stop_ids)

    def context(self, record: Any, limit: int) -> Context:
        return Context(record, record)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + index) for index in ids)


def gpt2(seed: int, stop_bias: float = 0.0) -> OpenedModel:
    """A random GPT-2 whose stop token is made more likely."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=GPT2_SIZE, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=GPT2_STOP, eos_token_id=GPT2_STOP, pad_token_id=GPT2_STOP, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(GPT2_SIZE).index_fill(0, torch.tensor(GPT2_STOP), stop_bias))
    tokenizer: Any = range(GPT2_SIZE)
    return OpenedModel(WholeSequence(model), CausalFamily(config, tokenizer), "random")


TOKENS = ["<unk>", "<s_0>", "\u2582", "\u2583", "<sep>", "<pad>", "", "<eod>", ",", "，", "。", "但", "不过"]
TOKENS += [*"天气很好不坏今明来了", "天气", "今天", "明天", "很好", "不好", "<s_1>"]


def eva_tokenizer(folder: Path) -> EvaTokenizer:
    file = folder / "vocab.txt"
    file.write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return EvaTokenizer(str(file))


def eva(seed: int, folder: Path, assets: dict[str, str] | None = None) -> OpenedModel:
    torch.manual_seed(seed)
    tokenizer = eva_tokenizer(folder)
    config = EvaConfig(
        vocab_size=len(TOKENS), d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, initializer_range=0.3
    )
    return OpenedModel(EvaModel(config).eval(), EvaFamily(config, tokenizer, assets or {}), "random")


def as_t5(opened: OpenedModel, folder: Path) -> T5ForConditionalGeneration:
    save_model(opened, folder / "ours")
    convert(folder / "ours", folder / "t5", to="hf")
    return T5ForConditionalGeneration.from_pretrained(folder / "t5").eval()
