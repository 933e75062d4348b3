"""Small CLUE folders in the official layouts."""

import json
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def clue_folder(folder: Path) -> Path:
    """All ten tasks with a few records each, dev and train."""
    pairs = [("你好", "很好"), ("天气", "火锅"), ("明天", "再见")]
    for split in ("dev", "train"):
        for name, labels in {
            "ocnli": ["entailment", "neutral", "-"],
            "cmnli": ["contradiction"],
            "afqmc": ["0", "1"],
        }.items():
            records = [
                {"sentence1": one, "sentence2": other, "label": label} for one, other in pairs for label in labels
            ]
            write_lines(folder / name / f"{split}.json", records)
        topics = {"iflytek": ("50", "电台"), "tnews": (112, "旅游")}
        for name, (label, _) in topics.items():
            write_lines(
                folder / name / f"{split}.json", [{"label": label, "sentence": one + other} for one, other in pairs]
            )
        write_lines(
            folder / "csl" / f"{split}.json",
            [
                {"abst": one * 3, "keyword": [one, other], "label": str(place % 2)}
                for place, (one, other) in enumerate(pairs)
            ],
        )
        target = {"span1_text": "火锅", "span1_index": 0, "span2_text": "它", "span2_index": 3}
        write_lines(
            folder / "cluewsc2020" / f"{split}.json",
            [{"text": "火锅，它很好", "target": target, "label": label} for label in ("true", "false", "true")],
        )
        write_lines(
            folder / "chid" / f"{split}.json",
            [{"candidates": ["天天", "好好", "再见"], "content": ["今天#idiom1#吃，#idiom2#了", "很#idiom3#"]}],
        )
        (folder / "chid" / f"{split}_answer.json").write_text(json.dumps({"#idiom1#": 0, "#idiom2#": 1, "#idiom3#": 2}))
        c3 = [[["你好吗", "很好"], [{"question": "好吗", "choice": ["好", "不好"], "answer": "好"},
                                  {"question": "吃", "choice": ["火锅", "天", "明"], "answer": "天"}], "1"]]  # fmt: skip
        (folder / "c3").mkdir(exist_ok=True)
        (folder / "c3" / f"{split}.json").write_text(json.dumps(c3), encoding="utf-8")
        answers = [{"text": "很好", "answer_start": 3}, {"text": "很好", "answer_start": 3}]
        squad = {
            "data": [{"paragraphs": [{"context": "今天天气很好", "qas": [{"question": "天气", "answers": answers}]}]}]
        }
        (folder / "cmrc2018").mkdir(exist_ok=True)
        (folder / "cmrc2018" / f"{split}.json").write_text(json.dumps(squad), encoding="utf-8")
    return folder
