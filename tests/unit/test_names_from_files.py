"""Names that come out of files lead nowhere: what is read lies beside the file, what is written lies below the target."""

import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.files.resumable import ResumableFolder
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.unpickle import read_pickle
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.checkpoints.originals.writer import ORIGIN, STATE
from hanmo.data.prepare.cleaning.recipe import build
from hanmo.data.store.token_store import ABOUT, About, Store, write_about
from hanmo.errors import CheckpointError, ConfigError, HanmoError, RecordError
from hanmo.files import plain_name
from hanmo.records import opened_text
from tests.unit.checkpoint_files import write_hub, write_megatron

OUTSIDE = "outside"  # a folder beside the one that is read or written, with files that no name may reach
LEADING_OUT = (
    *("..", ".", "", "/", "../outside/rc", "../../outside/rc", "a/../../outside/rc", "./../outside/rc", "a/b", "a/"),
    *("..\\outside\\rc", "C:\\rc", "C:rc", "\\\\host\\share", "rc\0", "\0", "rc\n", "\u202erc", "\ud800", "a" * 300),
    *("nul", "CON.txt", "com1", "rc.", "rc ", "rc:stream", "*", "{outside}/rc", "{outside}", "/{outside}/rc"),
)
ANY_NAME = st.one_of(
    st.sampled_from(LEADING_OUT),
    st.text(max_size=20),
    st.lists(st.sampled_from(["..", ".", "outside", "rc", "7", ""]), max_size=4).map("/".join),
)
ANYTHING = st.one_of(ANY_NAME, st.none(), st.integers(), st.booleans(), st.lists(ANY_NAME, max_size=2))
many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def placed(name: Any, place: Path) -> Any:
    """A name whose absolute path is that of the outside: where a test fails, it does no harm elsewhere."""
    if not isinstance(name, str):
        return name
    name = name.replace("{outside}", str(place / OUTSIDE))
    return f"{place / OUTSIDE}{name}" if name.startswith("/") and str(place) not in name else name


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@given(ANY_NAME)
@many
def test_a_plain_name_is_one_component_everywhere(name: str) -> None:
    try:
        kept = plain_name(name, "here")
    except CheckpointError as error:
        assert str(error).startswith("here: ") and "expected the plain name of a file beside it" in str(error)
        assert str(error).isprintable()
        return
    assert kept == name and len(os.fsencode(name)) <= 255
    for path in (Path("/folder") / name, PureWindowsPath("C:/folder") / name):
        assert path.name == name and path.parent.name == "folder" and len(path.parts) == 3


@pytest.mark.parametrize("name", LEADING_OUT)
def test_what_leads_out_is_no_plain_name(name: str) -> None:
    with pytest.raises(CheckpointError):
        plain_name(name.replace("{outside}", "/tmp"), "here")


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "模型.bin", "iter_0000001", "7", ".hidden", "a b"]
)
def test_ordinary_names_are_kept(name: str) -> None:
    assert plain_name(name, "here") == name


