"""GLM decodes as recorded: greedy and beam search of the port, blanks filled by the original, from text to text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.families.base import OpenedModel
from hanmo.families.glm.family import GlmFamily
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.nn.prenorm import GELUS
from hanmo.records import Text
from hanmo.rows import Context, Prompt
from tests.originals import network
from tests.parity.transformers_431 import check_generation
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("glm")
FOLDER = PARITY / "glm"


class Recorded(GlmFamily):
    """Prompts as the recording gives them; contexts are rows of the case. Padding inside the context is left out."""

    case: dict[str, Any]
    unused_ids = range(0)  # there is no tokenizer that could tell which ids are tokens

    def prompt(self, context_ids: Any) -> Prompt:
        inputs, row = self.case["inputs"], context_ids[0]
        ids = torch.tensor(inputs["input_ids"][row])
        seen = torch.tensor(inputs["generation_attention_mask"][row][0][len(ids) - 1][: len(ids)]).bool()
        positions = torch.tensor(inputs["position_ids"][row])
        stops = self.case["kwargs"]["eos_token_id"]
        return Prompt(
            inputs={
                "input_ids": ids[seen],
                "attention_mask": torch.ones(int(seen.sum()), dtype=torch.long),
                "position_ids": positions[:, : len(ids)][:, seen],
                "prefix": seen.sum() - 1,
            },
            start=positions[:, len(ids)],
            step=torch.tensor([0, 1]),
            stop_ids=tuple(stops) if isinstance(stops, list) else (stops,),
        )


def as_ported(checkpoint: Path) -> Any:
    """The port's network: exact GELU."""
    model = network(checkpoint)
    for block in model.layers:
        block.activation = GELUS["gelu"]()
    return model


def cases() -> list[Any]:
    files = sorted(FOLDER.glob("generate_*.json"))
    return [
        pytest.param(path, case["id"], id=f"{path.stem}-{case['id']}") for path in files for case in load(path)["cases"]
    ]


@pytest.mark.parametrize(("path", "name"), cases())
def test_generation(path: Path, name: str) -> None:
    recorded = json.loads(path.read_text())
    case = next(case for case in recorded["cases"] if case["id"] == name)
    model = as_ported(FOLDER / recorded["checkpoint"])
    family = Recorded(model.config, None)  # type: ignore[arg-type]
    family.case = case
    rows = len(case["inputs"]["input_ids"])
    returned = case["kwargs"].get("num_return_sequences", 1)
    widths = [len(row) for row in case["inputs"]["input_ids"] for _ in range(returned)]
    check_generation(OpenedModel(model, family, name), [Context((row,), ()) for row in range(rows)], case, widths)


def blanks() -> dict[str, Any]:
    return load(FOLDER / "megatron" / "cases.json", {"greedy_generation": {"cases": []}})


@pytest.mark.parametrize("name", [case["id"] for case in blanks()["greedy_generation"]["cases"]])
def test_blanks_are_filled_left_to_right(name: str, tmp_path: Path) -> None:
    recorded = blanks()
    case = next(case for case in recorded["greedy_generation"]["cases"] if case["id"] == name)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(recorded["config"]))
    model = network((FOLDER / "megatron" / recorded["checkpoint"]).parent.parent, config)
    offset = recorded["config"]["special_id_offset"]
    model.config.mask_token_ids = [offset + 3, offset + 8, offset + 9]
    model.config.sop_token_id, model.config.eop_token_id = offset + 6, offset + 7

    class Stopping(GlmFamily):
        # There is no tokenizer that could tell which ids are tokens.
        unused_ids = range(0)
        stop_ids = tuple(case["end_tokens"])

    family = Stopping(model.config, None)  # type: ignore[arg-type]
    ids: tuple[int, ...] | None = tuple(case["context_ids"])
    filled = list(case["context_ids"])
    for expected in case["tokens_after_each_blank"]:
        assert ids is not None, "a blank too few"
        settings = Settings(do_sample=False, max_new_tokens=case["out_seq_length"])
        reply = generate(OpenedModel(model, family, name), [Context(ids, ids)], settings)[0]
        filled += [model.config.sop_token_id, *reply.ids]
        assert filled == expected
        # The original never feeds the last token of an answer that was cut off, so later blanks do not see it.
        ids = family.next_blank(ids, reply.ids if reply.finished else reply.ids[:-1])
    assert ids is None


def texts() -> dict[str, Any]:
    return load(FOLDER / "text_end_to_end.json", {"generation": [], "checkpoint": ""})


@pytest.mark.parametrize("index", range(len(texts()["generation"])))
def test_text_to_text(index: int) -> None:
    recorded = texts()
    case = recorded["generation"][index]
    opened = open_model(FOLDER / recorded["checkpoint"], vocab=VOCAB / "cog-pretrain.model", dtype="fp32", device="cpu")
    for block in opened.network.layers:
        block.activation = GELUS["gelu"]()
    context = opened.family.context(Text(case["text"]), 1024)
    assert [[*context.ids, opened.family.config.sop_token_id]] == case["input_ids"]
    width = len(context.ids) + 1
    for form, sequences in (("greedy", case["greedy_sequences"]), ("beam3", case["beam3_sequences"])):
        beams = 1 if form == "greedy" else int(form.removeprefix("beam"))
        limit = len(sequences[0]) - width
        settings = Settings(do_sample=False, num_beams=beams, max_new_tokens=limit, published=True)
        reply = generate(opened, [context], settings)[0]
        assert list(reply.ids) == sequences[0][width : width + len(reply.ids)]
        assert len(reply.ids) == limit or sequences[0][width + len(reply.ids)] == opened.family.config.eop_token_id
        assert opened.family.decode(sequences[0]) == case[f"{form}_text"][0]
