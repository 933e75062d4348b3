"""PPO: samples per second and peak memory, ours against TRL's PPOTrainer, on the same small decoder and settings.

    HANMO_TRL=FOLDER python -m benchmarks.rl [--check]

The shape of a round is that of TRL's own example (summaries of TL;DR posts): 64 prompts, a reply of at most 53 tokens to each,
ended by the stop token or fined, then 4 epochs of one optimizer step, each over all 64 replies in micro-batches of 16.
Both sides take as many samples, epochs and optimizer steps, draw at temperature 1 from the same policy, score every reply with a
reference and a reward model, and train in fp32 with AdamW. All networks are of one shape, with random weights.

- The peer's critic is a network of its own, always; ours is that too in one figure, and a value head on the policy in the other.
- Lengths vary as they do in dialogues: prompts are of 8 to 128 tokens, most of about 40, and the policy ends its reply
  after each token with a chance of 1/23, which is the mean length of a turn in KdConv (a tenth of the replies is cut off).

Each side runs in processes of its own, by turns; memory is the peak of such a process, libraries included. TRL removed its
PPOTrainer after 1.12, so the peer lives in a folder of its own, on top of this environment's transformers:
pip install --no-deps --target FOLDER trl==1.12.0
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    TrainerCallback,
)

from benchmarks.common import Figure, arguments, finish  # noqa: E402

VOCABULARY, PROMPTS, STOP = 8192, 256, 1
SHORTEST, USUAL, LONGEST = 8, 40, 128  # tokens of a prompt
REPLY, MEAN_REPLY = 53, 23
SAMPLES, MICRO, EPOCHS = 64, 16, 4
RATE, BETA, CLIP, CLIP_VALUE, VALUE_WEIGHT, LAM, UNFINISHED = 3e-6, 0.05, 0.2, 0.2, 0.1, 0.95, 1.0
PEER = "HANMO_TRL"


def shape() -> Any:
    return Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, eos_token_id=STOP, pad_token_id=0,
    )  # fmt: skip


def prepare(folder: Path) -> None:
    """The policy and its tokenizer, and the prompts."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({f"w{place}": place for place in range(VOCABULARY)}, "w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token=f"w{STOP}", unk_token="w2")
    policy = Qwen3ForCausalLM(shape())
    end_replies(policy)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    lengths = (USUAL * torch.randn(PROMPTS).mul(0.6).exp()).clamp(SHORTEST, LONGEST).int().tolist()
    ids = [torch.randint(3, VOCABULARY, (length,)).tolist() for length in lengths]
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    texts = [json.dumps({"prompt": " ".join(f"w{one}" for one in row), "response": ""}) for row in ids]
    (folder / "prompts.jsonl").write_text("\n".join(texts), encoding="utf-8")


@torch.no_grad()
def end_replies(policy: Any) -> None:
    """Let replies end after each token with a chance of 1 in MEAN_REPLY, all other words being about as likely.

    One column of the embedding is the same for every word, and the stop token's output weights read that column alone.
    """
    policy.get_input_embeddings().weight[:, 0] = 1.0
    ids = torch.randint(3, VOCABULARY, (4, LONGEST))
    column = policy.model(ids).last_hidden_state[..., 0].mean()
    head = policy.lm_head.weight
    head[:, 0] = 0.0
    head[STOP] = 0.0
    head[STOP, 0] = math.log(VOCABULARY / (MEAN_REPLY - 1)) / column


