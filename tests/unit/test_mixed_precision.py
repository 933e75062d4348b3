"""16-bit training: gradients under autocast and the gradient scaler, and what becomes of numbers beyond fp16's range."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.open import DTYPES
from hanmo.errors import NotANumberError
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse
from hanmo.rows import collate
from hanmo.training.trainable import switch_dropout_off
from tests.devices.pretended import pretended
from tests.unit.tiny import NAMES, tiny, tiny_eva

TEXTS = [("你好吗", "我很好"), ("明天去哪里玩", "我们去吃火锅。今天天气真不错"), ("谢谢", "不客气")]
SCALE = 2.0**12


def gradients(opened: OpenedModel, dtype: torch.dtype | None, within: bool = False) -> torch.Tensor:
    """All gradients end to end, of a loss that is scaled before the backward pass; ``within``: that runs under autocast too."""
    network = opened.network.train()
    switch_dropout_off(network)
    rows = [opened.family.row(opened.family.parts(PromptResponse(*text), 48)[0]) for text in TEXTS]
    batch = collate(rows, opened.family.padding)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    lowered = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    network.zero_grad()
    with lowered:
        loss = network(**batch).loss
        if within:
            scaler.scale(loss).backward()
    if not within:
        scaler.scale(loss).backward()
    found = [one.grad.flatten() / SCALE for one in network.parameters() if one.grad is not None]
    return torch.cat(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_fp32_up_to_rounding(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    right = gradients(opened, None)
    for within in (False, True):
        found = gradients(opened, dtype, within)
        assert torch.isfinite(found).all()
        near = (0.9999, 0.02) if dtype == torch.float16 else (0.99, 0.1)
        assert torch.nn.functional.cosine_similarity(found, right, dim=0) > near[0]
        assert found.norm().item() == pytest.approx(right.norm().item(), rel=near[1])


def test_what_fp16_cannot_hold_is_refused_by_name() -> None:
    """The gated product of EVA's feed-forward goes beyond 65,504 before the next layer makes it small again."""
    opened = tiny_eva()
    for block in (*opened.network.encoder.blocks, *opened.network.decoder.blocks):
        with torch.no_grad():
            block.ff.wi_0.weight.mul_(3000)
            block.ff.wi_1.weight.mul_(3000)
            block.ff.wo.weight.mul_(1e-6)
    context, settings = opened.family.context(Dialogue(("你好",)), 64), Settings(max_new_tokens=4, do_sample=False)
    [right] = generate(opened, [context], settings)
    opened.network.to(torch.bfloat16)
    [survives] = generate(opened, [context], settings)
    assert survives.ids and survives.logprobs[0] == pytest.approx(right.logprobs[0], abs=0.1)
    opened.network.to(torch.float16)
    with pytest.raises(NotANumberError, match=r"EvaModel in float16 .* 65,504, .* try --dtype bf16"):
        generate(opened, [context], settings)


@pytest.mark.parametrize(
    ("name", "knows", "expected"), [("eva", True, "bf16"), ("eva", False, "fp16"), ("pangu", True, "fp16")]
)
def test_replies_are_computed_in_bf16_where_fp16_may_not_do(
    name: str, knows: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tiny(name, tmp_path / "vocabulary")
    opened.network.half()
    save_model(opened, tmp_path / "half")
    with pretended("cuda"):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: knows)
        found = open_model(tmp_path / "half", avoid_fp16=True)
        assert found.network.dtype == DTYPES[expected]
        assert found.source.endswith("fp16 computed in bf16" if expected == "bf16" else "fp16")
        assert open_model(tmp_path / "half").network.dtype == torch.float16  # an evaluation keeps to the files
        assert open_model(tmp_path / "half", device="cpu", avoid_fp16=True).network.dtype == torch.float32


def test_fp32_is_fp32(tmp_path: Path) -> None:
    """TF32 multiplies with ten bits; it stays off."""
    save_model(tiny("pangu", tmp_path / "vocabulary"), tmp_path / "model")
    with pretended("cuda"):
        open_model(tmp_path / "model")
    assert not torch.backends.cuda.matmul.allow_tf32


def test_cudnns_attention_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", chosen.append)
    save_model(tiny("pangu", tmp_path / "vocabulary"), tmp_path / "model")
    open_model(tmp_path / "model", device="cpu")
    assert chosen == [False]