@pytest.mark.parametrize("name", [None, 7, ["a"], {"a": 1}, b"a"])
def test_what_is_no_text_is_no_name(name: Any) -> None:
    with pytest.raises(CheckpointError, match="is no name of a file"):
        plain_name(name, "here")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ours that remembers an original in the layout with trackers; copied, never changed, by the tests."""
    place = tmp_path_factory.mktemp("converted")
    convert(write_megatron(place / "megatron"), place / "ours", config=place / "megatron" / "model_config.json")
    return place / "ours"


@given(ANYTHING, ANYTHING, ANYTHING)
@settings(many, max_examples=80)
def test_an_origin_writes_below_the_target(
    converted: Path, tmp_path_factory: pytest.TempPathFactory, folder: Any, tracker: Any, text: Any
) -> None:
    top = tmp_path_factory.mktemp("origin")
    place = top / "a" / "b" / "c" / "d"  # deeper than any name climbs
    (place / OUTSIDE).mkdir(parents=True)
    (place / OUTSIDE / "rc").write_text("mine")
    (place / "ours").mkdir()
    for file in converted.iterdir():
        (place / "ours" / file.name).symlink_to(file)
    said = json.loads((converted / ORIGIN).read_text(encoding="utf-8"))
    said["folder"] = placed(folder, place)
    if isinstance(tracker, str):
        said["trackers"] = {**said["trackers"], placed(tracker, place): text}
    elif tracker is not None:
        said["trackers"] = tracker
    (place / "ours" / ORIGIN).unlink()
    (place / "ours" / ORIGIN).write_text(json.dumps(said), encoding="utf-8")
    before = state(top)
    try:
        convert(place / "ours", place / "target", to="original")
    except CheckpointError as error:
        assert str(place / "ours" / ORIGIN) in str(error)
        assert state(top) == before
        return
    new = state(top)
    written = {path for path in new if path not in before}
    before[str(place)] = new[str(place)]  # the time of the folder that has got the target
    assert {path: new[path] for path in before} == before
    assert all(Path(path).is_relative_to(place / "target") for path in written)
    assert find_weights(place / "target").iteration == 7 or isinstance(folder, str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trackers": {"/etc/hostname": "7"}}, "names the tracker file '/etc/hostname'; expected latest_checkpointed"),
        ({"trackers": {"../.bashrc": "7"}}, "names the tracker file '../.bashrc'; expected latest_checkpointed"),
        ({"folder": "../../outside"}, "'../../outside' holds /; expected the plain name of a file beside it"),
        ({"folder": "/tmp"}, "'/tmp' holds /; expected the plain name of a file beside it"),
        ({"folder": ""}, "the tracker file says '7', but the folder is ''"),
        ({"folder": "8"}, "the tracker file says '7', but the folder is '8'"),
        ({"layout": "nobody's"}, "unknown layout of eva"),
        ({"ranks": 0}, "not as hanmo wrote it: 0 ranks"),
        ({"absent": 7}, "not as hanmo wrote it: absent is of another kind"),
        ({"trackers": ["latest"]}, "not as hanmo wrote it: trackers is of another kind"),
    ],
)
def test_what_an_origin_may_not_say_is_one_message(
    converted: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "ours").mkdir()
    for file in converted.iterdir():
        (tmp_path / "ours" / file.name).symlink_to(file)
    said = json.loads((converted / ORIGIN).read_text(encoding="utf-8"))
    (tmp_path / "ours" / ORIGIN).unlink()
    (tmp_path / "ours" / ORIGIN).write_text(json.dumps({**said, **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "ours", tmp_path / "target", to="original")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("beside", [{"state": {"module": {}}}, {"state": 7}, {"strangers": {"a": "b"}}, {"more": 1}])
def test_what_lies_beside_an_origin_is_as_hanmo_wrote_it(
    converted: Path, tmp_path: Path, beside: dict[str, Any]
) -> None:
    (tmp_path / "ours").mkdir()
    for file in converted.iterdir():
        (tmp_path / "ours" / file.name).symlink_to(file)
    (tmp_path / "ours" / STATE).unlink()
    torch.save({"state": {}, "strangers": {}, **beside}, tmp_path / "ours" / STATE)
    with pytest.raises(CheckpointError, match="not as hanmo wrote it"):
        convert(tmp_path / "ours", tmp_path / "target", to="original")
    assert not (tmp_path / "target").exists()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Weights outside the folder that is read, which no name may reach."""
    outside = tmp_path / OUTSIDE
    outside.mkdir()
    for name in ("rc", "model.safetensors"):
        save_file({"secret": torch.ones(2)}, outside / name)
    torch.save({"secret": torch.ones(2)}, outside / "pytorch_model.bin")
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
@given(name=ANYTHING)
@many
def test_an_index_reads_what_lies_beside_it(secret: Path, stem: str, name: Any) -> None:
    listed = {"secret": placed(name, secret), "other": f"../{OUTSIDE}/{stem}" if name is None else placed(name, secret)}
    (secret / "model" / f"{stem}.index.json").write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    before = state(secret)
    with pytest.raises(CheckpointError):
        find_weights(secret / "model")
    assert not inspect_model(secret / "model").healthy
    assert state(secret) == before
    (secret / "model" / f"{stem}.index.json").unlink()


@given(said=ANY_NAME, tracker=st.sampled_from(["latest", "latest_checkpointed_iteration.txt"]))
@many
def test_a_tracker_names_a_folder_beside_it(tmp_path_factory: pytest.TempPathFactory, said: str, tracker: str) -> None:
    place = tmp_path_factory.mktemp("tracker")
    write_megatron(place / OUTSIDE)
    (place / OUTSIDE / "7").rename(place / OUTSIDE / "rc")
    (place / "model").mkdir()
    (place / "model" / tracker).write_text(placed(said, place), encoding="utf-8", errors="ignore")
    with pytest.raises(CheckpointError):
        find_weights(place / "model")


def test_a_tracker_of_many_digits_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("9" * 5000, encoding="utf-8")
    with pytest.raises(CheckpointError, match="expected an iteration above 0 or 'release'"):
        find_weights(tmp_path)


