"""The recorded cases again, by two processes that share the model: tests of the other files, run under torchrun."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.places import PARITY
from tests.ranks import on_ranks

# (family, file, which of its tests); a test that builds its model otherwise than from a checkpoint has no ranks
RECORDED = (
    ("eva", "test_eva_forward", "padded_batch or roles or last_bucket"),
    ("eva", "test_eva_training", "gradient_of_every_tensor"),
    ("eva", "test_eva_decoding", "original"),
    ("transformer_xl", "test_transformer_xl_forward", "segments or keys_and_values or restart"),
    ("transformer_xl", "test_transformer_xl_training", "gradients_with_memory"),
    ("glm", "test_glm_forward", "test_forward or megatron_forward or losses_and_gradients"),
    ("pangu", "test_pangu_forward", "(test_forward and not head_mask) or losses_and_gradients"),
    ("", "two_ranks", ""),
)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "file", "which"), RECORDED)
def test_recorded_cases_on_two_ranks(family: str, file: str, which: str) -> None:
    if not (PARITY / family).is_dir():
        pytest.skip(f"no recorded cases at {PARITY / family}; set HANMO_PARITY")
    select: list[Any] = ["-k", which] if which else []
    # -x: a rank that fails alone would leave the other waiting for it
    done = on_ranks(
        2, "pytest", "-x", "-p", "no:cacheprovider", "-p", "tests.ranks", f"tests/parity/{file}.py", *select
    )
    passed = [int(count) for count in re.findall(r"(\d+) passed", done.stdout)]
    assert done.returncode == 0 and len(passed) == 2 and passed[0] == passed[1] > 0, done.stdout[-4000:]
