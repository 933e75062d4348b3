"""The parts of ``gpu_check.py``: each yields a line of figures for each thing that it looks at."""

import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("pangu-2.6b", "eva2.0-xlarge", "txl-2.9b")  # decoded, with random weights
TINY: dict[str, dict[str, Any]] = {
    "pangu": {"hidden_size": 32, "num_layers": 2, "num_heads": 4},
    "eva": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "transformer_xl": {"hidden_size": 32, "num_layers": 2, "num_heads": 4},
}
SIDE = 8192  # of the matrices by which a GPU's speed is measured
# By how much a device's results may differ from those recorded on a CPU in fp32; a CPU's own in fp16 and bf16 differ by a
# third of it at most. Log-probabilities and entropies in nats, the largest difference; the mean loss relatively.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.45}
LOSS_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}

Line = dict[str, Any]


def golden(device: Any, dry: bool) -> Iterator[Line]:
    """The golden cases of every family in every dtype: rows equal, replies in fp32 too, the rest within tolerances."""
    import torch

    from hanmo.checkpoints import open_model
    from tests.golden.make import FOLDER, compute
    from tests.unit.tiny import NAMES

    for dtype in ("fp32",) if dry else TOLERANCES:
        for family in NAMES[:2] if dry else NAMES:
            recorded = json.loads((FOLDER / family / "golden.json").read_text(encoding="utf-8"))
            found = compute(open_model(FOLDER / family, dtype=dtype, device=device))
            apart = {
                name: (torch.tensor(found[name]).float() - torch.tensor(recorded[name])).abs().max().item()
                for name in ("logprob", "entropy")
            }
            loss = abs(found["loss"] / recorded["loss"] - 1)
            same = sum(
                a == b
                for name in recorded["replies"]
                for a, b in zip(found["replies"][name], recorded["replies"][name], strict=True)
            )
            asked = sum(map(len, recorded["replies"].values()))
            ok = all(found[name] == recorded[name] for name in ("rows", "labels", "contexts"))
            ok = ok and max(apart.values()) <= TOLERANCES[dtype] and loss <= LOSS_TOLERANCES[dtype]
            ok = ok and (dtype != "fp32" or same == asked)  # rounding may choose another of two nearly equal tokens
            figures = {name: f"{value:.1e}" for name, value in {**apart, "loss": loss}.items()}
            yield {"what": f"{family} {dtype}", "ok": ok, **figures, "replies": f"{same}/{asked}"}


def backends(device: Any, dry: bool) -> Iterator[Line]:
    """Which kernel attention takes in training, with a mask, and in a decoding step; and in what fp32 is multiplied."""
    import torch
    from torch.backends import cuda

    from hanmo.nn.gpu import leave_cudnn_attention_out

    leave_cudnn_attention_out()
    flags = {"cudnn": cuda.cudnn_sdp_enabled(), "tf32": cuda.matmul.allow_tf32}
    yield {"what": "settings", "ok": not any(flags.values()), **flags}
    if dry:
        return
    for what, queries, keys, masked in (
        ("training", 512, 512, False),
        ("a mask", 512, 512, True),
        ("decoding", 1, 256, True),
    ):
        q, k, v = (
            torch.zeros(8, 32, length, 80, device=device, dtype=torch.bfloat16) for length in (queries, keys, keys)
        )
        mask = torch.ones(8, 1, queries, keys, device=device, dtype=torch.bool) if masked else None
        given = cuda.SDPAParams(q, k, v, mask, 0.0, not masked, False)
        flash, efficient = cuda.can_use_flash_attention(given), cuda.can_use_efficient_attention(given)
        yield {
            "what": what,
            "ok": flash or efficient,
            "kernel": "flash" if flash else "efficient" if efficient else "math",
        }