@given(name=ANY_NAME)
@many
def test_members_of_an_archive_are_never_unpacked(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    place = tmp_path_factory.mktemp("archive")
    (place / OUTSIDE).mkdir()
    (place / "in").mkdir()
    member = placed(name, place).encode("utf-8", "ignore").decode().replace("\0", "") or "x"
    torch.save({"a": torch.ones(2)}, place / "in" / "model.bin")
    with zipfile.ZipFile(place / "in" / "model.bin", "a") as archive:
        archive.writestr(member, b"mine")
    with zipfile.ZipFile(place / "in" / "data.zip", "w") as archive:
        archive.writestr(member, "a line\n")
    before = state(place)
    with suppress(CheckpointError):
        read_pickle(place / "in" / "model.bin")
    with suppress(RecordError), opened_text(place / "in" / "data.zip") as file:
        assert file.read() == "a line\n"
    assert state(place) == before


@given(name=ANYTHING, value=ANYTHING)
@many
def test_a_recipe_names_steps_that_there_are(name: Any, value: Any) -> None:
    for entry in (name, {"nobodys": value}, {str(name): value}):
        with pytest.raises(ConfigError):
            build([entry], "recipe.yaml")


@given(key=st.sampled_from(["dtype", "documents", "parts", "tokens", "format"]), value=ANYTHING)
@many
def test_a_stores_manifest_names_counts_and_a_type_of_ids(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    place = tmp_path_factory.mktemp("store")
    about = About(1, 1, 1, 2, "uint16", "hash", "tokenizer", ["../../outside/rc"])
    np.array([1, 2], "uint16").tofile(place / "ids.bin")
    for name, content in (("parts.bin", [2]), ("documents.bin", [1])):
        np.array(content, "int64").tofile(place / name)
    np.array([0], "uint8").tofile(place / "kinds.bin")
    write_about(place, about)
    assert [part.tolist() for part in Store(place).parts(0)] == [[1, 2]]
    said = {**json.loads((place / ABOUT).read_text(encoding="utf-8")), key: value}
    (place / ABOUT).write_text(json.dumps(said), encoding="utf-8")
    if value == getattr(about, key):
        assert len(Store(place).ids) == 2
    else:
        with pytest.raises(HanmoError):
            Store(place)


@pytest.mark.parametrize("kind", ["object", "O", "V8", "float64", "<U4"])
def test_a_stores_ids_are_whole_numbers(tmp_path: Path, kind: str) -> None:
    write_about(tmp_path, About(1, 0, 0, 0, kind, "", "", []))
    with pytest.raises(RecordError, match="damaged store"):
        Store(tmp_path)


def test_links_in_a_target_lead_nowhere(tmp_path: Path) -> None:
    """What is replaced in a target that is written into is the link, not what it points to."""
    outside, target = tmp_path / OUTSIDE, tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tensors.json", "vocab.txt", "tokenizer_config.json"):
        (outside / name).write_text("mine")
        (target / name).symlink_to(outside / name)
    before = state(outside)
    convert(write_hub(tmp_path / "hub"), target, force=True)
    assert state(outside) == before
    assert not any(path.is_symlink() for path in target.iterdir())


@pytest.mark.parametrize("linked", ["itself", "inside"])
def test_links_in_a_draft_lead_nowhere(tmp_path: Path, linked: str) -> None:
    """A draft that is continued lies where anybody may have put it."""
    outside, draft = tmp_path / OUTSIDE, tmp_path / ".target.partial"
    outside.mkdir()
    if linked == "itself":
        draft.symlink_to(outside)
        with pytest.raises(CheckpointError, match="holds links, which a conversion never makes"):
            convert(write_megatron(tmp_path / "megatron"), tmp_path / "target", to="original")
    else:
        draft.mkdir()
        (draft / "7").symlink_to(outside)
        with pytest.raises(CheckpointError, match="holds links, which a conversion never makes"):
            ResumableFolder(draft, {})
    assert list(outside.iterdir()) == []


def test_an_index_of_hashes_may_say_anything(tmp_path: Path, converted: Path) -> None:
    for file in converted.iterdir():
        (tmp_path / file.name).symlink_to(file)
    index = tmp_path / "tensors.json"
    kept = json.loads(index.read_text())
    index.unlink()
    strange: list[Any] = [None, 7, [], {"../x": {}}, {"model.safetensors": {"tensors": 7}}, {"../../outside/rc": 7}]
    strange += [{"model.safetensors": {"tensors": {"a": 7}}}, {"../x": {"tensors": {}}}]
    for files in strange:
        index.write_text(json.dumps({"hash": kept["hash"], "files": files}))
        report = inspect_model(tmp_path, deep=True)
        assert [check.name for check in report.checks if check.verdict == "fault"] == ["hashes"], files
