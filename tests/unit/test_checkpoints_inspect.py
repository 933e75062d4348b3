"""Inspection: what is there is described, every illness has its verdict, and nothing is read that need not be."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hanmo.checkpoints import save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import Report, inspect_model
from hanmo.cli import app
from tests.unit.checkpoint_files import HUB, MEGATRON, original_tensors, tiny_eva, write_hub, write_megatron


def verdicts(report: Report) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def detail(report: Report, name: str) -> str:
    return next(check.detail for check in report.checks if check.name == name)


def test_a_healthy_original(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "m")
    report = inspect_model(folder, config=folder / "model_config.json")
    assert report.healthy and set(verdicts(report).values()) == {"ok"}
    assert (report.family, report.layout, report.ranks, report.iteration) == ("eva", "megatron", 1, 7)
    assert report.parameters == sum(tensor.numel() for tensor in tiny_eva().network.state_dict().values())
    assert report.dtypes == {"fp16": sum(tensor.numel() for tensor in original_tensors(MEGATRON).values())}
    rows = tiny_eva().network.config.vocab_size
    assert report.vocabulary == {"tokens": rows, "rows": rows}


def test_a_healthy_folder_of_ours(tmp_path: Path) -> None:
    report = inspect_model(save_model(tiny_eva(), tmp_path / "ours"))
    assert report.healthy and set(verdicts(report).values()) == {"ok"}
    assert (report.family, report.layout) == ("eva", "hanmo")


def test_what_is_undecided_is_a_warning_not_a_fault(tmp_path: Path) -> None:
    report = inspect_model(write_megatron(tmp_path / "m"))
    assert report.healthy and verdicts(report)["configuration"] == "warning"
    assert "--config FILE" in detail(report, "configuration")


def test_numbers_that_are_none_are_found(tmp_path: Path) -> None:
    tensors = original_tensors(HUB)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    tensors["lm_head.weight"][0, :2] = torch.tensor([float("nan"), float("inf")])
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[name] = torch.zeros_like(tensors[name])
    report = inspect_model(write_hub(tmp_path / "hub", tensors))
    assert not report.healthy
    assert detail(report, "numbers") == f"not finite: lm_head.weight: 2 of {tensors['lm_head.weight'].numel()}"
    assert verdicts(report)["zeros"] == "warning" and name in detail(report, "zeros")


def test_nothing_is_read_unless_asked(tmp_path: Path) -> None:
    tensors = original_tensors(HUB)
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], float("nan"))
    report = inspect_model(write_hub(tmp_path / "hub", tensors), deep=False)
    assert report.healthy and verdicts(report)["numbers"] == "skipped"


def test_missing_tensors_are_found(tmp_path: Path) -> None:
    tensors = original_tensors(HUB)
    del tensors["encoder.final_layer_norm.weight"]
    report = inspect_model(write_hub(tmp_path / "hub", tensors))
    assert verdicts(report)["names"] == "fault"
    assert detail(report, "names") == "1 missing: encoder.final_layer_norm.weight"


def test_a_wrong_configuration_is_found(tmp_path: Path) -> None:
    report = inspect_model(write_hub(tmp_path / "hub", d_ff=33))
    assert verdicts(report)["configuration"] == "fault"
    assert "DenseReluDense.wi_0.weight is (32, 16), expected (33, 16)" in detail(report, "configuration")


def test_a_vocabulary_of_another_model_is_found(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "m")
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("多\n")
    report = inspect_model(folder)
    rows = tiny_eva().network.config.vocab_size
    assert verdicts(report)["vocabulary"] == "fault"
    assert f"{rows + 1} tokens, the embedding {rows} rows" in detail(report, "vocabulary")


def test_a_vocabulary_that_knows_no_chinese_is_a_warning(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "m")
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    strange = [f"w{number}" if token[:1] > "\u4e00" else token for number, token in enumerate(tokens)]
    (folder / "vocab.txt").write_text("\n".join(strange), encoding="utf-8")
    report = inspect_model(folder)
    assert verdicts(report)["tokenizer"] == "warning"
    assert "tokens of ordinary Chinese are unknown" in detail(report, "tokenizer")


def test_copies_that_differ_are_found(tmp_path: Path) -> None:
    tensors = original_tensors(HUB)
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    report = inspect_model(write_hub(tmp_path / "hub", tensors))
    assert verdicts(report)["copies"] == "fault"


def test_a_head_tied_by_mistake_is_found(tmp_path: Path) -> None:
    tensors = original_tensors(HUB)
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    report = inspect_model(write_hub(tmp_path / "hub", tensors))
    assert verdicts(report)["head"] == "fault"


def test_ranks_that_differ_where_they_hold_the_same_are_found(tmp_path: Path) -> None:
    two = tmp_path / "two"
    convert(write_megatron(tmp_path / "m"), two, to="original", ranks=2)
    assert verdicts(inspect_model(two))["ranks"] == "ok"
    file = two / "7" / "mp_rank_01_model_states.pt"
    content = torch.load(file)
    content["module"]["encoder.final_layernorm.weight"] += 1
    torch.save(content, file)
    report = inspect_model(two)
    assert verdicts(report)["ranks"] == "warning"
    assert detail(report, "ranks") == "differ between ranks: encoder.final_layernorm.weight"


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_file_is_found(tmp_path: Path, keep: float) -> None:
    folder = write_hub(tmp_path / "hub")
    file = folder / "pytorch_model.bin"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    report = inspect_model(folder)
    assert not report.healthy and verdicts(report) == {"files": "fault"}
    assert "pytorch_model.bin" in detail(report, "files")


def test_a_model_of_transformers_is_recognised(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2))
    network.save_pretrained(tmp_path / "gpt2")
    report = inspect_model(tmp_path / "gpt2")
    assert report.healthy and (report.family, report.layout) == ("huggingface", "transformers")


def test_the_command_prints_and_exits_by_health(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "hub")
    runner = CliRunner()
    good = runner.invoke(app, ["inspect", str(folder), "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["healthy"] is True
    (folder / "pytorch_model.bin").write_bytes(b"")
    bad = runner.invoke(app, ["inspect", str(folder)])
    assert bad.exit_code == 1
    assert "not healthy" in bad.stdout and "empty" in bad.stdout


def test_a_model_that_does_not_open_is_not_called_healthy(tmp_path: Path) -> None:
    """Its weights are; without configuration and vocabulary it is no whole model."""
    folder = write_megatron(tmp_path / "m")
    whole = CliRunner().invoke(app, ["inspect", str(folder), "--config", str(folder / "model_config.json")])
    assert whole.exit_code == 0 and whole.stdout.splitlines()[-1].strip() == "healthy"
    (folder / "vocab.txt").unlink()
    report = inspect_model(folder)
    assert report.healthy and report.lacks == ["configuration", "vocabulary"] == report.as_dict()["lacks"]
    said = CliRunner().invoke(app, ["inspect", str(folder)])
    last = "the weights are healthy; the model does not open without its configuration and vocabulary"
    assert said.exit_code == 0 and " ".join(said.stdout.split()).endswith(last)


def test_why_files_hold_more_numbers_than_a_model_has_parameters(tmp_path: Path) -> None:
    """EVA's originals store the embedding under three names."""
    config, sums = tiny_eva().network.config, tiny_eva().network.state_dict().values()
    parameters = sum(tensor.numel() for tensor in sums)
    folder = write_megatron(tmp_path / "m")
    copies = {name for name in original_tensors(MEGATRON) if name.endswith("_embeds.weight") and name.count(".") > 1}
    stored = parameters + sum(original_tensors(MEGATRON)[name].numel() for name in copies)
    said = " ".join(CliRunner().invoke(app, ["inspect", str(folder)]).stdout.split())
    assert config.vocab_size and stored > parameters and f"parameters {parameters:,} " in said
    assert f"dtype fp16 ({stored:,}): numbers in the files, with copies of parameters and constants" in said
    ours = CliRunner().invoke(app, ["inspect", str(save_model(tiny_eva(), tmp_path / "ours"))]).stdout
    assert f"fp32 ({parameters:,})" in ours and "copies" not in ours.split("check")[0]
