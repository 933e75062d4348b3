"""Current transformers architectures through every stage, by the command line, checked with transformers alone."""

import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from hanmo.cli import app
from hanmo.errors import HanmoError
from hanmo.training.callbacks import read_metrics
from tests import processes
from tests.ranks import ROOT
from tests.unit.clue_files import clue_folder
from tests.unit.transformers_models import EOS, Plain, write_model

# What differs between them: chat template, what the tokenizer puts around a text, tied head, encoder.
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True},
    "llama": {"chat": False, "around": "<bos> $A"},
    "glm4": {"around": "<|im_start|> <bos> $A"},
    "mt5": {"around": "$A <eos>", "tie_word_embeddings": False, "dropout_rate": 0.0},
}
PAIRS = [
    ("今天天气怎么样?", "今天天气真不错。"),
    ("明天去哪里玩?", "去吃火锅。"),
    ("你好吗?", "我很好,谢谢。"),
    ("再见", "明天见。"),
]
TEXTS = ["今天天气真不错,明天去哪里玩?", "我很好,谢谢。", "火锅怎么样?是的,火锅真不错,今天再去吃。", "你好呀,再见。"]
TRAINER = [f"trainer.{one}" for one in ("use_cpu=true", "logging_steps=1", "seed=1", "lr_scheduler_type=constant")]
TRAINER += [f"trainer.{one}" for one in ("per_device_train_batch_size=4", "per_device_eval_batch_size=4")]


def hanmo(*words: Any, said: str | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=said)
    assert result.exit_code == code, f"{words}\n{result.output}\n{result.exception!r}"
    return result


