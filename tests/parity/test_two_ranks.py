"""The recorded cases again, by processes that share the model: tests of the other files, run under torchrun."""

import re
from typing import Any

import pytest

from tests.places import PARITY, load
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
)


def splits() -> list[int]:
    """Over how many ranks the originals were recorded: at least two, also where there is no such recording."""
    found = {run["mp"] for run in load(PARITY / "eva" / "mp.json", {}).values()}
    for folder, pattern in (
        ("transformer_xl/model_parallel", r"mp(\d+)\.safetensors"),
        ("glm/megatron", r"ckpt_MP(\d+)"),
    ):
        names = [path.name for path in (PARITY / folder).glob("*")]
        found |= {int(match[1]) for name in names if (match := re.fullmatch(pattern, name))}
    return sorted(found - {1}) or [2]


CASES = [(splits()[0], *case) for case in RECORDED] + [(ranks, "", "two_ranks", "") for ranks in splits()]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "family", "file", "which"), CASES)
def test_recorded_cases_on_ranks(ranks: int, family: str, file: str, which: str) -> None:
    if not (PARITY / family).is_dir():
        pytest.skip(f"no recorded cases at {PARITY / family}; set HANMO_PARITY")
    select: list[Any] = ["-k", which] if which else []
    # -x: a rank that fails alone would leave the other waiting for it
    done = on_ranks(
        ranks, "pytest", "-x", "-rs", "-p", "no:cacheprovider", "-p", "tests.ranks", f"tests/parity/{file}.py", *select
    )
    passed = [int(count) for count in re.findall(r"(\d+) passed", done.stdout)]
    if done.returncode == 0 and not passed and "skipped" in done.stdout:
        pytest.skip(f"nothing here can be cut into {ranks}: {done.stdout[-1000:]}")
    assert done.returncode == 0 and len(passed) == ranks and len(set(passed)) == 1, done.stdout[-4000:]
