"""What the tests of the alignment stages share: a tiny model on disk, prompts, and a reward that anyone can check."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hanmo.checkpoints import save_model
from tests.unit.tiny import tiny

WANTED = "好天吃"  # a reply is to contain one of these
QUESTIONS = ("你好吗", "今天天气怎么样", "明天去哪里玩", "火锅怎么样")
REWARD = "tests.unit.alignment_cases:contains"
PAYS = "tests.unit.alignment_cases:pays"


def contains(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """1 for replies that contain a wanted character."""
    return [float(any(character in reply for character in WANTED)) for reply in replies]


def in_words(prompts: Sequence[str], replies: Sequence[str]) -> list[str]:
    """What a reward function must not give."""
    return ["good"] * len(replies)


def pays(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """1 whatever is said: all that a critic can learn."""
    return [1.0] * len(replies)


def starts(folder: Path, name: str) -> Path:
    """A tiny model and prompts in a folder; returns the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(tiny(name, folder / "vocabulary"), folder / "start")
    lines = [json.dumps({"prompt": text, "response": ""}, ensure_ascii=False) for text in QUESTIONS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "start"


def trainer(**settings: Any) -> dict[str, Any]:
    return {"use_cpu": True, "seed": 1, "lr_scheduler_type": "constant", **settings}


def said(prompt: str, reply: str, where: str = "prompts.jsonl:1", **fields: Any) -> Any:
    """A reply as rewards see it."""
    return SimpleNamespace(prompt=prompt, reply=reply, fields=fields, record=SimpleNamespace(where=where))