def write_lines(path: Path, values: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models by name, and data for every stage."""
    place = tmp_path_factory.mktemp("stages")
    for name, settings in MODELS.items():
        write_model(name, place / name, **settings)
    write_lines(place / "pairs.jsonl", [{"prompt": prompt, "response": response} for prompt, response in PAIRS])
    write_lines(place / "texts.jsonl", [{"text": text} for text in TEXTS])
    better = [
        {"prompt": p, "chosen": response, "rejected": "不" + PAIRS[n - 1][1]} for n, (p, response) in enumerate(PAIRS)
    ]
    write_lines(place / "preferences.jsonl", better)
    (place / "talk.txt").write_text("".join(f"{p}\t{response}\n" for p, response in PAIRS), encoding="utf-8")
    return place


FAST = ("qwen3", "mt5")  # a decoder with a chat template, and an encoder-decoder


@pytest.fixture(params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def train(stage: str, model: Path, data: Path, out: Path, *settings: str) -> list[dict[str, Any]]:
    """Run a stage of training; returns what it logged."""
    hanmo("train", stage, model, data, out, *TRAINER, *settings)
    return read_metrics(out / "metrics.jsonl")


def falls(entries: Sequence[dict[str, Any]], name: str = "loss") -> None:
    losses = [entry[name] for entry in entries if name in entry]
    assert len(losses) > 3 and all(map(math.isfinite, losses))
    assert min(losses) < 0.8 * losses[0], losses


def same_model(before: Path, after: Path, *untouched: str) -> Plain:
    """What a stage has left, which transformers alone opens as the same kind of model, with other weights in all of it."""
    one, two = Plain(before), Plain(after)
    assert type(one.model) is type(two.model) and one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    assert one.tokenizer.chat_template == two.tokenizer.chat_template and one.asked("你好") == two.asked("你好")
    weights = dict(two.model.named_parameters())
    same = {key for key, tensor in one.model.named_parameters() if torch.equal(tensor, weights[key])}
    assert same == {key for key in weights if any(part in key for part in untouched)}
    return two


def test_inspect(name: str, place: Path, tmp_path: Path) -> None:
    plain = Plain(place / name)
    report = json.loads(hanmo("inspect", place / name, "--json").stdout)
    assert report["family"] == "huggingface" and report["healthy"]
    assert report["parameters"] == sum(tensor.numel() for tensor in plain.model.parameters())
    assert report["vocabulary"] == {"tokens": len(plain.tokenizer), "rows": plain.config.vocab_size}
    write_model(name, tmp_path / "bad", **MODELS[name])
    weights = load_file(tmp_path / "bad" / "model.safetensors")
    key = next(key for key in weights if "layers.1" in key or "block.1" in key)
    weights[key][0] = math.nan
    save_file(weights, tmp_path / "bad" / "model.safetensors", {"format": "pt"})
    report = json.loads(hanmo("inspect", tmp_path / "bad", "--json", code=1).stdout)
    assert any(check["verdict"] == "fault" and key in check["detail"] for check in report["checks"])


def test_convert(name: str, place: Path, tmp_path: Path) -> None:
    """To safetensors with hashes, from a pickle and in another precision; there is no older layout to go back to."""
    before = Plain(place / name)
    given, answer = before.asked("你好"), before.ids("谢谢")
    pickled = shutil.copytree(place / name, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    hanmo("convert", pickled, tmp_path / "again", "--verify")
    after = Plain(tmp_path / "again")
    stated = after.model.generation_config.eos_token_id
    assert after.asked("你好") == given and stated == (EOS if after.stop == EOS else [after.stop, EOS])
    assert torch.equal(after.hidden_and_logits(given, answer)[1], before.hidden_and_logits(given, answer)[1])
    checks = json.loads(hanmo("inspect", tmp_path / "again", "--json").stdout)["checks"]
    assert {"name": "hashes", "verdict": "ok"}.items() <= next(one for one in checks if one["name"] == "hashes").items()
    hanmo("convert", place / name, tmp_path / "half", "--dtype", "bf16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert type(Plain(tmp_path / "half").model) is type(before.model)
    for form, reason in (("original", "no other layout"), ("hf", "without --to hf")):
        refused = hanmo("convert", place / name, tmp_path / form, "--to", form, code=1)
        assert isinstance(refused.exception, HanmoError) and reason in str(refused.exception)
        assert not (tmp_path / form).exists()


def test_chat(name: str, place: Path) -> None:
    plain = Plain(place / name)
    settings = ("do_sample=false", "max_new_tokens=6")
    shown = hanmo("chat", place / name, *settings, said="你好\nclear\n谢谢\n/quit\n").stdout
    said = [text.partition("Usr >>> ")[0].removesuffix("\n") for text in shown.split("Sys >>> ")[1:]]
    assert said == [plain.greedy(plain.asked(text), 6) for text in ("你好", "谢谢")]


def test_generate_and_rouge(name: str, place: Path, tmp_path: Path) -> None:
    plain = Plain(place / name)
    prompts = [{"prompt": p} for p, _ in PAIRS[:2]] + [{"text": TEXTS[0]}, {"turns": ["你好", "你好呀", "再见"]}]
    options = ("--batch-size", 3, "max_new_tokens=7", "do_sample=false")
    file = write_lines(tmp_path / "prompts.jsonl", prompts)
    hanmo("generate", place / name, "--input", file, "--output", tmp_path / "out.jsonl", *options)
    asked = [
        *(plain.asked(p) for p, _ in PAIRS[:2]),
        plain.tokenizer.encode(TEXTS[0]),
        plain.asked("你好", "你好呀", "再见"),
    ]
    rows = read_lines(tmp_path / "out.jsonl")
    expected = [plain.greedy(ids, 7) for ids in asked]
    assert [row["generation"] for row in rows] == expected and len(set(expected)) > 2
    assert all(row["score"] < 0 and 0 <= row["tokens"] <= 7 for row in rows)
    said = ["".join(text.split()) or "无" for text in expected]
    (tmp_path / "said.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    (tmp_path / "wanted.txt").write_text("\n".join([*said[:3], "乙"]) + "\n", encoding="utf-8")
    found = json.loads(hanmo("eval", "rouge", tmp_path / "said.txt", tmp_path / "wanted.txt", "--json").stdout)
    assert found["texts"] == 4 and found["rouge-l"] == pytest.approx(0.75)


def test_tokenize_and_pretrain(name: str, place: Path, tmp_path: Path) -> None:
    """A store holds the ids that transformers makes, and training on it is training on the text."""
    plain = Plain(place / name)
    store = (
        "data",
        "tokenize",
        place / "texts.jsonl",
        "--out",
        tmp_path / "store",
        "--tokenizer",
        place / name,
        "--json",
    )
    about = json.loads(hanmo(*store).stdout)
    assert about["documents"] == len(TEXTS) and about["tokens"] == sum(len(plain.ids(text)) for text in TEXTS)
    settings = ("trainer.max_steps=8", "trainer.learning_rate=0.01", "limit=32", f"valid={place}/texts.jsonl")
    of_text = train("pretrain", place / name, place / "texts.jsonl", tmp_path / "text", *settings)
    settings = (*settings[:-1], f"valid={tmp_path}/store")
    of_store = train("pretrain", place / name, tmp_path / "store", tmp_path / "run", *settings)
    falls(of_text, "eval_loss")
    assert [one.get("loss") for one in of_text] == [one.get("loss") for one in of_store]
    after = same_model(place / name, tmp_path / "run" / "model")
    if not plain.encodes:  # of which what is read and what is learned is drawn
        rows = [(plain.around()[0], [*plain.ids(text), plain.stop]) for text in TEXTS]
        rows = rows if rows[0][0] else [(answer[:1], answer[1:]) for _, answer in rows]
        for model, loss in (
            (plain, of_text[0]["eval_loss"]),
            (after, min(e["eval_loss"] for e in of_text if "eval_loss" in e)),
        ):
            assert model.nll(rows) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("how", ["full", "packed", "lora", "selective"])
def test_sft(name: str, how: str, place: Path, tmp_path: Path) -> None:
    settings = {
        "full": [],
        "packed": ["packing=true", "limit=64"],
        "lora": ["lora.rank=4", "lora.alpha=16", "trainer.learning_rate=0.03"],
        "selective": ["selective_checkpointing=true"],
    }[how]
    arguments = [
        f"valid={place}/pairs.jsonl",
        "trainer.max_steps=8",
        "trainer.learning_rate=0.01",
        "trainer.eval_steps=2",
    ]
    arguments += ["trainer.eval_strategy=steps", "trainer.save_steps=2", *settings]
    if how == "packed" and name == "mt5":
        words = ("train", "sft", place / name, place / "pairs.jsonl", tmp_path / "run", *TRAINER, *arguments)
        assert "packing" in str(hanmo(*words, code=1).exception)
        return
    entries = train("sft", place / name, place / "pairs.jsonl", tmp_path / "run", *arguments)
    falls(entries, "eval_loss")
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    alone = ("embed", "shared", "norm", "lm_head", "relative", "bias") if how == "lora" else ()
    before, after = Plain(place / name), same_model(place / name, tmp_path / "run" / "model", *alone)
    for model, loss in ((before, losses[0]), (after, min(losses))):
        rows = [(model.asked(prompt), [*model.ids(response), model.stop]) for prompt, response in PAIRS]
        assert model.nll(rows) == pytest.approx(loss, rel=1e-4)


def test_reward_model(name: str, place: Path, tmp_path: Path) -> None:
    """It learns to tell; its scores are its value head's on the hidden states of transformers' own model."""
    settings = ("trainer.max_steps=12", "trainer.learning_rate=0.01", f"valid={place}/preferences.jsonl")
    entries = train("reward", place / name, place / "preferences.jsonl", tmp_path / "run", *settings)
    falls(entries, "eval_loss")
    model = tmp_path / "run" / "model"
    hanmo("reward", "score", model, place / "preferences.jsonl", "--out", tmp_path / "scores.jsonl", "--dtype", "fp32")
    rows = read_lines(tmp_path / "scores.jsonl")
    assert len(rows) == 2 * len(PAIRS)
    assert all(chosen["reward"] > rejected["reward"] for chosen, rejected in zip(rows[::2], rows[1::2], strict=True))
    plain, head = Plain(model), load_file(model / "model.safetensors")
    for (prompt, _), row in zip(PAIRS, rows[::2], strict=True):
        hidden = plain.hidden_and_logits(plain.asked(prompt), [*plain.ids(row["answer"]), plain.stop])[0][-1]
        assert row["reward"] == pytest.approx((hidden @ head["value_head.output.weight"][0]).item(), abs=1e-4)


def test_dpo(name: str, place: Path, tmp_path: Path) -> None:
    settings = ("trainer.max_steps=8", "trainer.learning_rate=0.003", f"valid={place}/preferences.jsonl")
    entries = train("dpo", place / name, place / "preferences.jsonl", tmp_path / "run", *settings)
    falls(entries, "eval_loss")
    evaluated = [entry for entry in entries if "eval_loss" in entry]
    assert evaluated[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference
    after = same_model(place / name, tmp_path / "run" / "model")
    pairs = read_lines(place / "preferences.jsonl")
    chosen = [after.logprobs(after.asked(p["prompt"]), [*after.ids(p["chosen"]), after.stop]).sum() for p in pairs]
    best = min(evaluated, key=lambda entry: entry["eval_loss"])
    assert torch.stack(chosen).mean().item() == pytest.approx(best["eval_chosen_logprob"], rel=1e-4)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rewards(name: str, stage: str, place: Path, tmp_path: Path) -> None:
    """A reward that anyone can check goes up; the policy is held near its start, and what is saved is a plain model."""
    settings = ["rewards=[tests.unit.alignment_cases:contains]", "rounds=10", "samples=32", "limit=32", "epochs=2"]
    settings += ["generation.max_new_tokens=5", "beta=0.01", "trainer.learning_rate=0.01", "show_rounds=1"]
    settings += ["trainer.per_device_train_batch_size=16", "trainer.per_device_eval_batch_size=32"]
    entries = train(stage, place / name, place / "pairs.jsonl", tmp_path / "run", *settings)
    rounds = [entry for entry in entries if "reward" in entry]
    assert abs(rounds[0]["kl_reply"]) < 1e-3 and all(math.isfinite(entry["loss"]) for entry in rounds)
    assert max(entry["reward"] for entry in rounds) > rounds[0]["reward"] + 0.1, [e["reward"] for e in rounds]
    same_model(place / name, tmp_path / "run" / "model")
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert samples and {sample["prompt"] for sample in samples} <= {prompt for prompt, _ in PAIRS}


def test_perplexity(name: str, place: Path) -> None:
    plain = Plain(place / name)
    options = ("--json", "--dtype", "fp32")
    found = json.loads(hanmo("eval", "perplexity", place / name, place / "talk.txt", *options).stdout)
    rows = [(plain.asked(prompt), [*plain.ids(response), plain.stop]) for prompt, response in PAIRS]
    assert found["records"] == len(PAIRS) and found["tokens"] == sum(len(answer) for _, answer in rows)
    assert found["perplexity"] == pytest.approx(math.exp(plain.nll(rows)), rel=1e-4)
    found = json.loads(hanmo("eval", "perplexity", place / name, place / "texts.jsonl", *options).stdout)
    given = plain.tokenizer.encode("") if plain.encodes else plain.around()[0]
    rows = [(given, [*plain.ids(text), plain.stop]) for text in TEXTS]
    rows = rows if given else [(answer[:1], answer[1:]) for _, answer in rows]
    assert found["perplexity"] == pytest.approx(math.exp(plain.nll(rows)), rel=1e-4)


def test_dialogue(name: str, place: Path, tmp_path: Path) -> None:
    plain = Plain(place / name)
    options = ("do_sample=false", "max_new_tokens=6", "--output", tmp_path / "out", "--json")
    found = json.loads(hanmo("eval", "dialogue", place / name, place / "talk.txt", *options, "--dtype", "fp32").stdout)
    rows = read_lines(tmp_path / "out" / "generations.jsonl")
    assert [row["generation"] for row in rows] == [plain.greedy(plain.asked(prompt), 6) for prompt, _ in PAIRS]
    scored = [(plain.asked(prompt), [*plain.ids(response), plain.stop]) for prompt, response in PAIRS]
    assert found["corrected"]["perplexity"] == pytest.approx(math.exp(plain.nll(scored)), rel=1e-4)


def test_clue(name: str, place: Path, tmp_path: Path) -> None:
    """A candidate's score is what transformers makes of the text with it."""
    plain = Plain(place / name)
    data = clue_folder(tmp_path / "clue")
    hanmo(
        "eval",
        "clue",
        place / name,
        "--data",
        data,
        "--tasks",
        "afqmc",
        "--output",
        tmp_path / "out",
        "--dtype",
        "fp32",
    )
    records, rows = read_lines(data / "afqmc" / "dev.json"), read_lines(tmp_path / "out" / "items.jsonl")
    assert len(rows) == len(records)
    for record, row in zip(records, rows, strict=True):
        before = f"句子一：{record['sentence1']}\n句子二：{record['sentence2']}\n这两个句子的意思"
        given = plain.tokenizer.encode(before) if plain.encodes else [*plain.around()[0], *plain.ids(before)]
        expected = [plain.logprobs(given, plain.ids(option)).sum().item() for option in row["options"]]
        # What all options begin with is the decoders' context; it adds the same to all.
        found = torch.tensor(row["scores"]["sum"]).diff()
        assert torch.allclose(found, torch.tensor(expected).diff(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "glm4"])  # the others: test_tensor_parallel.py
def test_chat_over_two_ranks(name: str, place: Path) -> None:
    said = []
    for ranks in ("1", "2"):
        command = [sys.executable, "-m", "hanmo", "chat", str(place / name), "--seed", "3", "--dtype", "fp32"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = processes.run(
            [*command, "max_new_tokens=8", "--tensor-parallel", ranks],
            input="你好\n谢谢\n",
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].count("Sys >>> ") == 2
