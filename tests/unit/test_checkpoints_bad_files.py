"""What each kind of wrong file prints: exactly what docs/checkpoints.md says, for every row of its table."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hanmo.checkpoints import open_model
from hanmo.checkpoints.convert import convert
from hanmo.errors import HanmoError
from tests.unit.checkpoint_files import MEGATRON, original_tensors, write_hub, write_megatron
from tests.unit.transformers_models import write_model

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
TABLE = PAGE.split("## What wrong files print")[1].split("\n\n")[1]
ROWS = dict(tuple(cell.strip() for cell in line.strip("|").split("|")) for line in TABLE.splitlines()[2:])
RANK = "7/mp_rank_00_model_states.pt"


class Code:
    """An object whose pickle runs a command when an ordinary reader loads it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def with_code(folder: Path) -> Path:
    return write_megatron(folder, extra=Code())


def content(text: bytes, name: str = RANK) -> Callable[[Path], Path]:
    """A checkpoint whose file of weights holds this."""

    def make(folder: Path) -> Path:
        write_megatron(folder)
        (folder / name).write_bytes(text)
        return folder

    return make


def cut_short(folder: Path) -> Path:
    file = write_megatron(folder) / RANK
    file.write_bytes(file.read_bytes()[:-2000])
    return folder


def another_form(folder: Path) -> Path:
    write_megatron(folder)
    torch.save({"module": {}}, folder / RANK, pickle_protocol=4)
    return folder


def damaged(folder: Path) -> Path:
    file = write_megatron(folder) / RANK
    whole = bytearray(file.read_bytes())
    place = whole.index(b"ctorch")
    whole[place : place + 20] = b"\xff" * 20
    file.write_bytes(whole)
    return folder


def mindspore(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pangu.ckpt").write_bytes(b"\n\x12embedding")
    return folder


def ranks(folder: Path, **second: Any) -> Path:
    """A checkpoint split in two; ``second``: what the other rank's file says otherwise."""
    whole = write_megatron(folder.with_name("unsplit"))
    convert(whole, folder, to="original", ranks=2)
    file = folder / "7" / "mp_rank_01_model_states.pt"
    if second:
        torch.save({**torch.load(file, weights_only=False), **second}, file)
    else:
        file.unlink()
    return folder


def changed(folder: Path, drop: str = "", **more: Any) -> Path:
    tensors = original_tensors(MEGATRON)
    tensors.pop(drop, None)
    return write_megatron(folder, {**tensors, **more})


def too_large(folder: Path) -> Path:
    head = original_tensors(MEGATRON)["lm_head.weight"].float()
    head[3, 3] = 1e6
    return changed(folder, **{"lm_head.weight": head})


def in_fp8() -> Tensor:
    return original_tensors(MEGATRON)["lm_head.weight"].to(torch.float8_e4m3fn)


def zero_3(folder: Path) -> Path:
    inside = folder / "global_step5"
    inside.mkdir(parents=True)
    (folder / "latest").write_text("global_step5")
    for rank in range(2):
        torch.save({"module": {"a": torch.zeros(0)}}, inside / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    return folder


def damaged_safetensors(folder: Path) -> Path:
    convert(write_hub(folder.with_name("hub")), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return folder


def shard_missing(folder: Path) -> Path:
    folder.mkdir()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    save_file({"a": torch.zeros(2)}, folder / names["a"])
    return folder


def other_vocabulary(folder: Path) -> Path:
    write_megatron(folder)
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text(encoding="utf-8") + "\nmore", encoding="utf-8")
    return folder


def nobodys(folder: Path) -> Path:
    return write_megatron(folder, {"language_model.x": torch.zeros(1), "lm_head.weight": torch.zeros(1)})


def own_code(folder: Path) -> Path:
    said = {"model_type": "chatglm", "auto_map": {"AutoConfig": "modeling_chatglm.Own"}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(said))
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def adapter(folder: Path) -> Path:
    write_model("qwen3", folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    return folder


def leading_out(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "asks for code": with_code,
    "a model with code of its own": own_code,
    "an adapter beside a model": adapter,
    "a name that leads out": leading_out,
    "cut short": cut_short,
    "damaged": damaged,
    "another form of pickle": another_form,
    "damaged safetensors": damaged_safetensors,
    "not of torch": content(b"RIFF1234WAVE"),
    "empty": content(b""),
    "a Git LFS pointer": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
    "a web page": content(b"<!DOCTYPE html><html>404</html>"),
    "JSON": content(b'{"error": "not found"}'),
    "of ZeRO-3": zero_3,
    "MindSpore": mindspore,
    "a rank missing": ranks,
    "ranks of different runs": lambda folder: ranks(folder, iteration=9),
    "a shard missing": shard_missing,
    "tensors missing": lambda folder: changed(folder, "decoder.blocks.1.ff.dense_relu_dense.wo.weight"),
    "tensors too many": lambda folder: changed(folder, **{"decoder.extra": torch.zeros(1)}),
    "of other shapes": lambda folder: changed(folder, **{"encoder.final_layernorm.weight": torch.zeros(3)}),
    "of no known model": nobodys,
    "another vocabulary": other_vocabulary,
    "in FP8, FP4 or complex numbers": lambda folder: changed(folder, **{"lm_head.weight": in_fp8()}),
    "too large a number for fp16": too_large,
}


def pattern(message: str) -> str:
    """A message of the table as a regular expression: numbers may be others, ``*reason*`` and … stand for anything."""
    text = re.escape(message).replace(r"\*reason\*", ".+").replace("…", ".+")
    return re.sub(r"\d+(,\d+)*", r"[\\d,]+", text)


def test_every_kind_is_in_the_table_and_none_is_invented() -> None:
    assert list(ROWS) == list(MAKERS)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_wrong_file_prints_what_the_documents_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whoever opens it and whoever converts it is told the same, where it is, and nothing has been run or written."""
    monkeypatch.chdir(tmp_path)
    model = MAKERS[kind](tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    config = model / "model_config.json"
    facts: dict[str, Any] = {"config": config} if config.is_file() else {}
    with pytest.raises(HanmoError, match=pattern(ROWS[kind])) as converting:
        convert(model, tmp_path / "target", dtype="fp16", **facts)
    if kind != "too large a number for fp16":
        with pytest.raises(HanmoError, match=pattern(ROWS[kind])) as opening:
            open_model(model, device="cpu", **facts)
        assert str(model) in str(opening.value) or "shards" in str(opening.value)
    assert "Traceback" not in str(converting.value) and "\n" not in str(converting.value)
    shutil.rmtree(tmp_path / "unsplit", ignore_errors=True)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []
