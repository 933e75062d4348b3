"""Files are data: what asks for code is refused by name, and every kind of wrong file has its own message."""

import argparse
import collections
import enum
import io
import os
import pickle
import random
import re
import resource
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hanmo.checkpoints.originals.pickle_scan import Claims, Storage, scan_pickle
from hanmo.checkpoints.originals.recognise import recognise
from hanmo.checkpoints.originals.unpickle import read_pickle, read_safetensors, sniff
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.errors import CheckpointError
from tests.counting import counted_calls
from tests.unit.checkpoint_files import MEGATRON, original_tensors


class RunsOnLoad:
    """An object whose pickle runs a shell command when it is loaded the ordinary way."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def save(content: Any, path: Path, form: str) -> Path:
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["zip", "pre-2020", "pickle"])
def test_a_file_that_runs_code_is_refused_by_the_name_of_the_code(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "executed"
    content = {"module": {"a": 1}, "extra": RunsOnLoad(marker)}
    path = save(content, tmp_path / "evil.pt", form)
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system.*never runs code"):
        read_pickle(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(RunsOnLoad(marker)))
    assert marker.exists(), "the attack itself works, so the refusal is what stopped it"


def test_builtins_are_named_in_full(tmp_path: Path) -> None:
    class Evaluates:
        def __reduce__(self) -> Any:
            return eval, ("1 + 1",)

    path = save({"x": Evaluates()}, tmp_path / "evil.pt", "zip")
    with pytest.raises(CheckpointError, match=r"asks for builtins\.eval, which is code; refused"):
        read_pickle(path)


@pytest.mark.parametrize("form", ["zip", "pre-2020"])
def test_what_old_trainers_stored_is_read(tmp_path: Path, form: str) -> None:
    table = np.arange(6, dtype=np.int32).reshape(2, 3).T
    content = {
        "weights": {"a": torch.arange(6.0).reshape(2, 3)},
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "counts": collections.defaultdict(int, seen=3),
        "best": np.float64(1.5),
        "rng": np.random.RandomState(1).get_state(),
        "table": table,
        "folder": Path("/data"),
        "names": set(),
        "none": b"",
        "no numbers": np.zeros(0),
    }
    read = read_pickle(save(content, tmp_path / "old.pt", form))
    assert torch.equal(read["weights"]["a"], content["weights"]["a"])  # type: ignore[index]
    assert read["args"] == content["args"]
    assert (read["counts"], read["best"], read["names"]) == ({"seen": 3}, 1.5, set())
    assert str(read["folder"]) == "/data"
    assert (read["none"], read["no numbers"].array.shape) == (b"", (0,))
    np.testing.assert_array_equal(read["table"].array, table)
    np.testing.assert_array_equal(read["rng"][1].array, content["rng"][1])  # type: ignore[index]


OF_TRAINERS = (
    *(
        "fp16.loss_scaler.DynamicLossScaler",
        "megatron.fp16.loss_scaler.DynamicLossScaler",
        "apex.amp.scaler.LossScaler",
    ),
    *("apex.fp16_utils.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    "megatron.optimizer.grad_scaler.DynamicGradScaler",
)
KINDS = ("megatron.enums.ModelType", "megatron.model.enums.AttnMaskType", "deepspeed.runtime.zero.config.ZeroStageEnum")


def made_by_trainer(name: str, monkeypatch: pytest.MonkeyPatch, base: Any = object, **attributes: Any) -> Any:
    """A class of this name in a module of a trainer, as if that were installed."""
    place, _, own = name.rpartition(".")
    parts, module = place.split("."), types.ModuleType(place)
    made = base(own, attributes, module=place) if base is enum.Enum else type(own, (), {"__module__": place})
    setattr(module, own, made)
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), module)
    return made


@pytest.mark.parametrize("form", ["zip", "pre-2020"])
@pytest.mark.parametrize("name", [*OF_TRAINERS, *KINDS])
def test_what_trainers_pickle_of_their_own_is_read_as_its_values_and_written_as_plain_ones(
    tmp_path: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their loss scalers, whole, and the kinds of layers and models among their arguments."""
    if name in KINDS:
        content, values = made_by_trainer(name, monkeypatch, enum.Enum, first=1, second=2).second, {"value": 2}
    else:
        content, values = made_by_trainer(name, monkeypatch)(), {"cur_scale": 65536}
        content.cur_scale = 65536
    written = {"module": {"a": torch.ones(2)}, "args": argparse.Namespace(kind=content), "scaler": content}
    read = read_pickle(save(written, tmp_path / "a.pt", form))
    assert vars(read["scaler"]) == vars(read["args"].kind) == values
    again = torch.load(save(read, tmp_path / "b.pt", "zip"), weights_only=False)  # hanmo alone, no trainer, is needed
    assert again["scaler"] == again["args"].kind == values


