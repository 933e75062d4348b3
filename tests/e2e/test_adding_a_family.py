"""The worked example of docs/adding-a-family.md is a family like any other."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo import families
from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue
from hanmo.rows import Context
from hanmo.training.stages.sft import SftConfig, sft

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-family.md"


@pytest.fixture
def gru(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's files as the package hanmo.families.gru, for one test."""
    files = re.findall(r"```python file=(\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert {name for name, _ in files} == {"modeling.py", "tokenization.py", "original_format.py", "family.py"}
    folder = tmp_path / "families" / "gru"
    folder.mkdir(parents=True)
    for name, text in [("__init__.py", ""), *files]:
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder.parent)])
    monkeypatch.setattr(families, "NAMES", (*families.NAMES, "gru"))
    monkeypatch.setattr(families, "OURS", (*families.OURS, "gru"))
    return importlib.import_module("hanmo.families.gru.family").FAMILY


def test_worked_example(gru: Any, tmp_path: Path) -> None:
    vocab = tmp_path / "characters.txt"
    vocab.write_text("\n".join(["<pad>", "<eos>", "<unk>", *"你好吗我很谢再见。？"]), encoding="utf-8")
    tokenizer = gru.tokenizer_class(vocab_file=str(vocab))
    torch.manual_seed(0)
    config = gru.config_class(vocab_size=len(tokenizer))
    built = OpenedModel(gru.network_class(config).eval(), gru(config, tokenizer), "built")

    save_model(built, tmp_path / "saved")
    opened = open_model(tmp_path / "saved", device="cpu")
    greedy = Settings(do_sample=False, max_new_tokens=6)
    contexts = [built.family.context(Dialogue(turns), 32) for turns in (("你好吗？",), ("谢谢",))]
    together = [reply.ids for reply in generate(opened, contexts, greedy)]
    assert together == [generate(built, [context], greedy)[0].ids for context in contexts]
    assert isinstance(contexts[0], Context)

    convert(tmp_path / "saved", tmp_path / "original", to="original")
    weights = torch.load(tmp_path / "original" / "pytorch_model.bin", weights_only=True)
    assert set(weights) >= {"emb.weight", "rnn.weight_ih", "out.bias"}
    (tmp_path / "original" / "config.json").write_text(json.dumps({"chars": len(tokenizer), "width": 32}))
    back = open_model(tmp_path / "original", vocab=vocab, device="cpu")
    assert torch.equal(back.network.cell.weight_ih, built.network.cell.weight_ih)

    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "你好吗？", "response": "我很好。"}\n' * 8, encoding="utf-8")
    trainer = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 0.05, "use_cpu": True}
    outcome = sft(SftConfig(str(tmp_path / "saved"), str(data), str(tmp_path / "run"), limit=32, trainer=trainer))
    taught = open_model(outcome.model, device="cpu")
    (reply,) = generate(taught, [taught.family.context(Dialogue(("你好吗？",)), 32)], greedy)
    assert taught.family.decode(reply.ids) == "我很好。"
