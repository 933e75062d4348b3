"""The demo: from the installed packages alone to a small dialogue model and a report of its abilities.

All files are written to a folder beside the output, which replaces the output at the end: a run that is stopped or
fails leaves the output as it was. Other files in it stay.

OUT/                 the model, as open_model reads it
OUT/report.html      the report
OUT/results.json     its numbers
OUT/corpus/          train.jsonl and held_out.jsonl, the dialogues
OUT/metrics.jsonl    what was logged in training
OUT/aligned/         the model after the second part, which learned from preferences; its pairs are in OUT/pairs
"""

import shutil
import time
from pathlib import Path

import torch
import transformers

from hanmo.checkpoints import open_model, save_model
from hanmo.demo.align import STEPS as ALIGN_STEPS
from hanmo.demo.align import align
from hanmo.demo.corpus import build
from hanmo.demo.display import Display, ShowTraining, require_finished
from hanmo.demo.examine import BEYOND, CONVERSATIONS, OPENINGS, exact, examine, fitting, talk
from hanmo.demo.model import DECODING, LIMIT, SETTINGS, new_model
from hanmo.demo.page import DemoResult, build_page
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text
from hanmo.folders import new_folder, recover_missing
from hanmo.generation.settings import Settings
from hanmo.records import write_records
from hanmo.report.plots import Point
from hanmo.training.callbacks import read_metrics
from hanmo.training.stages.sft import SftConfig, sft

STEPS, QUICK_STEPS = 3000, 1100
VOCABULARY_SAMPLE = 20_000  # composed dialogues whose words are counted; more of them add no words
BATCH: int = SETTINGS["sft"]["per_device_train_batch_size"]


def demo(
    output: Path, seed: int = 0, steps: int = STEPS, per_topic: int = 24, align_steps: int = ALIGN_STEPS
) -> DemoResult:
    """Make the corpus, train, measure before and after, align, and write models and report to ``output``.

    ``per_topic`` dialogues of each topic are held out. ConfigError if ``output`` is not empty and no earlier demo.
    """
    recover_missing(output)
    _require_free(output)
    start = time.monotonic()
    with Display() as show, new_folder(output, keep=lambda name: True) as draft:
        with show.stage("corpus") as update:
            found = build.build(steps * BATCH, seed, per_topic)
            write_records(draft / "corpus" / "train.jsonl", found.train)
            held_out = [dialogue for dialogues in found.held_out.values() for dialogue in dialogues]
            write_records(draft / "corpus" / "held_out.jsonl", held_out)
            update(1, 1, f"{len(found.train):,} dialogues, {len(held_out)} held out")
        with show.stage("new model") as update:
            untrained = new_model(found.train[:VOCABULARY_SAMPLE] + found.collected, draft / "new", seed)
            save_model(untrained, draft / "new")
            parameters = sum(parameter.numel() for parameter in untrained.network.parameters())
            update(1, 1, f"{parameters / 1e6:.1f} million parameters, {len(untrained.tokenizer):,} tokens")
        settings = Settings(**DECODING)
        with show.stage("before training") as update:
            before = examine(untrained, found.held_out, settings, update)
        with show.stage("training") as update:
            losses = _train(draft, seed, steps, ShowTraining(update))
        with show.stage("after training") as update:
            trained = open_model(draft / "sft" / "model", device="cpu")
            after = examine(trained, found.held_out, settings, update)
            conversations, beyond = (
                [talk(trained, messages, settings) for messages in talks] for talks in (CONVERSATIONS, BEYOND)
            )
            fits, right = sum(fitting(after.openings)), exact(after.result.samples)
            update(1, 1, f"{fits} of {len(OPENINGS)} openings, {right:.0f} % of held-out exact")
        alignment = align(draft, trained, found, seed, align_steps, show)
        facts = {
            "parameters": parameters,
            "vocabulary": len(untrained.tokenizer),
            "training dialogues": len(found.train),
            "of which collected by people": len(found.collected),
            "steps": steps,
            "dialogues per step": BATCH,
            "peak learning rate": SETTINGS["sft"]["learning_rate"],
            "seed": seed,
            "processor threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **{f"seconds, {name}": round(seconds, 1) for name, seconds in show.seconds.items()},
            "seconds, all": round(time.monotonic() - start, 1),
        }
        result = DemoResult(str(output), before, after, conversations, beyond, alignment, losses, facts)
        _save(draft, trained, result)
    return result


def _require_free(output: Path) -> None:
    if output.exists() and not (output / "results.json").is_file() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(
            f"{output}: is there already and was not made by hanmo demo; give another folder with --output"
        )


def _train(draft: Path, seed: int, steps: int, show: ShowTraining) -> list[Point]:
    """Fine-tune the new model by the stage that users use; returns (step, loss)."""
    config = SftConfig(
        model=str(draft / "new"),
        data=str(draft / "corpus" / "train.jsonl"),
        out=str(draft / "sft"),
        limit=LIMIT,
        trainer={**SETTINGS["sft"], "max_steps": steps, "logging_steps": max(1, steps // 100), "seed": seed},
    )
    require_finished(sft(config, show=show))
    entries = read_metrics(draft / "sft" / "metrics.jsonl")
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def _save(draft: Path, trained: OpenedModel, result: DemoResult) -> None:
    """Save the model, the report and the numbers, and remove the folders of the stages."""
    save_model(trained, draft)
    shutil.move(draft / "sft" / "metrics.jsonl", draft / "metrics.jsonl")
    shutil.move(draft / "dpo" / "model", draft / "aligned")
    for name in ("sft", "new", "reward", "dpo"):
        shutil.rmtree(draft / name)
    write_text(draft / "results.json", json_text(result.as_dict(), indent=2) + "\n")
    build_page(result).write(draft / "report.html")
