"""The journey: what every family goes through by the command line, on data and golden models of a few kilobytes."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("eva", "transformer_xl", "pangu", "glm", "huggingface")
# A command's spelling in one checkout -> in the other, as regular expressions; tried where the first is refused.
OTHERWISE: dict[str, str] = {
    r"--set (\w+=)": r"\1",
}
STAGE = (
    "--preset none --json limit=64 trainer.seed=1 trainer.use_cpu=true trainer.logging_steps=1 "
    "trainer.per_device_train_batch_size=2 trainer.learning_rate=0.01"
)
STEPS = f"{STAGE} trainer.max_steps=3"
ROUNDS = (
    f"{STAGE} trainer.gradient_accumulation_steps=2 rounds=3 samples=4 rollout_batch=4 generation.max_new_tokens=6 "
    "save_rounds=3 rewards=[{out}/reward/model]"
)
GENERATE = "generate {model} --input {data}/prompts.jsonl --device cpu --set max_new_tokens=8"
SUITE = "--json --device cpu --first 3 --output {here}/results"
COMMANDS = {
    "tokenize": "data tokenize {data}/text.jsonl --tokenizer {model} --out {here}/store --json",
    "pretrain": f"train pretrain {{model}} {{data}}/{{running}}.jsonl {{here}} {STEPS}",
    "sft": f"train sft {{model}} {{data}}/dialogues.jsonl {{here}} {STEPS}",
    "reward": f"train reward {{model}} {{data}}/pairs.jsonl {{here}} {STEPS}",
    "dpo": f"train dpo {{model}} {{data}}/pairs.jsonl {{here}} {STEPS}",
    "kto": f"train kto {{model}} {{data}}/pairs.jsonl {{here}} {STEPS}",
    "ppo": f"train ppo {{model}} {{data}}/prompts.jsonl {{here}} {ROUNDS}",
    "grpo": f"train grpo {{model}} {{data}}/prompts.jsonl {{here}} {ROUNDS} group=2",
    "greedy": f"{GENERATE} --output {{here}}/replies.jsonl --set do_sample=false",
    "sampled": f"{GENERATE} --output {{here}}/replies.jsonl --set do_sample=true --seed 7",
    "beams": f"{GENERATE} --output {{here}}/replies.jsonl --set do_sample=false --set num_beams=4",
    "perplexity": "eval perplexity {model} {data}/dialogues.jsonl --limit 64 --json --device cpu --output {here}/results",
    "task": f"eval task {{model}} {{data}}/task.yaml {SUITE}",
    "clue": f"eval clue {{model}} --data {{data}}/clue --tasks tnews,afqmc --shots 1 {SUITE}",
    "exam": f"eval exam {{model}} --kind ceval --data {{data}}/ceval --subjects law --shots 1 {SUITE}",
    "original": "convert {model} {here}/converted --to {form} --json",
    "back": "convert {out}/original/converted {here}/converted --vocab {vocabulary} --config {model}/config.json --json",
}
DATA = {
    "corpus": "data corpus {here}/corpus --size 300 --seed 1 --per-topic 2 --json",
    "clean": "data clean {out}/corpus/corpus/train.jsonl {out}/corpus/corpus/train.jsonl --out {here}/kept.jsonl "
    "--rejects {here}/rejects.jsonl --json",
    "prepare": "data prepare lccc {data}/lccc.jsonl {here}/records --dev 0.2 --every-reply --json",
}
TURNS = (
    ("你好，今天天气怎么样？", "今天天气真不错。", "明天去哪里玩？", "明天我们去吃火锅，怎么样！"),
    ("三加五等于几？", "三加五等于八。"),
    ("你好吗", "我很好，谢谢你。"),
    ("北京在哪里", "北京是首都。", "谢谢你", "再见。"),
)


@dataclass(frozen=True)
class Command:
    """One command: its name, the folder of what it makes, and the ways to say it."""

    name: str
    folder: Path
    spellings: list[list[str]]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "folder": str(self.folder), "spellings": self.spellings}


def commands(work: Path, chosen: Sequence[str]) -> list[Command]:
    """The commands whose names start with one of the prefixes; what they need of others comes along."""
    found = []
    for family in FAMILIES:
        model = work / "models" / family
        vocabulary = next((path for name in ("*.txt", "*.model") for path in model.glob(name)), model)
        values = {
            "model": model,
            "running": "dialogues" if family == "eva" else "text",
            "form": "hanmo" if family == "huggingface" else "original",
            "vocabulary": vocabulary,
        }
        for name, text in COMMANDS.items():
            if family == "huggingface":
                text = text.replace(" --vocab {vocabulary} --config {model}/config.json", "")
            found.append(_command(work, family, name, text, values))
    found += [_command(work, "data", name, text, {}) for name, text in DATA.items()]
    chosen = chosen or ["journey"]
    needed = tuple(chosen) + tuple(
        f"{one.name.rpartition('/')[0]}/{before}"
        for one in found
        for before, users in {"reward": ("ppo", "grpo"), "original": ("back",), "corpus": ("clean",)}.items()
        if one.name.rpartition("/")[2] in users and one.name.startswith(tuple(chosen))
    )
    return [one for one in found if one.name.startswith(needed)]


def _command(work: Path, group: str, name: str, text: str, values: dict[str, Any]) -> Command:
    out = work / "made" / group
    filled = text.format(here=out / name, out=out, data=work / "data", **values)
    return Command(f"journey/{group}/{name}", out / name, spellings(filled))


def spellings(text: str) -> list[list[str]]:
    """The words of a command as it stands, and as another checkout may want them."""
    other = text
    for one, replacement in OTHERWISE.items():
        other = re.sub(one, replacement, other)
    return [text.split()] if other == text else [text.split(), other.split()]


def write_inputs(work: Path, before: Path) -> None:
    """The models of ``before``'s golden set, and data in the few characters that their vocabularies have."""
    for family in FAMILIES:
        shutil.copytree(
            before / "tests" / "golden" / family, work / "models" / family, ignore=shutil.ignore_patterns("golden.json")
        )
    data = work / "data"
    asked = [(turns[0], turns[1]) for turns in TURNS]
    _lines(data / "dialogues.jsonl", [{"turns": turns} for turns in TURNS])
    _lines(data / "text.jsonl", [{"text": "".join(turns * 3)} for turns in TURNS * 2])
    _lines(data / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in asked])
    _lines(data / "pairs.jsonl", [{"prompt": one, "chosen": reply, "rejected": "再见啊。"} for one, reply in asked])
    _lines(data / "lccc.jsonl", [[" ".join(turn) for turn in turns] for turns in TURNS * 3])
    _lines(data / "task.jsonl", [{"text": one, "label": place % 2} for place, (one, _) in enumerate(asked)])
    (data / "task.yaml").write_text(
        'data: task.jsonl\nanswer: label\nlabels: {1: 好, 0: 啊}\ntemplate: "{text}是{option}"\n', encoding="utf-8"
    )
    for split in ("dev", "train"):
        pairs = [{"sentence1": one, "sentence2": other, "label": str(len(one) % 2)} for one, other in asked]
        _lines(data / "clue" / "afqmc" / f"{split}.json", pairs)
        _lines(data / "clue" / "tnews" / f"{split}.json", [{"label": 112, "sentence": one} for one, _ in asked])
    for split in ("dev", "val"):
        rows = [f"{place},{one},好,不错,很好,再见,{'ABCD'[place]},{one}" for place, (one, _) in enumerate(asked)]
        table = data / "ceval" / split / f"law_{split}.csv"
        table.parent.mkdir(parents=True)
        table.write_text("\n".join(["id,question,A,B,C,D,answer,explanation", *rows, ""]), encoding="utf-8")


def _lines(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
