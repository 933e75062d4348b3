"""Fine-tuning rows of GLM and PanGu-α are the recorded ones, without their padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hanmo.families.glm.family import GlmFamily
from hanmo.families.glm.modeling import GlmConfig
from hanmo.families.glm.tokenization import GlmTokenizer
from hanmo.families.pangu.family import PanguFamily
from hanmo.families.pangu.modeling import PanguConfig
from hanmo.families.pangu.tokenization import PanguTokenizer
from hanmo.records import PromptResponse
from hanmo.rows import IGNORE, Row
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("clue")
FORMATS = load(PARITY / "clue" / "formats" / "formats.json", {"records": [], "glm": {}, "pangu": {}})
PAD_GLM, PAD_PANGU = 50000, 6


def family(name: str) -> Any:
    if name == "glm":
        return GlmFamily(GlmConfig(), GlmTokenizer(vocab_file=str(VOCAB / "cog-pretrain.model")))
    return PanguFamily(PanguConfig(), PanguTokenizer(vocab_file=str(VOCAB / "pangu" / "vocab.model")))


def row(name: str, prompt: str, prefix: str, answer: str, limit: int) -> Row:
    made = family(name)
    (parts,) = made.parts(PromptResponse(prompt, answer, prefix), limit)
    return made.row(parts)


def check_glm(made: Row, sample: dict[str, list[Any]]) -> None:
    length = len(made.labels)
    labels = [PAD_GLM if label == IGNORE else label for label in made.labels.tolist()]
    assert made.inputs["input_ids"].tolist() == sample["input_ids"][:length]
    assert made.inputs["position_ids"].tolist() == [line[:length] for line in sample["position_ids"]]
    assert labels == sample["labels"][:length]
    # What the recording adds to the end of the row is padding.
    assert set(sample["labels"][length:]) <= {PAD_GLM}


def array(recorded: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array(recorded["data"]).reshape(recorded["shape"])


def samples(name: str) -> list[tuple[int, int, dict[str, Any]]]:
    return [
        (int(key.rsplit("_", 1)[1]), index, sample)
        for key, kinds in FORMATS[name].items()
        if key.startswith("max_length_")
        for index, sample in enumerate(kinds["sft"])
    ]


@pytest.mark.parametrize(("limit", "index", "sample"), samples("glm"))
def test_glm(limit: int, index: int, sample: dict[str, Any]) -> None:
    record = FORMATS["records"][index]
    made = row("glm", record["prompt"], record["prefix"], record["answers"][0]["answer"], limit)
    check_glm(made, {key: array(sample[key]).tolist() for key in ("input_ids", "position_ids", "labels")})


def glm_port_samples() -> list[dict[str, Any]]:
    return load(PARITY / "glm" / "tokenizer_cases.json", {"sft_samples": []})["sft_samples"]


@pytest.mark.parametrize("sample", glm_port_samples())
def test_glm_port(sample: dict[str, Any]) -> None:
    made = row("glm", sample["prompt"], sample["prefix"], sample["label"], sample["max_length"])
    check_glm(made, sample)


@pytest.mark.parametrize(("limit", "index", "sample"), samples("pangu"))
def test_pangu(limit: int, index: int, sample: dict[str, Any]) -> None:
    record = FORMATS["records"][index]
    made = row("pangu", record["prompt"], record["prefix"], record["answers"][0]["answer"], limit)
    recorded = array(sample["input_ids"]).ravel().tolist()
    length = len(made.labels)
    # The recording feeds the closing <eot> too; ours is the last label.
    assert [*made.inputs["input_ids"].tolist(), int(made.labels[-1])] == recorded[: length + 1]
    assert set(recorded[length + 1 :]) <= {PAD_PANGU}
    scored = made.labels != IGNORE
    assert torch.equal(made.labels[scored], torch.tensor(recorded[1 : length + 1])[scored])


def test_there_are_cases() -> None:
    assert samples("glm") and glm_port_samples()
    assert Path(VOCAB).is_dir()
