"""A path is asked once: whoever opens, inspects or converts a model reads each of its files a single time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.unpickle import read_pickle, read_safetensors
from hanmo.files import read_json
from tests.counting import counted_files
from tests.unit.checkpoint_files import tiny_eva, write_hub, write_megatron
from tests.unit.transformers_models import write_model


def sharded(folder: Path) -> Path:
    opened = tiny_eva()
    opened.network.save_pretrained(folder, max_shard_size=20_000)
    opened.tokenizer.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "a folder of ours": lambda folder: save_model(tiny_eva(), folder),
    "a sharded folder of ours": sharded,
    "an original in a hub folder": write_hub,
    "an original of one rank": write_megatron,
    "a model of transformers": lambda folder: write_model("qwen3", folder),
}
USES: dict[str, Callable[..., Any]] = {
    "open": lambda path, place, given: open_model(path, device="cpu", **given),
    "inspect": lambda path, place, given: inspect_model(path, deep=True, **given),
    "convert": lambda path, place, given: convert(path, place / "target", verify=True, **given),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", FORMS)
def test_each_file_of_a_model_is_read_once(tmp_path: Path, form: str, use: str) -> None:
    path = FORMS[form](tmp_path / "model")
    given = {"config": path / "model_config.json"} if "rank" in form else {}
    with counted_files(read_json, read_pickle, read_safetensors) as reads:
        USES[use](path, tmp_path, given)
    of_model = {file: count for file, count in reads.items() if file.is_relative_to(path)}
    assert set(of_model.values()) == {1}, of_model
