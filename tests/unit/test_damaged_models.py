"""A model folder of which one file is damaged is refused in one message, or read as if it were not damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.errors import CheckpointError, ConfigError, RecordError
from hanmo.families.eva.decoding import read_antonyms
from hanmo.families.safe_loading import safe_network
from hanmo.generation.defaults import decoding_settings
from tests.unit.checkpoint_files import tiny_eva, write_hub, write_megatron
from tests.unit.tiny import CONFIGS, tiny
from tests.unit.transformers_models import write_model

WIDTHS = {"eva": "d_model", "transformer_xl": "hidden_size", "pangu": "hidden_size", "glm": "hidden_size"}


@pytest.fixture(scope="module", params=["eva", *CONFIGS])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each of our families; copied, never changed, by the tests."""
    folder = tmp_path_factory.mktemp(request.param)
    return save_model(tiny(request.param, folder / "vocabulary"), folder / request.param)


def changed(folder: Path, target: Path, name: str = "config.json", **changes: Any) -> Path:
    shutil.copytree(folder, target)
    content = json.loads((target / name).read_text(encoding="utf-8"))
    (target / name).write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return target


@pytest.mark.parametrize("value", ["32", [32], None, 1.5, {"a": 1}], ids=str)
def test_a_width_that_is_no_number_is_one_message(ours: Path, tmp_path: Path, value: Any) -> None:
    folder = changed(ours, tmp_path / "model", **{WIDTHS[ours.name]: value})
    said = rf"model/config\.json: .*{WIDTHS[ours.name]}"
    with pytest.raises(ConfigError, match=said) as opening:
        open_model(folder, device="cpu")
    assert "\n" not in str(opening.value)
    with pytest.raises(ConfigError, match=said):
        convert(folder, tmp_path / "target")
    report = inspect_model(folder)
    assert [check.name for check in report.checks if check.verdict == "fault"][:1] == ["configuration"]


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}], ids=str)
def test_a_small_setting_of_another_type_is_one_message(tmp_path: Path, value: Any) -> None:
    """Of a model of transformers too, whose configurations check themselves."""
    folder = changed(save_model(tiny_eva(), tmp_path / "saved"), tmp_path / "ours", layer_norm_epsilon=value)
    with pytest.raises(ConfigError, match=r"config\.json: .*layer_norm_epsilon"):
        open_model(folder, device="cpu")
    qwen = changed(write_model("qwen3", tmp_path / "qwen"), tmp_path / "model", sliding_window=value)
    with pytest.raises(CheckpointError, match=r"not a configuration: .*sliding_window' with value .* expected int"):
        open_model(qwen, device="cpu")


@pytest.mark.parametrize("key", ["num_heads", "dropout_rate", "relative_attention_num_buckets", "initializer_range"])
@pytest.mark.parametrize("value", ["x", [1], -1], ids=str)
def test_an_originals_configuration_of_other_values_is_one_message_or_has_no_effect(
    tmp_path: Path, key: str, value: Any
) -> None:
    folder = write_hub(tmp_path / "hub", **{key: value})
    try:
        open_model(folder, device="cpu")
    except (CheckpointError, ConfigError) as error:
        assert key in str(error) or "describes no network that can be built" in str(error)
    else:
        assert key not in ("num_heads", "relative_attention_num_buckets"), "the network is built of these"


def test_tensors_that_do_not_fit_are_named_with_their_file() -> None:
    """An original's, which transformers knows no folder of."""
    network = tiny_eva().network
    state = {name: tensor[:1] for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"^files: .* has the shape"):
        safe_network(type(network), None, network.config, "files", state_dict=state)


def test_a_byte_order_mark_before_a_vocabulary_changes_nothing(tmp_path: Path) -> None:
    for folder in (write_megatron(tmp_path / "original"), save_model(tiny_eva(), tmp_path / "ours")):
        facts = {"config": folder / "model_config.json"} if folder.name == "original" else {}
        before = open_model(folder, device="cpu", **facts).tokenizer.get_vocab()
        file = folder / "vocab.txt"
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert open_model(folder, device="cpu", **facts).tokenizer.get_vocab() == before


@pytest.mark.parametrize(
    "damaged", ["('好', '坏".encode(), "('好', '坏')".encode("gb18030"), b"\xff\xfe", b"(" * 5000, b"\0"], ids=range(5)
)
def test_damaged_antonyms_are_named_with_their_line(tmp_path: Path, damaged: bytes) -> None:
    file = tmp_path / "antonym.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "('大', '小')\n\n".encode() + damaged)
    with pytest.raises(RecordError, match=r"antonym\.txt:3: expected two quoted words, like .*, found ") as found:
        read_antonyms(file)
    assert len(str(found.value)) < 1000
    file.write_bytes(b"\xef\xbb\xbf" + "('大', '小')\n".encode())
    assert read_antonyms(file) == [("大", "小")]


@pytest.mark.parametrize(
    ("decoding", "said"),
    [({"num_beams": 10**5}, "num_beams=100000: must be between 1 and 1,000"), ("x", "expected"), ([1], "expected")],
    ids=str,
)
def test_decoding_settings_of_a_folder_are_checked(tmp_path: Path, decoding: Any, said: str) -> None:
    folder = changed(save_model(tiny_eva(), tmp_path / "saved"), tmp_path / "model", decoding=decoding)
    opened = open_model(folder, device="cpu")
    with pytest.raises(ConfigError, match=said):
        decoding_settings(opened, None, None, None, published=False)
