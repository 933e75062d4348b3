"""``import hanmo`` is enough for transformers' auto classes, in whatever order things are imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import processes
from tests.unit.tiny import tiny_eva

AUTO = "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer"
ORDERS = {
    "hanmo first": f"import hanmo\n{AUTO}",
    "transformers first": f"{AUTO}\nimport hanmo",
    "a network of ours first": f"from hanmo.families.eva.modeling import EvaModel\n{AUTO}",
    "our checkpoints first": f"from hanmo.checkpoints import open_model\n{AUTO}",
    "the tokenizer first": f"import hanmo\nfrom transformers import AutoTokenizer\n{AUTO}",
}


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_our_folders(order: str, tmp_path: Path) -> None:
    opened = tiny_eva()
    opened.network.save_pretrained(tmp_path)
    opened.tokenizer.save_pretrained(tmp_path)
    program = f"""{ORDERS[order]}
model = AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path)!r})
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})
print(type(model).__module__, type(tokenizer).__module__)
"""
    result = processes.run([sys.executable, "-c", program])
    assert result.stdout.split() == ["hanmo.families.eva.modeling", "hanmo.families.eva.tokenization"], result.stderr


def test_the_command_line_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, hanmo.cli; print([name for name in ('torch', 'transformers', 'jinja2') if name in sys.modules])"
    )
    result = processes.run([sys.executable, "-c", program], check=True)
    assert result.stdout.strip() == "[]"