def test_a_trainers_function_that_a_file_calls_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    module = types.ModuleType("megatron.utils")
    module.run = ran.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron", module)
    monkeypatch.setitem(sys.modules, "megatron.utils", module)
    pickled = b"\x80\x02}X\1\0\0\0acmegatron.utils\nrun\nX\4\0\0\0evil\x85Rs."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    assert vars(read_pickle(tmp_path / "a.pt")["a"]) == {"value": "evil"} and not ran


@pytest.mark.parametrize(
    ("pickled", "form"),
    [
        (pickle.dumps({"rng": b"abc"}, protocol=3), "SHORT_BINBYTES of protocol 3"),
        (pickle.dumps({"a": 1}, protocol=4), "FRAME of protocol 4"),
        (b"\x80\x02}U\x01aT\x00\x01\x00\x00" + b"b" * 256 + b"s.", "BINSTRING of protocol 1"),  # of Python 2
    ],
)
def test_a_form_of_pickle_that_torch_does_not_read_is_said(tmp_path: Path, pickled: bytes, form: str) -> None:
    path = tmp_path / "a.pt"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    head = path.read_bytes().split(pickle.dumps({}, protocol=2))[0]
    path.write_bytes(head + pickled + pickle.dumps([], protocol=2))
    with pytest.raises(CheckpointError, match=rf"restricted reader lacks \({form}\); .* save it again: torch\.save"):
        read_pickle(path)


def test_numpy_arrays_are_ordinary_arrays_again_when_written(tmp_path: Path) -> None:
    state = np.random.RandomState(1).get_state()
    read = read_pickle(save(state, tmp_path / "a.pt", "zip"))
    again = torch.load(save(read, tmp_path / "b.pt", "zip"), weights_only=False)
    np.testing.assert_array_equal(again[1], state[1])


def test_the_older_numpy_module_names_are_known(tmp_path: Path) -> None:
    pickled = pickle.dumps({"rng": np.arange(3)}, protocol=2)
    path = tmp_path / "old.pt"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    head = path.read_bytes().split(pickle.dumps({}, protocol=2))[0]
    for module in (b"numpy.core", b"numpy._core"):
        path.write_bytes(head + pickled.replace(b"numpy._core", module) + pickle.dumps([], protocol=2))
        assert module + b".multiarray" in path.read_bytes()
        np.testing.assert_array_equal(read_pickle(path)["rng"].array, np.arange(3))


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = save({"a": np.array([print], dtype=object)}, tmp_path / "objects.pt", "zip")
    with pytest.raises(CheckpointError, match="only plain numbers are read"):
        read_pickle(path)