def hazards(device: Any, dry: bool) -> Iterator[Line]:
    """Whether cuDNN's attention may come back: NaN among the gradients of masked rows, and the time of a new length."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attention, bad = torch.nn.functional.scaled_dot_product_attention, 0
    kernel = SDPBackend.MATH if dry else SDPBackend.CUDNN_ATTENTION
    dtype = torch.float32 if dry else torch.bfloat16
    with sdpa_kernel(kernel):
        for length in (64, 192, 320):
            q, k, v = (torch.randn(2, 4, length, 64, dtype=dtype).to(device).requires_grad_() for _ in range(3))
            mask = torch.ones(2, 1, length, length, dtype=torch.bool)
            mask[:, :, :, length // 2 :] = False
            attention(q, k, v, attn_mask=mask.to(device)).float().sum().backward()
            bad += sum(not bool(torch.isfinite(one.grad).all()) for one in (q, k, v) if one.grad is not None)
        seconds = []
        for lengths in (range(300, 308 if dry else 364), range(300, 308 if dry else 364)):  # new ones, then known ones
            q = torch.zeros(1, 32, 1, 80, dtype=dtype).to(device)
            keys = [torch.zeros(1, 32, length, 80, dtype=dtype).to(device) for length in lengths]
            seconds.append(
                _measured(lambda q=q, keys=keys: [attention(q, one, one) for one in keys], dry)[0] / len(keys)
            )
    new, known = (f"{1e6 * one:.0f}" for one in seconds)
    yield {
        "what": "cuDNN's attention",
        "ok": True,
        "gradients with NaN": bad,
        "us of a new length": new,
        "us of a known one": known,
    }


def scores(device: Any, dry: bool) -> Iterator[Line]:
    """Log-probabilities of one text alone and among 63 others, in fp32 and bf16."""

    from hanmo.checkpoints import open_model
    from hanmo.nn.row_model import evaluating
    from hanmo.records import PromptResponse
    from hanmo.rows import collate
    from tests.golden.make import FOLDER
    from tests.unit.tiny import NAMES

    texts = [("你好", "谢谢你，再见！"), ("今天天气怎么样？", "今天天气真不错。"), ("三加五等于几？", "八")]
    for dtype, family in product(("fp32", "bf16"), NAMES[1:3] if dry else NAMES):
        opened = open_model(FOLDER / family, dtype=dtype, device=device)
        parts = [opened.family.parts(PromptResponse(*texts[number % 3]), 64)[0] for number in range(64)]
        rows = [opened.family.row(one) for one in parts]
        with evaluating(opened.network):
            found = []
            for chosen in (rows[:1], rows):
                batch = {name: x.to(device) for name, x in collate(chosen, opened.family.padding).items()}
                found.append(opened.network(**batch).logprob[0].cpu())
        alone, together = found
        apart = (together[: len(alone)] - alone).abs().max().item()
        yield {"what": f"{family} {dtype}", "ok": apart <= TOLERANCES[dtype], "apart": f"{apart:.1e}"}


def resume(device: Any, dry: bool) -> Iterator[Line]:
    """A run that goes on from its second step ends in the bits of one that was not stopped."""
    import shutil

    import torch
    from safetensors.torch import load_file

    from hanmo.training.stages.sft import SftConfig, sft
    from tests.devices.stages import prepare
    from tests.unit.tiny import NAMES

    with TemporaryDirectory() as folder:
        for family in NAMES[2:3] if dry else NAMES:
            place, weights = Path(folder) / family, []
            prepare(place, family)
            for name in ("whole", "resumed"):
                steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "seed": 1}
                # The pretended device has no optimizer's state that can be read back.
                steps |= {"per_device_train_batch_size": 2, **({"optim": "sgd"} if dry else {})}
                config = SftConfig(
                    str(place / "model"),
                    str(place / "prompts"),
                    str(place / name),
                    limit=64,
                    trainer=steps,
                    schedule=None,
                )
                if name == "resumed":
                    shutil.copytree(place / "whole", place / name)
                    shutil.rmtree(place / name / "checkpoints" / "checkpoint-4")
                    shutil.rmtree(place / name / "model")
                    text = (place / name / "config.yaml").read_text(encoding="utf-8")
                    (place / name / "config.yaml").write_text(text.replace("/whole", f"/{name}"), encoding="utf-8")
                sft(config, resume=name == "resumed")
                weights.append(load_file(place / name / "model" / "model.safetensors"))
            same = all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
            yield {"what": family, "ok": same}


def decode(device: Any, dry: bool) -> Iterator[Line]:
    """Tokens a second of large models with random weights, in bf16, greedy: one reply, and a batch; kernels launched one by
    one, captured, and of PanGu-α compiled. Of one reply also the share of the memory's bandwidth that reading the weights takes.
    """
    from unittest.mock import patch

    import torch

    from hanmo.generation import engine
    from hanmo.generation.decode import generate
    from hanmo.generation.settings import Settings
    from hanmo.records import Dialogue, PromptResponse

    bandwidth, tokens = _bandwidth(device, dry), 4 if dry else 128
    for size in SIZES:
        opened = random_model(size, device, torch.bfloat16, dry)
        weights = sum(one.numel() * one.element_size() for one in opened.network.parameters())
        asked = Dialogue(("你好",)) if opened.family.name == "eva" else PromptResponse("你好", "")
        context = opened.family.context(asked, 512)
        ways = {"": None, ", captured": engine.recorder}
        if size == SIZES[0] and not dry:
            ways[", compiled"] = lambda _: lambda step: torch.compile(step, fullgraph=True)
        for batch, (way, record) in product((1, 2) if dry else (1, 32), ways.items()):
            settings = Settings(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, rule_files=False)
            with patch.object(engine, "recorder", record or (lambda _: None)):
                generate(opened, [context] * batch, settings.change(max_new_tokens=4, min_new_tokens=4))  # warms up
                seconds, peak = _measured(lambda: generate(opened, [context] * batch, settings), dry)  # noqa: B023
            found = {"tokens/s": round(batch * tokens / seconds, 1), "peak GiB": peak}
            if batch == 1:
                found["of bandwidth"] = f"{weights * tokens / seconds / bandwidth:.0%}"
            yield {"what": f"{size} bf16, batch {batch}{way}", "ok": True, **found}


def step(device: Any, dry: bool) -> Iterator[Line]:
    """An SFT step of PanGu-2.6B by the trainer (fp32 weights, bf16 autocast, AdamW), without and with checkpointing.

    ``MFU``: the operations of the step by those of a large matrix product in bf16 in the same time; the dry run's peak beside the real one.
    """
    import torch

    from hanmo.data.rows.dataset import RowDataset
    from hanmo.nn.shapes import Shapes
    from hanmo.rows import Part
    from hanmo.training.arguments import arguments
    from hanmo.training.needs import needs
    from hanmo.training.trainable import checkpoint_layers
    from hanmo.training.trainer import RowTrainer

    batch, length = (2, 16) if dry else (8, 512)
    speed = _products(device, dry)
    for kept in ("all",) if dry else ("all", "products"):
        opened = random_model(SIZES[0], device, torch.float32, dry)
        rows = RowDataset(opened.family)
        ids = torch.randint(10, 100, (batch, length), generator=torch.Generator().manual_seed(0)).tolist()
        for row in ids:
            rows.append([Part(tuple(row[: length // 2]), False), Part(tuple(row[length // 2 :]), True)])
        if kept == "products":
            checkpoint_layers(opened.network, selective=True)
        with TemporaryDirectory() as folder:
            given = {
                "per_device_train_batch_size": batch,
                "save_strategy": "no",
                "disable_tqdm": True,
                "report_to": "none",
            }
            given |= {} if dry else {"bf16": True}
            for steps in (1, 3):  # the first run warms up; seconds are of the second one's
                args = arguments(Path(folder), {**given, "max_steps": steps})
                trainer = RowTrainer(opened.network, args, rows)
                seconds, peak = _measured(trainer.train, dry)
            del trainer
            found = {"s/step": round(seconds / 3, 3), "tokens/s": round(3 * batch * length / seconds), "peak GiB": peak}
            if not dry:  # the pretended device has no tensors of shapes alone
                torch.cuda.empty_cache()
                shapes = Shapes()
                shapes.shaped(opened.network, args.device)
                expected = needs(RowTrainer(opened.network, args, rows), shapes)
                found |= {"dry run GiB": round(expected["memory"]["total"] / 2**30, 2)}
                found |= {"MFU": f"{3 * expected['operations'] / seconds / speed:.0%}"}
        yield {"what": f"{SIZES[0]} SFT, {batch} x {length}, keeping {kept}", "ok": True, **found}


def stages(device: Any, dry: bool) -> Iterator[Line]:
    """Every stage once, each on one family after another, so that few stages missing of few families is what is cut."""
    from tests.devices.stages import PAIRS, STAGES, prepare, run_stage
    from tests.unit.tiny import NAMES

    families = NAMES[:1] if dry else NAMES
    with TemporaryDirectory() as folder:
        for family in families:
            prepare(Path(folder) / family, family)
        for turn in range(len(families)):
            for number, stage in enumerate(list(STAGES)[:: 4 if dry else 1]):
                family = families[(number + turn) % len(families)]
                if (stage, family) not in PAIRS:
                    continue
                began = time.monotonic()
                try:
                    entries = run_stage(stage, Path(folder) / family, Path(folder) / f"{family}-{stage}")
                    losses = [round(entry["loss"], 4) for entry in entries if "loss" in entry]
                    line: Line = {"ok": bool(losses), "losses": losses}
                except Exception as error:  # the other stages are still to come
                    line = {"ok": False, "error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}
                yield {"what": f"{stage}: {family}", **line, "seconds": round(time.monotonic() - began, 1)}


def random_model(size: str, device: Any, dtype: Any, dry: bool) -> Any:
    """A released size with random weights, made where they are computed with; of the golden model's vocabulary."""
    import torch

    from hanmo.families.base import OpenedModel
    from hanmo.training.opening import find_size

    kind, name = find_size(size)
    tokenizer = kind.tokenizer_class.from_pretrained(ROOT / "tests" / "golden" / kind.name)
    small = {**TINY[kind.name], "vocab_size": -(-len(tokenizer) // 128) * 128} if dry else {}
    config = kind.config_class(**{**kind.original_format.SIZES[name].config, **small})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if dry else dtype)
    try:
        with torch.device("cpu" if dry else device):
            network = kind.network_class(config)
    finally:
        torch.set_default_dtype(before)
    return OpenedModel(network.to(device).eval(), kind(config, tokenizer), f"{name}, random weights")


def _bandwidth(device: Any, dry: bool) -> float:
    """Bytes a second that the memory moves: a copy reads and writes each."""
    import torch

    source = torch.zeros(2**20 if dry else 2**31, dtype=torch.int8).to(device)
    made = torch.empty_like(source)
    made.copy_(source)
    return 2 * source.nbytes / _measured(lambda: made.copy_(source), dry)[0]


def _products(device: Any, dry: bool) -> float:
    """Operations a second of a large product in bf16."""
    import torch

    side = 64 if dry else SIDE
    matrix = torch.zeros(side, side, dtype=torch.bfloat16).to(device)
    matrix @ matrix
    return 10 * 2 * side**3 / _measured(lambda: [matrix @ matrix for _ in range(10)], dry)[0]


def _measured(work: Any, dry: bool) -> tuple[float, float | None]:
    """Seconds, and the most memory that was taken, in GiB."""
    import torch

    if not dry:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if not dry:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, None if dry else round(torch.cuda.max_memory_allocated() / 2**30, 2)
