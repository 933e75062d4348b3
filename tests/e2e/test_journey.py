"""One journey for every family: build, save, open, generate, one step of fine-tuning, save, open, same logits."""

from pathlib import Path

import pytest
import torch

from hanmo.checkpoints import open_model, save_model
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse
from hanmo.rows import collate
from hanmo.training.stages.sft import SftConfig, sft
from tests.unit.tiny import NAMES, tiny

PAIRS = [
    PromptResponse("今天天气怎么样？", "今天天气真不错。"),
    PromptResponse("明天去哪里玩？", "我们去吃火锅。"),
    PromptResponse("你好", "你好，谢谢你。"),
    PromptResponse("三加五等于几？", "三加五等于八。"),
]


@pytest.mark.parametrize("name", NAMES)
def test_journey(name: str, tmp_path: Path) -> None:
    built = tiny(name, tmp_path / "vocabulary")
    save_model(built, tmp_path / "saved")
    opened = open_model(tmp_path / "saved", dtype="fp32", device="cpu")
    assert opened.family.name == name

    greedy = Settings(do_sample=False, max_new_tokens=8)
    context = built.family.context(Dialogue(("你好", "谢谢你", "再见")), 64)
    (reply,), (expected,) = generate(opened, [context], greedy), generate(built, [context], greedy)
    assert reply.ids == expected.ids
    assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-5)

    data = tmp_path / "train.jsonl"
    data.write_text("".join(f'{{"prompt": "{p.prompt}", "response": "{p.response}"}}\n' for p in PAIRS))
    trainer = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True, "seed": 0}
    config = SftConfig(str(tmp_path / "saved"), str(data), str(tmp_path / "run"), limit=64, trainer=trainer)
    outcome = sft(config)
    assert outcome.steps == 1 and outcome.rows == len(PAIRS)

    trained = open_model(outcome.model, dtype="fp32", device="cpu")
    rows = [trained.family.row(parts) for pair in PAIRS for parts in trained.family.parts(pair, 64)]
    batch = collate(rows, trained.family.padding)
    with torch.no_grad():
        before, after = opened.network(**batch), trained.network(**batch)
    assert after.loss < before.loss  # it has learned something of what it was shown

    save_model(trained, tmp_path / "again")
    again = open_model(tmp_path / "again", dtype="fp32", device="cpu")
    with torch.no_grad():
        assert torch.equal(again.network(**batch).logprob, after.logprob)
