"""Scores of rows do not depend on their batch, and hashes name what was evaluated."""

import hashlib
import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hanmo
from hanmo.checkpoints import open_model
from hanmo.errors import ConfigError
from hanmo.evaluation.engine.cache import Scored, opened_store, score_into
from hanmo.evaluation.engine.row_scores import batches, score_rows
from hanmo.evaluation.results import provenance
from hanmo.evaluation.results.provenance import computed_by, records_hash, software, weights_hash
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import evaluating
from hanmo.records import Dialogue, PromptResponse, Text
from hanmo.rows import Part
from tests import processes
from tests.unit.tiny import tiny_eva

GOLDEN = Path(__file__).parents[1] / "golden" / "pangu"


def rows(count: int, opened: OpenedModel | None = None) -> list[Any]:
    opened, rng = opened or tiny_eva(), Random(0)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(11, 60) for _ in range(rng.randint(1, most)))

    return [opened.family.row([Part(ids(20), False), Part(ids(12), True)]) for _ in range(count)]


def test_the_batch_does_not_change_a_score(eva: OpenedModel) -> None:
    made = rows(7)
    alone = [score_rows(eva, [row])[0] for row in made]
    for size in (2, 7):
        together = score_rows(eva, made, size)
        for one, other in zip(alone, together, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_score_is_the_log_softmax_of_the_label(eva: OpenedModel) -> None:
    (row,) = rows(1)
    with torch.no_grad():
        logits_AV = eva.network(**{name: value[None] for name, value in row.inputs.items()}).logits[0]
    by_hand = logits_AV.log_softmax(-1).gather(1, row.labels[:, None])[:, 0]
    (score,) = score_rows(eva, [row])
    assert score.logprobs == pytest.approx(by_hand.tolist(), abs=1e-5)
    assert score.tokens == len(row.labels)
    assert score.nll == pytest.approx(-by_hand.sum().item(), abs=1e-4)


def test_batches_are_longest_first_or_in_order() -> None:
    assert list(batches([1, 5, 3], 2)) == [[1, 2], [0]]
    assert list(batches([1, 5, 3], 2, in_order=True)) == [[0, 1], [2]]
    with pytest.raises(ConfigError, match="batch_size=0"):
        list(batches([1], 0))


def test_evaluating_restores_training_even_after_an_error() -> None:
    network = torch.nn.Dropout()
    with pytest.raises(ZeroDivisionError), evaluating(network):
        assert not network.training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert network.training


def test_progress_counts_up_to_all(eva: OpenedModel, tmp_path: Path) -> None:
    """One by one; from what is known already, in a run that goes on."""
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done, total))

    with opened_store(tmp_path, "rows", ["x"], Scored) as store:
        first = score_into(store, eva, rows(5), 2, watch)
    assert seen == [(done, 5) for done in range(1, 6)]
    seen.clear()
    with opened_store(tmp_path, "rows", ["x"], Scored) as store:
        again = score_into(store, eva, rows(7), 2, watch)
    assert [tuple(score) for score in again[:5]] == first
    assert seen == [(6, 7), (7, 7)]


def test_progress_costs_the_same_for_every_row(tmp_path: Path) -> None:
    """Counted anew for each row, what is there already took a time that grew by the square of the rows."""

    class Counted(dict[int, Any]):
        asked = 0

        def __contains__(self, number: object) -> bool:
            self.asked += 1
            return super().__contains__(number)

    def find(missing: list[int], keep: Any) -> None:
        for place in range(len(missing)):
            keep(place, place)

    with opened_store(tmp_path, "rows", ["x"], Scored) as store:
        store.values = counted = Counted()
        store.fill(500, find, lambda done, total: None)
    assert len(counted) == 500 and counted.asked <= 2 * 500


def test_what_a_record_does_not_say_changes_no_hash() -> None:
    """Results name the hash: a new field of records, such as a label, must not make those of older versions others."""
    content = json.dumps(["Dialogue", {"ids": [], "system": "", "turns": ["你好", "好"]}], ensure_ascii=False)
    said = Dialogue(("你好", "好"), where="a:1", fields={"further": 1})
    assert records_hash([said]) == hashlib.sha256(content.encode()).hexdigest()[:16]
    assert records_hash([said]) != records_hash([Dialogue(("你好", "好"), label=True)])


def test_records_hash_is_of_the_content_alone() -> None:
    one = [Dialogue(("你好", "好"), where="a:1")]
    assert records_hash(one) == records_hash([Dialogue(("你好", "好"), where="b:7")])
    for other in ([Dialogue(("你好好",))], [Text("你好")], [PromptResponse("你好", "好")], one * 2):
        assert records_hash(one) != records_hash(other)


def test_weights_hash_sees_one_changed_value() -> None:
    layer = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    before = weights_hash(layer)
    assert before == weights_hash(layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert weights_hash(layer) != before


def test_a_result_names_how_it_was_computed() -> None:
    found = {dtype: computed_by(open_model(GOLDEN, dtype=dtype, device="cpu")) for dtype in ("fp32", "bf16", "int8")}
    assert {dtype: (one["precision"], one["device"]) for dtype, one in found.items()} == {
        "fp32": ("float32", "cpu"),
        "bf16": ("bfloat16", "cpu"),
        "int8": ("int8", "cpu"),
    }


def test_a_result_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hanmo" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(hanmo, "__file__", str(package))
    monkeypatch.setattr(provenance, "_installed", lambda: "")
    assert software() == {"hanmo": hanmo.__version__}  # no checkout
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "hanmo"], ["commit", "-qm", "first"]):
        processes.run([*git, *arguments], check=True)
    head = processes.run([*git, "rev-parse", "HEAD"], check=True).stdout
    assert software()["commit"] == head[:12]
    package.write_text("changed")
    assert software()["commit"] == head[:12] + "+"


def test_the_commit_that_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_checkout", lambda: "")
    noted: Any = SimpleNamespace(read_text=lambda name: '{"vcs_info": {"commit_id": "0123456789abcdef"}}')
    monkeypatch.setattr(provenance.metadata, "distribution", lambda name: noted)
    assert software()["commit"] == "0123456789ab"
    noted.read_text = lambda name: None  # installed from a folder or a registry
    assert "commit" not in software()
