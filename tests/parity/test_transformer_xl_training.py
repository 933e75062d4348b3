"""Gradients through a memory, and a whole recorded fine-tuning run, step by step."""

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.families.transformer_xl import original_format
from hanmo.families.transformer_xl.modeling import TransformerXLModel
from hanmo.families.weight_map import expand
from hanmo.rows import Row, collate
from hanmo.training.schedules import factor
from hanmo.training.trainable import checkpoint_layers, switch_dropout_off
from hanmo.training.trainer import RowTrainer
from tests.original_streams import stream_batches
from tests.parity.test_transformer_xl_streams import rows, same
from tests.parity.transformer_xl_models import FOLDER, network
from tests.places import load, needs_parity
from tests.ranks import whole

pytestmark = needs_parity("transformer_xl")
RUNS = sorted((FOLDER / "train").glob("finetune_run*.json"))
LOSS, WEIGHT, NOISE = 1e-4, 1e-4, 3e-3  # the tolerances its README gives


def original_names(model: TransformerXLModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of ours under the original's names, fused as there."""
    layout = original_format.RELATIVE if model.config.relative else original_format.ABSOLUTE
    return {
        entry.theirs: torch.cat([tensors[name] for name in entry.ours])
        for entry in expand(layout.entries, model.config)
        if entry.ours[0] in tensors
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_with_memory(checkpointing: bool) -> None:
    arrays = load_file(FOLDER / "train" / "gradients_with_memory.safetensors")
    first, second = arrays["seg0.input_ids"], arrays["seg1.input_ids"]
    memory_length = arrays["seg0.attention_mask"].shape[-1] - first.shape[1]
    model = network("txl_tiny", memory_length=memory_length)
    if checkpointing:
        checkpoint_layers(model, selective=False)
        switch_dropout_off(model)
        model.train()
    memory = model(input_ids=first, attention_mask=arrays["seg0.attention_mask"], memory=()).memory
    output = model(
        input_ids=second,
        attention_mask=arrays["seg1.attention_mask"],
        memory=memory,
        labels=arrays["seg1.labels"],
        weights=arrays["seg1.loss_mask"],
    )
    torch.testing.assert_close(-output.logprob, arrays["per_token_loss"], atol=LOSS, rtol=0)
    torch.testing.assert_close(output.loss, arrays["loss"], atol=LOSS, rtol=0)
    output.loss.backward()
    gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    ours = original_names(model, gradients)
    recorded = {name.removeprefix("grad."): value for name, value in arrays.items() if name.startswith("grad.")}
    assert recorded.keys() == ours.keys()
    for name, gradient in recorded.items():
        torch.testing.assert_close(
            ours[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    torch.testing.assert_close(norm, arrays["grad_norm"], atol=0, rtol=1e-5)


def number(run: dict[str, Any], option: str) -> float:
    return float(run["options"][option])


class Trainee:
    """The recorded recipe around our network: streams with memory, decoupled decay, clipping, the schedule."""

    def __init__(self, run: dict[str, Any]):
        self.run = run
        self.length, self.batch = int(number(run, "seq-length")), int(number(run, "batch-size"))
        self.model = network(
            run["checkpoint"], memory_length=int(number(run, "mem-length")), segment_length=self.length
        )
        decay = [parameter for name, parameter in self.model.named_parameters() if decays(name)]
        rest = [parameter for name, parameter in self.model.named_parameters() if not decays(name)]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)

    def rate(self, step: int) -> float:
        warmup = number(self.run, "warmup") * number(self.run, "train-iters")
        decay, floor = number(self.run, "lr-decay-iters"), number(self.run, "lr-decay-ratio")
        return number(self.run, "lr") * factor("cosine", step, warmup, decay, floor)

    def step(self, batch: dict[str, Tensor], memory: tuple[Tensor, ...], step: int) -> tuple[float, float, Any]:
        output = self.model(**batch, memory=memory)
        self.optimizer.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), number(self.run, "clip-grad"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        return output.loss.item(), norm.item(), output.memory

    @torch.no_grad()
    def evaluate(self, items: list[Row]) -> list[float]:
        """Every evaluation starts with an empty memory of its own."""
        losses, memory = [], ()
        steps = stream_batches(len(items), self.batch)
        for _, step in zip(range(int(number(self.run, "eval-iters"))), steps, strict=False):
            output = self.model(**collate([items[place] for place in step], {}), memory=memory)
            losses.append(output.loss.item())
            memory = output.memory
        return losses


def decays(name: str) -> bool:
    """All but norms and what is named bias."""
    return not name.endswith(".bias") and "_norm." not in name


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_finetune_run(path: Any) -> None:
    run, arrays = load(path), load_file(path.with_suffix(".safetensors"))
    trainee = Trainee(run)
    parts = run["split"]["parts"]
    items, held_out = rows(parts[0], trainee.length), rows(parts[1], trainee.length)
    steps = stream_batches(len(items), trainee.batch)
    memory: tuple[Tensor, ...] = ()
    evaluations: list[float] = []
    for step, (places, recorded) in enumerate(zip(steps, run["train_steps"], strict=False)):
        batch = collate([items[place] for place in places], {})
        names = (("text", "tokens"), ("target", "labels"), ("loss_mask", "loss_mask"))
        same(batch, {ours: arrays[f"iter{step}.{theirs}"] for ours, theirs in names})
        assert trainee.rate(step) == pytest.approx(recorded["lr_used"], rel=1e-12)
        loss, norm, memory = trainee.step(batch, memory, step)
        assert loss == pytest.approx(recorded["loss"], abs=LOSS)
        assert norm == pytest.approx(recorded["grad_norm"], rel=1e-4)
        assert memory[0].shape[1] == recorded["mem_len_out"]
        if (step + 1) % int(number(run, "eval-interval")) == 0:
            evaluations += trainee.evaluate(held_out)
    recorded_evaluations = [forward["loss"] for forward in run["eval_forwards"][: len(evaluations)]]
    assert evaluations and evaluations == pytest.approx(recorded_evaluations, abs=LOSS)
    for report in run["eval_reports"]:
        assert math.exp(min(20, report["loss"])) == pytest.approx(report["ppl"])
    compare_weights(trainee.model, arrays)


def compare_weights(model: TransformerXLModel, arrays: dict[str, Tensor]) -> None:
    """Where the gradient is mathematically zero, Adam moves weights by rounding noise: a wider tolerance there."""
    ours = original_names(model, model.state_dict())
    words = ours["word_embeddings.weight"]
    compared = 0
    for name, recorded in arrays.items():
        if not name.startswith("final."):
            continue
        name = name.removeprefix("final.")
        if name == "word_embeddings.used_ids":
            continue
        if name == "word_embeddings.used_rows":
            weights = words[arrays["final.word_embeddings.used_ids"]]
        elif name == "word_embeddings.rows_0_63":
            weights = words[:64]
        else:
            weights = ours[name]
        noisy = torch.zeros_like(recorded, dtype=torch.bool)
        if name.endswith("query_key_value.bias"):
            third = len(recorded) // 3
            noisy[third : 2 * third] = True
        elif ".relative." in name:
            noisy[:] = True
        difference = (weights - recorded).abs()
        assert difference.masked_fill(noisy, 0).max() <= WEIGHT, name
        assert difference.max() <= NOISE, name
        compared += 1
    assert compared > 20


def test_weight_decay_groups() -> None:
    """The trainer's rule, which is also the one above, says of every tensor what was recorded."""
    recorded = load(FOLDER / "train" / "weight_decay_groups.json")
    model = network("txl_tiny")
    decaying = set(RowTrainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    for entry in expand(original_format.RELATIVE.entries, model.config):
        if entry.theirs in (*recorded["weight_decay"], *recorded["no_weight_decay"]):
            for name in entry.ours:
                assert (name in decaying) == decays(name) == (entry.theirs in recorded["weight_decay"]), name
