"""Training: our Trainer against a bare PyTorch loop and TRL on the same rows, and steps of two originals against records.

A small Qwen3-shaped model of random weights learns rows of random ids of uneven lengths, each in a row of its own and
packed; each way of training takes the same examples, ours and the bare loop the very same batches, and each run is
a process of its own, whose peak memory is read. TRL takes part where it can be imported (PYTHONPATH); its packing keeps
examples apart only with an attention that a CPU lacks, so that there it computes something else than we do. The recorded times of the originals,
10.3 s and 13.6 GB (EVA-base, 8 x 128/128), 24.6 s and 12.9 GB (Transformer-XL 12 x 768, 4 x 512, memory 256), are
of two threads of a machine like this one, fp32; memory is the peak of a process of its own. The original fills every
dialogue up to 128/128 tokens; "eva-base-kdconv" is the step of 8 dialogues of KdConv, contexts of 120 and replies of 23
tokens, which we do not fill up. In fp32 we are to be no slower than the record; the goals are for bf16.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command does, before torch asks

import torch  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainingArguments  # noqa: E402

from benchmarks.common import Figure, arguments, finish  # noqa: E402
from hanmo.data.rows.dataset import Collator, EpochSampler, RowDataset  # noqa: E402
from hanmo.data.rows.packing import PackedRows  # noqa: E402
from hanmo.families.eva.modeling import EvaConfig, EvaModel  # noqa: E402
from hanmo.families.huggingface.family import HuggingfaceFamily  # noqa: E402
from hanmo.families.huggingface.modeling import adopt  # noqa: E402
from hanmo.families.transformer_xl.modeling import TransformerXLConfig, TransformerXLModel  # noqa: E402
from hanmo.nn.cpu.malloc import keep_heap  # noqa: E402
from hanmo.rows import Part  # noqa: E402
from hanmo.training.trainable import checkpoint_layers  # noqa: E402
from hanmo.training.trainer import RowTrainer  # noqa: E402

VOCABULARY, BATCH, LIMIT = 8192, 8, 256
RECORDED = {"eva-base": (10.3, 13.6), "eva-base-kdconv": (10.3, 13.6), "transformer-xl": (24.6, 12.9)}  # seconds, GB


class Rows(HuggingfaceFamily):
    """Ids without a tokenizer."""

    def __init__(self, config: Any):
        self.config, self._stop_ids = config, (1,)


def qwen() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def examples(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 256, (count,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def settings(folder: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder, "per_device_train_batch_size": BATCH, "max_steps": steps, "learning_rate": 1e-4,
        "logging_steps": 10, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "max_grad_norm": 1.0, "lr_scheduler_type": "constant",
    }  # fmt: skip


def data_set(model: Any, texts: list[list[int]], packing: bool) -> Any:
    rows = RowDataset(Rows(model.config))
    for ids in texts:
        rows.append([Part(tuple(ids), True)])
    return PackedRows(rows, LIMIT, seed=1) if packing else rows


def steps_of(rows: Any) -> int:
    return -(-len(rows) // BATCH)


def ours(texts: list[list[int]], packing: bool, folder: str) -> float:
    model = adopt(qwen())
    rows = data_set(model, texts, packing)
    args = TrainingArguments(**settings(folder, steps_of(rows)), remove_unused_columns=False, label_names=["labels"])
    trainer = RowTrainer(model, args, rows)
    return seconds(trainer.train)


def bare(texts: list[list[int]], packing: bool, folder: str) -> float:
    """The same network, rows, batches and optimizer in a loop of a few lines."""
    model = adopt(qwen()).train()
    rows = data_set(model, texts, packing)
    order, collator = list(EpochSampler(rows.lengths, 42)), Collator()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, weight_decay=0.0)

    def loop() -> None:
        for step in range(steps_of(rows)):
            batch = collator([rows[item] for item in order[step * BATCH :][:BATCH]])
            batch.pop("row_ids")
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return seconds(loop)


def trl(texts: list[list[int]], packing: bool, folder: str) -> float:
    """TRL's trainer on the same examples, tokenised already; one pass over them."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    order = list(EpochSampler([len(ids) for ids in texts], 42))
    data = Dataset.from_list([{"input_ids": [*texts[item], 1]} for item in order])
    given = {**settings(folder, -1), "max_length": LIMIT, "packing": packing, "gradient_checkpointing": False}
    args = SFTConfig(**given, num_train_epochs=1, train_sampling_strategy="sequential", bf16=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")), eos_token="b", pad_token="a"
    )
    return seconds(SFTTrainer(qwen(), args, train_dataset=data, processing_class=tokenizer).train)


def seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def original_step(name: str, dtype: str, checkpointing: bool, steps: int = 3) -> dict[str, float]:
    """The best seconds of a whole training step, and the peak memory of this process in GB.

    bf16 is what the Trainer does with ``bf16=True``: weights and optimizer in fp32, products in bf16.
    """
    torch.manual_seed(0)
    model: Any
    if name.startswith("eva-base"):
        model = EvaModel(EvaConfig())
        context, reply = (120, 23) if name == "eva-base-kdconv" else (128, 128)
        ids, said = torch.randint(5, 29000, (8, context)), torch.randint(5, 29000, (8, reply))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": said, "labels": said}
    else:
        keep_heap()  # as StreamTrainer does
        model = TransformerXLModel(TransformerXLConfig(hidden_size=768, num_layers=12, num_heads=12))
        ids = torch.randint(5, 29000, (4, 512))
        batch = {"input_ids": ids, "labels": ids, "memory": tuple(torch.randn(4, 256, 768) for _ in range(13))}
    if checkpointing:
        checkpoint_layers(model, selective=False)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    best = min(seconds(step) for _ in range(steps))
    return {"seconds": best, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=30, help="steps of the small model (default: 30)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["small", *RECORDED], help="one part alone")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing in the two originals")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--packing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--original", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.way:
        print(json.dumps(one_way(options.way, options.steps, options.packing)))
        return 0
    if options.original:
        print(json.dumps(original_step(*options.original, options.checkpointing)))
        return 0
    figures = []
    if options.only in (None, "small"):
        figures += small(options.steps, options.rounds)
    for name, (recorded, memory) in RECORDED.items():
        for dtype, goal in (("fp32", 1.0), ("bf16", 3.0)) if options.only in (None, name) else ():
            command = [sys.executable, __file__, "--original", name, dtype]
            command += ["--checkpointing"] * options.checkpointing
            output = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(output.stdout.splitlines()[-1])
            figures.append(Figure.cost(f"{name} step, {dtype}", found["seconds"], recorded, "s", goal))
            figures.append(Figure.cost(f"{name} memory, {dtype}", found["memory"], memory, "GB", min(goal, 2.0)))
    return finish(figures, options.check)


def small(steps: int, rounds: int) -> list[Figure]:
    """By turns, so that whatever else the machine does hits all; the best of each."""
    tokens = sum(map(len, examples(steps * BATCH)))
    ways = [way for way in WAYS if way != "trl" or importlib.util.find_spec("trl")]
    if "trl" not in ways:
        print("# trl is not installed here: no comparison with it", file=sys.stderr)
    figures, goals = [], {"bare": 0.95, "trl": 1.0}
    for packing in (False, True):
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _round in range(rounds):
            for way in ways:
                command = [sys.executable, __file__, "--way", way, "--steps", str(steps), *["--packing"] * packing]
                output = subprocess.run(command, check=True, capture_output=True, text=True)
                found[way].append(json.loads(output.stdout.splitlines()[-1]))
                print(f"# {'packed' if packing else 'padded'}, {way}: {found[way][-1]}", file=sys.stderr, flush=True)
        best = {way: min(run["seconds"] for run in runs) for way, runs in found.items()}
        memory = {way: min(run["memory"] for run in runs) for way, runs in found.items()}
        name = "packed rows" if packing else "padded rows"
        for peer in ways[1:]:
            rates = (tokens / best["ours"], tokens / best[peer])
            figures.append(Figure.rate(f"{name} against {peer}", *rates, "tokens/s", goals[peer]))
            peaks = (memory["ours"], memory[peer])
            figures.append(Figure.cost(f"{name} against {peer}: peak memory", *peaks, "GB", 0.95))
    return figures


def one_way(way: str, steps: int, packing: bool) -> dict[str, float]:
    """Seconds of a whole pass and the peak memory of this process in GB."""
    with tempfile.TemporaryDirectory() as folder:
        taken = WAYS[way](examples(steps * BATCH), packing, folder)
    return {"seconds": taken, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


WAYS = {"ours": ours, "bare": bare, "trl": trl}

if __name__ == "__main__":
    sys.exit(main())
