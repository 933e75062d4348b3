"""A small EVA with random weights and a vocabulary of its own, for tests that need a model and not a particular one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from hanmo.data.vocabulary import build
from hanmo.families.base import OpenedModel
from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer

TEXT = "你好吗我很好今天天气真不错明天去哪里玩火锅怎么样谢谢再见"


@functools.cache
def tiny_eva() -> OpenedModel:
    """Two layers of 16; its weights are far from zero, so that its predictions differ from place to place."""
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_text("\n".join(build([TEXT], words=20)), encoding="utf-8")
        tokenizer = EvaTokenizer(vocab_file=str(vocab))
    config = EvaConfig(
        vocab_size=len(tokenizer), d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, initializer_range=0.4
    )
    torch.manual_seed(0)
    return OpenedModel(EvaModel(config).eval(), EvaFamily(config, tokenizer), "a tiny EVA")
