"""LoRA adapters in peft's form: written by a run, applied by ``--adapter``, and never trusted."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.adapter import ADAPTER_WEIGHTS
from hanmo.checkpoints.convert import convert
from hanmo.cli import main
from hanmo.errors import CheckpointError, ConfigError, HanmoError, UnsupportedError
from hanmo.families.safe_loading import ADAPTER_CONFIG
from hanmo.rows import collate
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.stages.reward import RewardConfig, train_reward
from hanmo.training.stages.sft import SftConfig, sft
from tests.unit.alignment_cases import REWARD
from tests.unit.test_packing import examples
from tests.unit.tiny import NAMES, SENTENCES, tiny
from tests.unit.transformers_models import tokenizer, write_model

LORA = {"rank": 2, "alpha": 6}
TRAINER = {
    "use_cpu": True,
    "learning_rate": 0.05,
    "max_steps": 3,
    "report_to": "none",
    "per_device_train_batch_size": 2,
}


def base(name: str, folder: Path) -> Path:
    """A tiny model of a family, saved."""
    save_model(tiny(name, folder / "vocabulary"), folder / "base")
    return folder / "base"


def pairs(folder: Path) -> str:
    """Scored answers, whose best ones are learned by sft too."""
    path = folder / "pairs.jsonl"
    answers = [{"answer": "很好", "score": 1}, {"answer": "不错", "score": 0}]
    lines = [json.dumps({"prompt": text, "answers": answers}, ensure_ascii=False) for text in SENTENCES]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def outputs(network: Any, batch: dict[str, Tensor], labels: bool = False) -> Tensor:
    """Logits, or the values of a reward model."""
    with torch.no_grad():
        found = network(**{key: value for key, value in batch.items() if labels or key not in ("labels", "weights")})
    return found.value if labels else found.logits


def batch_of(opened: Any) -> dict[str, Tensor]:
    rows = examples(opened)
    return collate([rows.row(place) for place in range(2)], opened.family.padding)


@pytest.mark.parametrize("name", NAMES)
def test_plain_peft_gives_the_logits_of_a_run(name: str, tmp_path: Path) -> None:
    """RUN/adapter on the base with peft's own classes, ``--adapter`` and RUN/model are one model."""
    start = base(name, tmp_path)
    outcome = sft(
        SftConfig(str(start), pairs(tmp_path), str(tmp_path / "run"), lora=LORA, save="both", limit=64, trainer=TRAINER)
    )
    assert outcome.model and outcome.adapter == str(tmp_path / "run" / "adapter")
    assert {file.name for file in Path(outcome.adapter).iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    before = open_model(start, dtype="fp32", device="cpu")
    batch = batch_of(before)
    plain = AutoModelForCausalLM.from_pretrained(start) if name == "huggingface" else before.network
    peft = PeftModel.from_pretrained(plain.eval(), outcome.adapter)
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "weights")}
    with torch.no_grad():
        expected = peft(**inputs).logits
    ours = open_model(start, adapter=outcome.adapter, dtype="fp32", device="cpu")
    merged = open_model(outcome.model, dtype="fp32", device="cpu")
    old = outputs(open_model(start, dtype="fp32", device="cpu").network, batch)
    assert (expected - old).abs().max() > 0.01  # it has learned
    torch.testing.assert_close(outputs(ours.network, batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs(merged.network, batch), expected, rtol=1e-4, atol=1e-4)
    assert ours.source.endswith(f"with the adapter {outcome.adapter}, fp32")
    config = json.loads((Path(outcome.adapter) / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(start) and config["inference_mode"] is True


def test_a_run_leaves_the_adapter_alone_and_goes_on_from_one(tmp_path: Path) -> None:
    start, data = base("pangu", tmp_path), pairs(tmp_path)
    config = SftConfig(str(start), data, str(tmp_path / "run"), lora=LORA, save="adapter", limit=64, trainer=TRAINER)
    outcome = sft(config)
    assert (
        outcome.model is None
        and not (tmp_path / "run" / "model").exists()
        and (tmp_path / "run" / "report.html").exists()
    )
    with pytest.raises(ConfigError, match="a run that is over"):
        sft(config)
    second = DpoConfig(str(start), data, str(tmp_path / "dpo"), adapter=outcome.adapter, limit=64,
                       trainer={**TRAINER, "max_steps": 1, "learning_rate": 1e-9})  # fmt: skip
    after = dpo(second)
    batch = batch_of(tiny("pangu", tmp_path / "other"))
    applied = open_model(start, adapter=outcome.adapter, device="cpu")
    assert after.model is not None
    torch.testing.assert_close(
        outputs(open_model(after.model, device="cpu").network, batch),
        outputs(applied.network, batch),
        rtol=1e-4,
        atol=1e-4,
    )
    for wrong, problem in (
        ({"lora": {}}, "trains no adapters"),
        ({"adapter": outcome.adapter}, "merge the first one"),
    ):
        with pytest.raises(ConfigError, match=problem):
            SftConfig(str(start), data, **{"lora": LORA, "save": "both", **wrong})


def test_the_adapter_of_a_reward_model_brings_its_value_head(tmp_path: Path) -> None:
    start = base("glm", tmp_path)
    config = {"lora": LORA, "save": "both", "limit": 64, "trainer": TRAINER}
    for kind in ("linear", "mlp"):
        outcome = train_reward(
            RewardConfig(str(start), pairs(tmp_path), str(tmp_path / kind), value_head=kind, **config)
        )
        assert outcome.model and outcome.adapter
        whole, applied = (
            open_model(outcome.model, device="cpu"),
            open_model(start, adapter=outcome.adapter, device="cpu"),
        )
        batch = batch_of(whole)
        values = outputs(whole.network, batch, labels=True)
        torch.testing.assert_close(outputs(applied.network, batch, labels=True), values, rtol=1e-4, atol=1e-4)


def test_the_adapter_of_a_policy_has_neither_value_head_nor_critic(tmp_path: Path) -> None:
    start, data = base("pangu", tmp_path), pairs(tmp_path)
    train_reward(
        RewardConfig(str(start), data, str(tmp_path / "reward"), limit=64, trainer={**TRAINER, "max_steps": 1})
    )
    trainer = {"use_cpu": True, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    config = PpoConfig(
        str(start), data, str(tmp_path / "run"), rewards=(REWARD,), rounds=1, samples=4, limit=32, lora=LORA, save="both",
        generation={"max_new_tokens": 4}, critic=str(tmp_path / "reward" / "model"), trainer=trainer,
    )  # fmt: skip
    outcome = ppo(config)
    assert outcome.model and outcome.adapter
    assert all(".lora_" in name and "critic" not in name for name in load_file(Path(outcome.adapter) / ADAPTER_WEIGHTS))
    whole, applied = open_model(outcome.model, device="cpu"), open_model(start, adapter=outcome.adapter, device="cpu")
    assert applied.network.value_head is None
    batch = batch_of(whole)
    torch.testing.assert_close(outputs(applied.network, batch), outputs(whole.network, batch), rtol=1e-4, atol=1e-4)
    peft = PeftModel.from_pretrained(open_model(start, device="cpu").network, outcome.adapter)
    torch.testing.assert_close(outputs(peft, batch), outputs(whole.network, batch), rtol=1e-4, atol=1e-4)


OF_PEFT: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {"target_modules": ["q_proj", "k_proj"], "alpha_pattern": {"layers.0.self_attn.q_proj": 40}, "rank_pattern": {"k_proj": 3}},
    "embedding and tied head": {"target_modules": ["embed_tokens", "v_proj"]},
    "tied head": {"target_modules": ["lm_head"]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "bias": {"target_modules": ["q_proj"], "bias": "all"},
    "transposed": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_PEFT)
@pytest.mark.filterwarnings("ignore")
def test_adapters_that_peft_wrote_give_pefts_logits(kind: str, tmp_path: Path) -> None:
    if kind == "transposed":
        tokenizer().save_pretrained(start := tmp_path / "base")
        config = GPT2Config(vocab_size=len(tokenizer()), n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        GPT2LMHeadModel(config).save_pretrained(start)
    else:
        more = (
            {"attention_bias": True} if kind == "bias" else {"tie_word_embeddings": "tied" in kind or "whole" in kind}
        )
        start = write_model("llama" if kind == "bias" else "qwen3", tmp_path / "base", **more)
    plain = AutoModelForCausalLM.from_pretrained(start).eval()
    torch.manual_seed(1)
    peft = get_peft_model(plain, LoraConfig(r=2, lora_alpha=8, **OF_PEFT[kind]))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    peft.save_pretrained(tmp_path / "adapter")
    opened = open_model(start, adapter=tmp_path / "adapter", dtype="fp32", device="cpu")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected, before = peft(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(start)(input_ids=ids).logits
        found = opened.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    save_model(opened, tmp_path / "saved")
    again = open_model(tmp_path / "saved", dtype="fp32", device="cpu").network
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and an adapter of it."""
    folder = tmp_path_factory.mktemp("adapters")
    start = base("pangu", folder)
    network = get_peft_model(open_model(start, device="cpu").network, LoraConfig(r=2, target_modules=["q_proj"]))
    network.save_pretrained(str(folder / "adapter"))
    return start, folder / "adapter"


def changed(adapter: Path, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor | None]) -> Path:
    """A copy of an adapter with other settings and tensors."""
    place = folder / "adapter"
    shutil.copytree(adapter, place)
    content = json.loads((place / ADAPTER_CONFIG).read_text())
    (place / ADAPTER_CONFIG).write_text(json.dumps({**content, **config}))
    kept = {**load_file(place / ADAPTER_WEIGHTS), **tensors}
    save_file({name: x for name, x in kept.items() if x is not None}, place / ADAPTER_WEIGHTS)
    return place


FIRST = "base_model.model.layers.0.attention.q_proj"
HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Tensor | None], type[HanmoError], str]] = {
    "another method": ({"peft_type": "IA3"}, {}, UnsupportedError, "peft_type is 'IA3'; hanmo applies LORA alone"),
    "not plain LoRA": ({"use_dora": True}, {}, UnsupportedError, "use_dora=True: not plain LoRA"),
    "changes the base": ({"init_lora_weights": "pissa"}, {}, UnsupportedError, "init_lora_weights='pissa'"),
    "no number": ({"lora_alpha": float("nan")}, {}, CheckpointError, "must give finite numbers"),
    "alpha as text": ({"lora_alpha": "8"}, {}, CheckpointError, "must give finite numbers"),
    "a pattern": ({"alpha_pattern": {"(a+)+$": 2}}, {}, UnsupportedError, r"alpha_pattern has '\(a\+\)\+\$'"),
    "patterns as a list": ({"alpha_pattern": [1]}, {}, CheckpointError, "must give finite numbers"),
    "whole modules as text": ({"modules_to_save": "lm_head"}, {}, CheckpointError, "must be a list of names"),
    "a name of no module": ({}, {"base_model.model.evil.lora_A.weight": torch.ones(2, 2),
                                 "base_model.model.evil.lora_B.weight": torch.ones(2, 2)},
                            CheckpointError, "evil: the model has no such weight"),
    "a name of no parameter": ({}, {"base_model.model.evil": torch.ones(1)}, CheckpointError, "evil: the model has no such"),
    "another prefix": ({}, {"evil": torch.ones(1)}, CheckpointError, "'evil' is no name that peft gives"),
    "half a pair": ({}, {f"{FIRST}.lora_B.weight": None}, CheckpointError, "q_proj lora_B is missing"),
    "another width": ({}, {f"{FIRST}.lora_A.weight": torch.ones(2, 7)}, CheckpointError, r"it has \(32, 7\) float32, the model"),
    "another rank": ({}, {f"{FIRST}.lora_A.weight": torch.ones(3, 32)}, CheckpointError, "do not multiply"),
    "no rank": ({}, {f"{FIRST}.lora_A.weight": torch.ones(0, 32), f"{FIRST}.lora_B.weight": torch.ones(32, 0)},
                CheckpointError, "do not multiply"),
    "integers": ({}, {f"{FIRST}.weight": torch.ones(32, 32, dtype=torch.int64)}, CheckpointError, r"\(32, 32\) int64"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_adapter_that_does_not_fit_is_one_message(kind: str, made: tuple[Path, Path], tmp_path: Path) -> None:
    config, tensors, error, problem = HOSTILE[kind]
    with pytest.raises(error, match=problem):
        open_model(made[0], adapter=changed(made[1], tmp_path, config, tensors), device="cpu")


def test_names_in_an_adapters_configuration_lead_nowhere(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither a base on a hub, nor modules of Python, nor a pattern that would take for ever is looked at."""
    config = {
        "base_model_name_or_path": "org/not-there", "auto_mapping": {"base_model_class": "x", "parent_library": "evil"},
        "megatron_core": "evil", "target_modules": "(((a+)+)+)+$", "rank_pattern": {"(a+)+$": 3}, "task_type": "EVIL",
    }  # fmt: skip
    expected = open_model(made[0], adapter=made[1], device="cpu").network.state_dict()
    found = open_model(made[0], adapter=changed(made[1], tmp_path, config, {}), device="cpu").network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pickles_and_folders_without_an_adapter_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(made[1] / ADAPTER_CONFIG, pickled)
    torch.save(load_file(made[1] / ADAPTER_WEIGHTS), pickled / "adapter_model.bin")
    with pytest.raises(
        UnsupportedError, match=r"adapter_model\.bin: a pickle; adapters are read from safetensors alone"
    ):
        open_model(made[0], adapter=pickled, device="cpu")
    with pytest.raises(CheckpointError, match="no adapter in it"):
        open_model(made[0], adapter=made[0], device="cpu")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: no such file"):
        (pickled / "adapter_model.bin").unlink()
        open_model(made[0], adapter=pickled, device="cpu")
    (pickled / ADAPTER_WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        open_model(made[0], adapter=pickled, device="cpu")


def test_commands_take_an_adapter(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, adapter = made
    (tmp_path / "texts.jsonl").write_text('{"text": "今天天气真不错"}\n', encoding="utf-8")
    report = convert(start, tmp_path / "merged", adapter=adapter)
    assert (
        report["parameters"] == open_model(start, device="cpu").network.num_parameters() and report["family"] == "pangu"
    )
    expected = open_model(start, adapter=adapter, device="cpu").network.state_dict()
    found = open_model(tmp_path / "merged", device="cpu").network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for options in ({"to": "hf"}, {"verify": True}, {"resume": True}):
        with pytest.raises(ConfigError, match="--adapter"):
            convert(start, tmp_path / "other", adapter=adapter, **options)
    with pytest.raises(UnsupportedError, match="merged into a whole model"):
        open_model(start, adapter=adapter, tensor_parallel=2)
    for command in (["generate", "你好", "max_new_tokens=2"], ["eval", "perplexity", str(tmp_path / "texts.jsonl")]):
        place = 2 if command[0] == "eval" else 1
        given = [
            *command[:place],
            str(start),
            *command[place:],
            "--adapter",
            str(tmp_path / "nothing"),
            "--device",
            "cpu",
        ]
        monkeypatch.setattr(sys, "argv", ["hanmo", *given])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "no adapter in it" in capsys.readouterr().err
