"""Makes the golden set: a small model of every family, and what it computes. Run it when numbers are meant to change.

    python -m tests.golden.make

The recorded cases of the originals are the referee and do not travel with the clone; these numbers do. They were made by
hanmo after the recorded cases passed, and guard it where the recordings are absent.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoints import open_model, save_model
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse
from hanmo.rows import collate
from tests.unit.tiny import NAMES, tiny

FOLDER = Path(__file__).parent
PAIRS = (PromptResponse("今天天气怎么样？", "今天天气真不错。"), PromptResponse("你好", "谢谢你，再见！"))
TALKS = (Dialogue(("你好", "谢谢你", "明天去哪里玩？")), Dialogue(("三加五等于几？",)))
DECODING = {
    "greedy": Settings(do_sample=False, max_new_tokens=8),
    "penalty": Settings(do_sample=False, max_new_tokens=8, repetition_penalty=1.3, no_repeat_ngram_size=2),
    "beams": Settings(do_sample=False, max_new_tokens=8, num_beams=3, length_penalty=0.8, min_new_tokens=1),
}


def compute(opened: OpenedModel) -> dict[str, Any]:
    """Everything that is compared: ids, log-probabilities, loss, gradient norm, replies."""
    family, network = opened.family, opened.network
    rows = [family.row(parts) for pair in PAIRS for parts in family.parts(pair, 64)]
    network.zero_grad()
    batch = {name: value.to(network.device) for name, value in collate(rows, family.padding).items()}
    output = network(**batch, entropy=True)
    output.loss.backward()
    squares = [parameter.grad.square().sum() for parameter in network.parameters() if parameter.grad is not None]
    contexts = [family.context(talk, 64) for talk in TALKS]
    replies = {name: generate(opened, contexts, settings) for name, settings in DECODING.items()}
    return {
        "rows": [{name: value.tolist() for name, value in row.inputs.items()} for row in rows],
        "labels": [row.labels.tolist() for row in rows],
        "contexts": [list(context.ids) for context in contexts],
        "loss": output.loss.item(),
        "logprob": output.logprob.tolist(),
        "entropy": output.entropy.tolist(),
        "gradient_norm": torch.stack(squares).sum().sqrt().item(),
        "replies": {name: [list(reply.ids) for reply in each] for name, each in replies.items()},
        "scores": {name: [reply.score for reply in each] for name, each in replies.items()},
    }


def main() -> None:
    for name in NAMES:
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        save_model(tiny(name, folder / "made"), folder)
        shutil.rmtree(folder / "made", ignore_errors=True)
        numbers = compute(open_model(folder, dtype="fp32", device="cpu"))
        (folder / "golden.json").write_text(json.dumps(numbers, indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