@pytest.mark.parametrize("form", ["zip", "pre-2020"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.999])
def test_a_file_that_is_cut_short_says_so(tmp_path: Path, form: str, keep: float) -> None:
    path = save({"a": torch.zeros(10_000)}, tmp_path / "a.pt", form)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=r"a\.pt: cut short: it ends after [\d,]+ bytes"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b'{"error": "not found"}', "JSON text"),
        (b"plain words", "not a checkpoint that torch wrote: it starts with b'plain wo'"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_pickle(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        sniff(tmp_path / "nothing.pt")


def test_a_damaged_safetensors_file_is_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_safetensors(path)


def test_the_allowlist_is_not_left_behind(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # of no particular order
    read_pickle(save({"a": argparse.Namespace()}, tmp_path / "a.pt", "zip"))
    assert set(torch.serialization.get_safe_globals()) == before


def mutated(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        place, kind = rng.randrange(len(changed) + 1), rng.random()
        if kind < 0.6:
            changed[place : place + 1] = rng.randbytes(1)
        elif kind < 0.9:
            changed[place : place + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
        else:
            del changed[place:]
    return bytes(changed)


@contextmanager
def few_calls(most: int = 50_000) -> Iterator[None]:
    """What is done inside ends after little work."""
    with counted_calls() as calls:
        yield
    assert calls.count < most


@pytest.mark.parametrize("form", ["zip", "pre-2020"])
def test_mutated_files_are_read_or_refused_and_never_anything_else(tmp_path: Path, form: str) -> None:
    """Executing would leave the marker; any error but CheckpointError fails; so does a lot of work."""
    marker, rng = tmp_path / "executed", random.Random(0)
    content = {"w": torch.randn(5, 7), "rng": np.random.RandomState(1).get_state(), "args": argparse.Namespace(x=1)}
    seeds = [save(content, tmp_path / "good.pt", form).read_bytes()]
    seeds.append(save({**content, "evil": RunsOnLoad(marker)}, tmp_path / "evil.pt", form).read_bytes())
    path, refused = tmp_path / "mutated.pt", 0
    for _ in range(300):
        path.write_bytes(mutated(rng.choice(seeds), rng))
        with few_calls():
            try:
                read_pickle(path)
            except CheckpointError:
                refused += 1
    assert refused > 100
    assert not marker.exists()


def holds_itself() -> Any:
    content: dict[str, Any] = {"iteration": 7}
    content["module"] = content
    return content


def deep() -> bytes:
    """Lists in lists, a hundred thousand deep, as a pickle: "]" opens one, "a" puts it into the one before."""
    return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."


def claims_much(claim: int) -> bytes:
    """A tensor of a few bytes whose pickle says that it has ``claim`` numbers."""
    file = io.BytesIO()
    torch.save({"module": {"a": torch.zeros(3)}}, file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [name for name in members if name.endswith("data.pkl")]
    assert members[name].count(b"K\x03") >= 2, "the storage's size and the shape"
    members[name] = members[name].replace(b"K\x03", b"\x8a\x08" + claim.to_bytes(8, "little"))
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["holds itself", "deep", "petabytes", "gigabytes", "frame"])
def test_recursive_and_huge_claims_end_in_a_message(tmp_path: Path, kind: str) -> None:
    """After little work and in little memory."""
    folder = tmp_path / "m"
    folder.mkdir()
    file = folder / "mp_rank_00_model_states.pt"
    if kind == "holds itself":
        torch.save(holds_itself(), file)
    else:
        frame = b"\x80\x02X\xff\xff\xff\x7fabc."  # a string of 2 GB, of which three bytes are there
        texts = {"deep": deep, "petabytes": lambda: claims_much(10**15), "gigabytes": lambda: claims_much(10**10)}
        file.write_bytes(texts.get(kind, lambda: frame)())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with few_calls(20 * max(file.stat().st_size, 10_000)), pytest.raises(CheckpointError, match=re.escape(str(folder))):
        recognise(find_weights(folder)).require_complete()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_mutated_checkpoints_are_opened_or_refused(tmp_path: Path, seed: int) -> None:
    """1,000 each, by the whole way from a folder to shapes, in little memory and no more work than whole ones."""
    marker, rng = tmp_path / "executed", random.Random(seed + 1)
    content = {"module": original_tensors(MEGATRON), "iteration": 7, "rng": np.random.RandomState(1).get_state()}
    seeds = []
    for form in ("zip", "pre-2020"):
        seeds.append(save(content, tmp_path / "good.pt", form).read_bytes())
        seeds.append(save({**content, "evil": RunsOnLoad(marker)}, tmp_path / "evil.pt", form).read_bytes())
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "mp_rank_00_model_states.pt").write_bytes(seeds[0])
    with counted_calls() as whole:
        recognise(find_weights(folder)).require_complete()
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(1000):
        (folder / "mp_rank_00_model_states.pt").write_bytes(mutated(rng.choice(seeds), rng))
        with few_calls(2 * whole.count):
            try:
                original = recognise(find_weights(folder))
                original.require_complete()
                assert original.shapes
            except CheckpointError:
                refused += 1
    assert 300 < refused < 1000
    assert not marker.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"


def test_the_scan_follows_an_ordinary_checkpoint_to_its_end(tmp_path: Path) -> None:
    """Otherwise nothing of what the file claims would be checked."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(3, 4), "n": torch.arange(5), "shape": torch.Size((3, 4, 5, 6))}, path)
    claims = Claims()
    with zipfile.ZipFile(path) as archive, archive.open("a/data.pkl") as file:
        assert scan_pickle(io.BytesIO(file.read()), claims)
    expected = {"0": Storage("0", torch.float32, 12), "1": Storage("1", torch.int64, 5)}
    assert claims.storages == expected
