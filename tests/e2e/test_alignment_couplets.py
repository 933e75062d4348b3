"""The whole way on real data: couplets are fine-tuned on, judged by a reward model, and answered better after PPO.

A pair is right with a half that people wrote to go with the first half, and wrong with one from elsewhere: of the same length,
or of another. Saying always the same of the two is right in 50 % of pairs. About three minutes on two cores.
"""

import gzip
import json
import random
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hanmo.checkpoints import open_model, save_model
from hanmo.demo.model import new_model
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse
from hanmo.training.rl.rewards import score_records
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.stages.reward import RewardConfig, train_reward
from hanmo.training.stages.sft import SftConfig, sft
from tests.places import DATA, needs_data

pytestmark = [pytest.mark.slow, needs_data]

COUPLETS = DATA / "sft_reward" / "couplet"
BASELINE = 0.5
NEW = {"max_new_tokens": 12}
LIMIT = 32
# One draw of 256 held-out replies moves its mean reward by 0.15; over three, PPO from three seeds gained 0.37 to 0.43.
DRAWS = (7, 8, 9)


def read(folder: Path, count: int) -> list[tuple[str, str]]:
    """The first ``count`` couplets of 5 to 7 characters a half, in a random order that is always the same."""
    halves = []
    for name in ("in", "out"):
        file = next(folder.glob(f"{name}.txt*"))
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            halves.append([line.replace(" ", "").strip() for line in lines])
    found = [pair for pair in zip(*halves, strict=True) if 5 <= len(pair[0]) <= 7]
    random.Random(1).shuffle(found)
    return found[:count]


def write(file: Path, records: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records), encoding="utf-8")
    return str(file)


def asked(first: str) -> str:
    return f"上联：{first}，下联："


def scored(couplets: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Records in the form of the published reward data: the counterpart 1, another of its length 0, of another length -1."""
    draw = random.Random(2)
    by_length: dict[int, list[str]] = {}
    for _, second in couplets:
        by_length.setdefault(len(second), []).append(second)
    records = []
    for first, second in couplets:
        same = draw.choice(by_length[len(second)])
        other = draw.choice(by_length[draw.choice([length for length in by_length if length != len(second)])])
        answers = [{"answer": text, "score": score} for text, score in ((second, 1), (same, 0), (other, -1))]
        records.append({"prompt": asked(first), "answers": answers, "prefix": ""})
    return records


def replies(opened: OpenedModel, prompts: list[str]) -> list[str]:
    """One reply to each prompt for each of ``DRAWS``, draw after draw."""
    contexts = [opened.family.context(PromptResponse(prompt, ""), LIMIT) for prompt in prompts]
    drawn = [one for seed in DRAWS for one in generate(opened, contexts, Settings(**NEW, seed=seed))]
    return [opened.family.decode(one.ids) for one in drawn]


def trainer(steps: int, rate: float, batch: int = 32, **settings: Any) -> dict[str, Any]:
    given = {
        "max_steps": steps,
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "use_cpu": True,
        "seed": 1,
    }
    return {**given, "per_device_eval_batch_size": 64, "warmup_steps": 20, "save_strategy": "no", **settings}


def test_a_reward_model_of_couplets_makes_a_better_poet(tmp_path: Path) -> None:
    start = time.monotonic()
    train, held_out = read(COUPLETS / "train", 24_000), read(COUPLETS / "test", 256)
    assert not {first for first, _ in train} & {first for first, _ in held_out}
    new = new_model([Dialogue((asked(first), second)) for first, second in train], tmp_path / "new", seed=0)
    save_model(new, tmp_path / "new")

    data = write(tmp_path / "sft.jsonl", [{"prompt": asked(one), "response": other} for one, other in train])
    settings = trainer(700, 3e-3, eval_strategy="no", lr_scheduler_type="linear")
    tuned = sft(SftConfig(str(tmp_path / "new"), data, str(tmp_path / "sft"), limit=LIMIT, trainer=settings))

    pairs = write(tmp_path / "pairs.jsonl", scored(train[:4800]))
    valid = write(tmp_path / "valid.jsonl", scored(held_out))
    settings = trainer(250, 1e-3, eval_strategy="no")
    config = RewardConfig(str(tuned.model), pairs, str(tmp_path / "reward"), valid=valid, limit=LIMIT, trainer=settings)
    judged = train_reward(config)
    print(f"\nreward model: {judged.accuracy:.1%} of held-out pairs right (baseline {BASELINE:.0%})")
    assert judged.accuracy is not None and judged.accuracy > BASELINE + 0.1

    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": asked(one), "response": ""} for one, _ in train[4800:6800]])
    outcome = ppo(
        PpoConfig(
            str(tuned.model), prompts, str(tmp_path / "ppo"), rewards=(str(judged.model),), rounds=20, samples=64,
            epochs=2, limit=LIMIT, beta=0.02, generation=NEW, value_weight=0.1, show_rounds=5,
            trainer=trainer(1, 1e-3, max_steps=-1),
        )
    )  # fmt: skip

    judge = open_model(str(judged.model), device="cpu")
    questions, means, said = [asked(first) for first, _ in held_out], [], []
    for model in (tuned.model, outcome.model):
        said.append(replies(open_model(str(model), device="cpu"), questions))
        records = [PromptResponse(*one) for one in zip(questions * len(DRAWS), said[-1], strict=True)]
        means.append(fmean(score for score in score_records(judge, records, LIMIT) if score is not None))
    print(f"held-out reward {means[0]:.2f} before, {means[1]:.2f} after; KL {outcome.kl:.1f} nats a reply")
    for (first, second), before, after in list(zip(held_out, *said, strict=False))[:6]:
        print(f"{first}  people: {second}  before: {before}  after: {after}")
    print(f"{time.monotonic() - start:.0f} s")
    assert means[1] > means[0] + 0.3
    assert outcome.kl is not None and abs(outcome.kl) < 40
    page = (tmp_path / "ppo" / "report.html").read_text(encoding="utf-8")
    assert "Samples" in page and "Distance from the model it started from" in page
