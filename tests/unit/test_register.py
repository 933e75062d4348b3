"""``hanmo.register()`` teaches transformers' auto classes our folders, and ``import hanmo`` alone loads neither library."""

import sys
from pathlib import Path

import pytest

from hanmo.checkpoints import save_model
from hanmo.families import OURS
from tests import processes
from tests.unit.tiny import tiny

PROGRAM = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
import hanmo

try:
    AutoConfig.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "hanmo-" in str(error)
    print("unknown")
hanmo.register()
hanmo.register()
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    loaded = auto.from_pretrained(folder), AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    print(*(type(one).__module__.removeprefix("hanmo.families.") for one in (config, *loaded)))
"""


def test_auto_classes_load_our_folders_once_they_are_registered(tmp_path: Path) -> None:
    folders = []
    for name in OURS:
        (tmp_path / "vocabulary" / name).mkdir(parents=True)
        folders.append(str(save_model(tiny(name, tmp_path / "vocabulary" / name), tmp_path / name)))
    result = processes.run([sys.executable, "-c", PROGRAM, *folders])
    expected = [[f"{name}.modeling"] * 3 + [f"{name}.tokenization"] for name in OURS]
    assert [line.split() for line in result.stdout.splitlines()] == [["unknown"], *expected], result.stderr


@pytest.mark.parametrize("module", ["hanmo", "hanmo.cli"])
def test_importing_loads_neither_torch_nor_transformers(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = processes.run([sys.executable, "-c", program], check=True)
    assert result.stdout.strip() == "[]"
