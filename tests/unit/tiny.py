"""Small models with random weights and vocabularies of their own, for tests that need a model of each family."""

import copy
import functools
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from hanmo.checkpoints import open_model
from hanmo.data.prepare.vocabulary import build
from hanmo.families import load
from hanmo.families.base import OpenedModel
from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from tests.unit.transformers_models import write_model

TEXT = "你好吗我很好今天天气真不错明天去哪里玩火锅怎么样谢谢再见啊"  # an even vocabulary, which splits
SENTENCES = [
    TEXT,
    "你好，今天天气怎么样？今天天气真不错。",
    "明天去哪里玩？明天我们去吃火锅，怎么样！",
    "三加五等于几？三加五等于八。",
    "谢谢你，再见。问题：北京在哪里 回答：北京是首都",
]
# family -> what of its smallest configuration is not the default; far from zero, so that predictions differ
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer_xl": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "segment_length": 64, "memory_length": 16},
    "pangu": {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 256},
    "glm": {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "max_sequence_length": 256},
}
PANGU_PIECES = ["▃", "▂", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
NAMES = ("eva", *CONFIGS, "huggingface")


def tiny_eva() -> OpenedModel:
    """A new model of two layers of 16; its weights are far from zero, so that its predictions differ by place."""
    return copy.deepcopy(_tiny_eva())


@functools.cache
def _tiny_eva() -> OpenedModel:
    """What the copies are made of; handed to no test."""
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_text("\n".join(build([TEXT], words=20)), encoding="utf-8")
        tokenizer = EvaTokenizer(vocab_file=str(vocab))
    config = EvaConfig(
        vocab_size=len(tokenizer), d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, initializer_range=0.4
    )
    torch.manual_seed(0)
    return OpenedModel(EvaModel(config).eval(), EvaFamily(config, tokenizer), "a tiny EVA")


def tiny(name: str, folder: Path) -> OpenedModel:
    """A new small model of any family; ``folder`` holds its vocabulary (and, of huggingface, the model)."""
    torch.manual_seed(0)
    if name == "eva":
        return tiny_eva()
    if name == "huggingface":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return open_model(write_model("qwen3", folder), dtype="fp32", device="cpu")
    family = load(name)
    vocab = train_pieces(folder / family.tokenizer_class.vocab_files_names["vocab_file"], name == "pangu")
    tokenizer = family.tokenizer_class(vocab_file=str(vocab))
    rows = -(-len(tokenizer) // 128) * 128 if family.vocab_padded_to > 1 else len(tokenizer)
    made = family(family.config_class(vocab_size=rows, **CONFIGS[name], initializer_range=0.3), tokenizer)
    return OpenedModel(family.network_class(made.config).eval(), made, f"a tiny {name}")


def train_pieces(path: Path, pangu: bool) -> Path:
    """A sentencepiece model of the few sentences above, with the special pieces where the original has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # from and to memory: a trained file would name the files it was made of
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=120,
        character_coverage=1.0,
        user_defined_symbols=PANGU_PIECES if pangu else ["<n>"],
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path
