"""PanGu-α decodes as recorded: greedy, processors, beam search, filters, from text to text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.checkpoints import open_model
from hanmo.families.base import OpenedModel
from hanmo.families.pangu.family import PanguFamily
from hanmo.families.pangu.modeling import PanguModel
from hanmo.generation.decode import generate
from hanmo.generation.processors import top_k, top_p
from hanmo.generation.settings import Settings
from hanmo.records import Text
from hanmo.rows import Context, Prompt
from tests.originals import network
from tests.parity.transformers_431 import check_generation
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("pangu")
FOLDER = PARITY / "pangu"


class AsPublished:
    """The network under the port's mask: int64 masks are added to the scores, so padding is attended; no cache."""

    def __init__(self, network: PanguModel):
        self.network, self.training = network, False
        self.device = network.device

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def prefill(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, State]:
        state = State(input_ids, attention_mask, position_ids)
        return state.logits(self.network), state

    def step(self, ids: Tensor, positions: Tensor, state: State) -> Tensor:
        state.ids = torch.cat([state.ids, ids], 1)
        state.mask = torch.cat([state.mask, torch.ones_like(ids)], 1)
        state.positions = torch.cat([state.positions, positions[:, 0]], 1)
        return state.logits(self.network)


class State:
    def __init__(self, ids: Tensor, mask: Tensor, positions: Tensor):
        self.ids, self.mask, self.positions = ids, mask, positions

    def take(self, rows: Tensor) -> State:
        return State(self.ids[rows], self.mask[rows], self.positions[rows])

    def logits(self, network: PanguModel) -> Tensor:
        mask = self.mask.float()
        return network(input_ids=self.ids, attention_mask=mask, position_ids=self.positions).logits[:, -1:]


class Recorded(PanguFamily):
    """Prompts with the padding that the recording has, as generate positions it; contexts are rows of the case."""

    case: dict[str, Any]
    unused_ids = range(0)  # there is no tokenizer that could tell which ids are tokens

    def prompt(self, context_ids: Any) -> Prompt:
        ids, mask = (torch.tensor(self.case[name][context_ids[0]]) for name in ("input_ids", "attention_mask"))
        positions = (mask.cumsum(0) - 1).masked_fill(mask == 0, 1)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        stop = self.case["kwargs"]["eos_token_id"]
        return Prompt(inputs, positions[-1:] + 1, torch.tensor([1]), (stop,))


def cases() -> list[Any]:
    files = sorted(FOLDER.glob("generate_*.json"))
    return [
        pytest.param(path, case["id"], id=f"{path.stem}-{case['id']}") for path in files for case in load(path)["cases"]
    ]


@pytest.mark.parametrize(("path", "name"), cases())
def test_generation(path: Path, name: str) -> None:
    recorded = json.loads(path.read_text())
    case = next(case for case in recorded["cases"] if case["id"] == name)
    model = network(FOLDER / recorded["checkpoint"])
    family = Recorded(model.config, None)  # type: ignore[arg-type]
    family.case = case
    opened = OpenedModel(AsPublished(model) if case["attention_mask_dtype"] == "int64" else model, family, name)
    contexts = [Context((row,), ()) for row in range(len(case["input_ids"]))]
    returned = case["kwargs"].get("num_return_sequences", 1)
    check_generation(opened, contexts, case, [len(row) for row in case["input_ids"] for _ in range(returned)])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("generate_*.json")), ids=lambda path: path.stem)
def test_filters(path: Path) -> None:
    recorded = json.loads(path.read_text())["logit_warpers_on_last_position"]
    raw = torch.tensor(recorded["raw_logits"])[None]
    for name, result in recorded["results"].items():
        scores = raw.clone()
        for step in name.split("+"):
            if step.startswith("temperature"):
                scores = scores / float(step.removeprefix("temperature"))
            elif step.startswith("top_k"):
                scores = top_k(scores, int(step.removeprefix("top_k")), float("-inf"))
            elif step.startswith("top_p"):
                scores = top_p(scores, float(step.removeprefix("top_p")), float("-inf"))
            elif step.startswith("repetition"):
                seen = torch.tensor(recorded["input_ids"])
                penalty = float(step.removeprefix("repetition"))
                picked = scores.gather(1, seen)
                scores = scores.scatter(1, seen, torch.where(picked < 0, picked * penalty, picked / penalty))
            else:
                pytest.fail(f"unknown step {step}")
        kept = torch.isfinite(scores[0]).nonzero().flatten().tolist()
        assert kept == (list(range(raw.shape[1])) if result["kept_ids"] == "all" else result["kept_ids"]), name
        assert scores[0][kept].tolist() == pytest.approx(result["logits_of_kept"], abs=1e-4), name


def texts() -> dict[str, Any]:
    return load(FOLDER / "text_end_to_end.json", {"generation": [], "checkpoint": ""})


@pytest.mark.parametrize("index", range(len(texts()["generation"])))
def test_text_to_text(index: int) -> None:
    recorded = texts()
    case = recorded["generation"][index]
    opened = open_model(FOLDER / recorded["checkpoint"], vocab=VOCAB / "pangu", dtype="fp32", device="cpu")
    context = opened.family.context(Text(case["prompt"]), 1024)
    assert [list(context.ids)] == case["input_ids"]
    width = len(context.ids)
    for form, sequences in (("greedy", case["greedy_sequences"]), ("beam3", case["beam3_sequences"])):
        beams = 1 if form == "greedy" else int(form.removeprefix("beam"))
        limit = len(sequences[0]) - width
        settings = Settings(do_sample=False, num_beams=beams, max_new_tokens=limit, published=True)
        reply = generate(opened, [context], settings)[0]
        assert list(reply.ids) == sequences[0][width : width + len(reply.ids)]
        assert len(reply.ids) == limit or sequences[0][width + len(reply.ids)] == opened.family.config.eos_token_id
        text = opened.family.decode(sequences[0])
        assert text == case[f"{form}_text"][0]