class Clock(TrainerCallback):
    """Seconds from the first rollout to the last step."""

    start = seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def ours(folder: Path, rounds: int, own_critic: bool) -> float:
    from hanmo.checkpoints import open_model, save_model
    from hanmo.nn.row_model import attach_value_head
    from hanmo.training.stages.ppo import PpoConfig, ppo

    judge = open_model(folder / "policy", dtype="fp32", device="cpu")
    attach_value_head(judge.network, "linear")
    save_model(judge, folder / "judge")
    del judge
    clock = Clock()
    config = PpoConfig(
        model=str(folder / "policy"), data=str(folder / "prompts.jsonl"), out=str(folder / "run"),
        rewards=(str(folder / "judge"),), critic=str(folder / "judge") if own_critic else None, value_head="linear",
        rounds=rounds, samples=SAMPLES, epochs=EPOCHS, limit=LONGEST, rollout_batch=SAMPLES, beta=BETA, clip=CLIP,
        clip_value=CLIP_VALUE, value_weight=VALUE_WEIGHT, lam=LAM, unfinished_penalty=UNFINISHED,
        generation={"max_new_tokens": REPLY},
        trainer={"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": SAMPLES // MICRO, "use_cpu": True,
                 "per_device_eval_batch_size": MICRO, "learning_rate": RATE, "save_strategy": "no"},
    )  # fmt: skip
    ppo(config, show=clock)
    return clock.seconds


def theirs(folder: Path, rounds: int) -> float:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "policy", padding_side="left")
    rows = Dataset.from_dict({"input_ids": json.loads((folder / "ids.json").read_text(encoding="utf-8"))})
    value, judge = (Qwen3ForSequenceClassification(shape_of_score()) for _ in range(2))
    args = PPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=SAMPLES // MICRO, num_mini_batches=1, num_ppo_epochs=EPOCHS,
        total_episodes=rounds * SAMPLES, response_length=REPLY, stop_token="eos", missing_eos_penalty=UNFINISHED,
        temperature=1.0, local_rollout_forward_batch_size=SAMPLES, kl_coef=BETA, cliprange=CLIP,
        cliprange_value=CLIP_VALUE, vf_coef=VALUE_WEIGHT, lam=LAM, learning_rate=RATE, num_sample_generations=0, report_to="none", use_cpu=True,
        bf16=False, gradient_checkpointing=False, save_strategy="no", eval_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    clock = Clock()
    trainer = PPOTrainer(
        args, tokenizer, Qwen3ForCausalLM.from_pretrained(folder / "policy"), None, judge, rows, value,
        eval_dataset=rows.select(range(SAMPLES)), callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return clock.seconds


def shape_of_score() -> Any:
    config = shape()
    config.num_labels = 1
    return config


def measure(side: str, rounds: int) -> dict[str, float]:
    """One side in a process of its own: samples per second and peak memory in MB."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    if side == "trl":
        environment["PYTHONPATH"] = os.pathsep.join([os.environ[PEER], os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--side", side, "--rounds", str(rounds)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        sys.exit(f"{side}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> int:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each run (default: 4)")
    parser.add_argument("--turns", type=int, default=2, help="runs of each side, of which the best counts (default: 2)")
    parser.add_argument("--side", choices=["ours", "head", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            work = theirs if options.side == "trl" else lambda *given: ours(*given, options.side == "ours")
            seconds = work(Path(folder), options.rounds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print("\n" + json.dumps({"rate": options.rounds * SAMPLES / seconds, "memory": peak}))
        return 0
    if not Path(os.environ.get(PEER, "")).joinpath("trl").is_dir():
        print(
            f"# skipped: {PEER} names no folder with TRL's PPOTrainer; make one: "
            "pip install --no-deps --target FOLDER trl==1.12.0",
            file=sys.stderr,
        )
        return 0
    found: dict[str, list[dict[str, float]]] = {"ours": [], "head": [], "trl": []}
    for _ in range(options.turns):
        for side, runs in found.items():
            runs.append(measure(side, options.rounds))
    rate = {side: max(run["rate"] for run in runs) for side, runs in found.items()}
    memory = {side: min(run["memory"] for run in runs) for side, runs in found.items()}
    return finish(
        [
            Figure.rate("PPO, a critic of its own, against TRL's PPOTrainer", rate["ours"], rate["trl"], "samples/s", 2.0),
            Figure.rate("PPO, value head on the policy, against TRL's PPOTrainer", rate["head"], rate["trl"], "samples/s", 2.0),
            Figure.cost("peak memory, a critic of its own", memory["ours"], memory["trl"], "MB", 1.0),
            Figure.cost("peak memory, value head on the policy", memory["head"], memory["trl"], "MB", 1.0),
        ],
        options.check,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
