"""What libraries say is passed on without their advice to switch a protection off."""

import io
import json
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from hanmo.checkpoints.originals.unpickle import read_pickle
from hanmo.errors import CheckpointError, HanmoError, quoted
from hanmo.training.sharded import SHARDS, _shards, load_shards

ADVICE = re.compile(r"weights_only|safe_globals|trust|re-running", re.I)


class Runs:
    """Asks for code in each of the ways that a pickle has."""

    def __init__(self, *reduced: Any):
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def make(kind: str, path: Path) -> None:
    if kind == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    elif kind == "blocked":
        torch.save({"a": Runs(exec, ("pass",))}, path)
    elif kind == "global":
        torch.save({"a": Runs(Path.touch, (path,))}, path)
    elif kind == "state":  # an object that is allowed, with a state that is not
        torch.save({"a": Runs(dict, (), {"b": 1})}, path)
    else:
        torch.save({"a": Runs(Path.touch, (path,))}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("kind", ["script", "blocked", "global", "state", "before 1.6"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_refused_checkpoint_comes_without_advice(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    make(kind, path)
    with pytest.raises(Exception) as plain:
        torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError) as ours:
        read_pickle(path)
    assert not ADVICE.search(str(ours.value)) and len(str(ours.value)) > len(str(path)) + 20
    assert ADVICE.search(str(plain.value)), "torch does give it"


def test_the_sentences_that_are_left_are_those_without_advice() -> None:
    error = ValueError(
        "The repository x contains custom code which must be executed to correctly load the model.\n"
        "You can inspect the repository content at https://hf.co/x.\n"
        "Please pass the argument `trust_remote_code=True` to allow custom code to be run."
    )
    said = quoted(error)
    assert said.startswith("The repository x contains") and said.endswith("https://hf.co/x.")
    assert quoted(RuntimeError("Set weights_only=False")) == "RuntimeError"
    frames = (
        "Exception raised from read at x.cpp:3 (most recent call first):\nframe #0: f() + 0x88 (0x7f in libc10.so)\n"
    )
    assert quoted(RuntimeError(f"no such record\n{frames}")) == "no such record"
    assert quoted(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"


def test_a_tokenizer_that_wants_code_is_refused_without_advice(tmp_path: Path) -> None:
    from hanmo.data.store.tokenize import TokenizerPlace

    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["t.T", null]}}'
    )
    (tmp_path / "t.py").write_text("raise SystemExit('executed')")
    with pytest.raises(HanmoError) as ours:
        TokenizerPlace(str(tmp_path)).open()
    assert not ADVICE.search(str(ours.value))


def test_a_checkpoint_to_resume_from_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    from hanmo.data.rows.dataset import make_rows
    from hanmo.records import Dialogue, Rejects
    from hanmo.training.trainer import RowTrainer
    from tests.unit.tiny import tiny_eva

    opened = tiny_eva()
    rows = make_rows([Dialogue(("你好", "你好"))] * 4, opened.family, 64, 64, Rejects())
    given = {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 1}
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, label_names=["labels"], **given)
    RowTrainer(opened.network, arguments, rows).train()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        file = tmp_path / "checkpoint-1" / name
        kept = file.read_bytes()
        torch.save({"a": Runs(Path.touch, (tmp_path / "executed",))}, file)
        with pytest.raises(CheckpointError, match=rf"{name}: asks for .*which is code; refused") as ours:
            RowTrainer(opened.network, arguments, rows).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert not ADVICE.search(str(ours.value)) and not (tmp_path / "executed").exists()
        file.write_bytes(kept)
    _damaged_states(tmp_path / "checkpoint-1", lambda: RowTrainer(opened.network, arguments, rows))
    RowTrainer(opened.network, arguments, rows).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def _damaged_states(checkpoint: Path, trainer: Callable[[], Any]) -> None:
    """What is no code, but not what the Trainer wrote either, is one message too."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    cases: list[tuple[str, bytes]] = [
        ("trainer_state.json", json.dumps({**state, "global_step": "1"}).encode()),
        ("trainer_state.json", json.dumps({**state, "else": 1}).encode()),
        ("trainer_state.json", json.dumps({**state, "stateful_callbacks": [3]}).encode()),
        ("trainer_state.json", b"[]"),
        ("trainer_state.json", b"\xff{"),
        ("model.safetensors", b"\x08"),
    ]
    for name, content in (("optimizer.pt", [1]), ("scheduler.pt", {"a"})):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        cases.append((name, buffer.getvalue()))
    for name, damaged in cases:
        kept = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(checkpoint.parent)) as found:
            trainer().train(resume_from_checkpoint=str(checkpoint))
        assert len(str(found.value)) < 1000 and "\n" not in str(found.value)
        (checkpoint / name).write_bytes(kept)


def test_the_description_of_slices_is_read_as_data(tmp_path: Path) -> None:
    """torch unpickles it, and opens the files that it names."""
    network = torch.nn.Linear(2, 2)
    saved = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is one process
        dcp.save(_shards(network, None), checkpoint_id=tmp_path / SHARDS)
        torch.nn.init.zeros_(network.weight)
        load_shards(network, None, str(tmp_path))
    assert all(torch.equal(saved[name], tensor) for name, tensor in network.state_dict().items())
    file = tmp_path / SHARDS / ".metadata"
    described = pickle.loads(file.read_bytes())
    for content, said in (
        (Runs(Path.touch, (tmp_path / "executed",)), "which is code; refused"),
        ([1], "not the description of a checkpoint"),
    ):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match=rf"\.metadata: .*{said}"):
            load_shards(network, None, str(tmp_path))
    file.write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"\.metadata: not the description of a checkpoint"):
        load_shards(network, None, str(tmp_path))
    for index, info in described.storage_data.items():
        described.storage_data[index] = replace(info, relative_path="../else.distcp")
    file.write_bytes(pickle.dumps(described))
    with pytest.raises(CheckpointError, match=r"'\.\./else\.distcp' holds /"):
        load_shards(network, None, str(tmp_path))
    assert not (tmp_path / "executed").exists()
