"""A model that computes no numbers is one message, never a reply or a result; all JSON is JSON."""

import ast
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hanmo
from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.cli import app
from hanmo.errors import CheckpointError, ConfigError, NotANumberError
from hanmo.evaluation.engine.candidates import score_candidates
from hanmo.evaluation.perplexity import PerplexityResult
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, or_null
from hanmo.generation.chat import ChatSession
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.nn.row_model import attach_value_head
from hanmo.records import Dialogue, PromptResponse
from hanmo.rows import Context, Part
from hanmo.training.callbacks import MetricsFile, read_metrics
from hanmo.training.rl.rewards import score_records
from hanmo.training.rl.rollout import OwnEngine
from tests.searching import stream
from tests.unit.tiny import tiny, tiny_eva
from tests.unit.transformers_models import write_model

GREEDY = Settings(do_sample=False, max_new_tokens=4)
WAYS = [GREEDY, Settings(max_new_tokens=4, seed=1), GREEDY.change(num_beams=2),
        Settings(max_new_tokens=4, seed=1, num_beams=2), Settings(max_new_tokens=4, seed=1, top_k=3, top_p=0.9)]  # fmt: skip
DAMAGED = "computes what is not a finite number .* weights are damaged: hanmo inspect"


def broken(folder: Path, value: float = float("nan")) -> OpenedModel:
    """A small PanGu one row of whose output head is damaged."""
    opened = tiny("pangu", folder)
    with torch.no_grad():
        opened.network.get_output_embeddings().weight[7] = value
    return opened


def context(opened: OpenedModel, text: str = "你好") -> Context:
    return opened.family.context(PromptResponse(text, ""), 32)


@pytest.mark.parametrize("settings", WAYS, ids=["greedy", "sampled", "beams", "sampled beams", "filtered"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_decoding_stops(settings: Settings, value: float, tmp_path: Path) -> None:
    opened = broken(tmp_path, value)
    asked = [context(opened), context(opened, "今天天气真不错")]
    with pytest.raises(NotANumberError, match=f"PanguModel in float32 {DAMAGED}"):
        generate(opened, asked, settings)
    with pytest.raises(NotANumberError, match=DAMAGED):
        list(stream(opened, asked[0], settings))
    with pytest.raises(NotANumberError, match=DAMAGED):
        ChatSession(opened, settings, 32).reply("你好")
    with pytest.raises(NotANumberError, match=DAMAGED):
        OwnEngine(opened, 4)(asked, settings, [Place(0), Place(1)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [*WAYS, WAYS[3].change(top_k=3, top_p=0.9)])
@pytest.mark.parametrize("token", ["<unk>", "你", None], ids=["banned", "sayable", "all"])
def test_rules_and_filters_hide_nothing(token: str | None, settings: Settings, value: float) -> None:
    """EVA's rules write finite scores over NaN and infinity (of <unk> always), and filters -inf; both were believed."""
    opened = tiny_eva()
    ids = slice(None) if token is None else opened.tokenizer.convert_tokens_to_ids(token)
    with torch.no_grad():
        opened.network.get_output_embeddings().weight[ids] = value
    rules = settings.change(repetition_penalty=1.2, no_repeat_ngram_size=3, min_new_tokens=1)
    with pytest.raises(NotANumberError, match=DAMAGED):
        generate(opened, [opened.family.context(Dialogue(("你好吗",)), 32)], rules)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_message_says_what_to_try(dtype: torch.dtype, tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path)
    opened.network.to(dtype)
    with torch.no_grad():  # finite weights whose products are beyond fp16
        for parameter in opened.network.get_output_embeddings().parameters():
            parameter.fill_(6e4 if dtype == torch.float16 else 3e38)
    wanted = "try --dtype bf16 or --dtype fp32" if dtype == torch.float16 else "try --dtype fp32"
    with pytest.raises(NotANumberError, match=f"in {str(dtype)[6:]} .*{wanted}"):
        generate(opened, [context(opened)], GREEDY)


def test_scoring_stops(tmp_path: Path) -> None:
    opened = broken(tmp_path)
    ids = context(opened).ids
    questions = [[[Part(ids, False), Part((9, answer), True)] for answer in (10, 11)]]
    with pytest.raises(NotANumberError, match=DAMAGED):
        score_candidates(opened, questions)
    attach_value_head(opened.network, "linear")
    with torch.no_grad():
        opened.network.value_head.output.weight.fill_(float("inf"))
    with pytest.raises(NotANumberError, match=DAMAGED):
        score_records(opened, [PromptResponse("你好", "再见")], 32)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("sampled", [False, True])
def test_nothing_left_to_say_is_a_mistake_of_the_settings(beams: int, sampled: bool, tmp_path: Path) -> None:
    """Every token banned; that some are is what rules are for."""
    opened = tiny("pangu", tmp_path)
    every = tuple(range(opened.network.config.vocab_size))
    settings = Settings(do_sample=sampled, num_beams=beams, max_new_tokens=3, seed=1)
    with pytest.raises(ConfigError, match="every token is suppressed"):
        generate(opened, [context(opened)], settings.change(suppressed_ids=every))
    [said] = generate(opened, [context(opened)], settings.change(suppressed_ids=every[:40] + every[41:]))
    assert said.ids == (40, 40, 40)


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def commands(folder: Path, family: str, dtype: str) -> dict[str, list[str]]:
    model, talks, texts = str(folder / "model"), str(folder / "talks.txt"), str(folder / "texts.txt")
    here = ["--device", "cpu", "--dtype", dtype]
    few = ["max_new_tokens=4", "top_p=0.9", *here]
    read = [texts, "--text"] if family == "pangu" else [talks]
    return {
        "generate": ["generate", model, "你好", "--json", *few],
        "generate beams": ["generate", model, "--input", texts, "num_beams=2", *few],
        "perplexity": ["eval", "perplexity", model, *read, "--json", "--output", str(folder / "p"), *here],
        "dialogue": ["eval", "dialogue", model, talks, "--json", "--output", str(folder / "d"), *few],
    }


def overflowing(folder: Path) -> OpenedModel:
    """A small EVA of finite weights (up to about 1,000) whose activations are beyond fp16, and within fp32."""
    opened = tiny_eva()
    with torch.no_grad():
        for name, parameter in opened.network.named_parameters():
            if ".ff." in name:
                parameter.mul_(1000)
    return opened


MODELS = {"sound": tiny, "sound eva": tiny, "NaN in pangu": broken, "eva in fp16": overflowing}


@pytest.mark.parametrize("kind", MODELS)
def test_commands_print_json_or_one_message(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    family = "eva" if "eva" in kind else "pangu"
    save_model(tiny(family, tmp_path) if "sound" in kind else MODELS[kind](tmp_path), tmp_path / "model")
    (tmp_path / "talks.txt").write_text("你好吗\t我很好\n谢谢\t再见\n", encoding="utf-8")
    (tmp_path / "texts.txt").write_text("今天天气真不错\n明天去哪里玩\n", encoding="utf-8")
    for name, arguments in commands(tmp_path, family, "fp16" if "fp16" in kind else "fp32").items():
        result = CliRunner().invoke(app, arguments)
        if "sound" not in kind:
            assert isinstance(result.exception, NotANumberError | SystemExit) and result.exit_code, (
                name,
                result.exception,
            )
            message = f"{result.output} {result.exception}"
            assert "hanmo inspect" in message and ("--dtype bf16" in message) == ("fp16" in kind), name
            assert not result.stdout.strip(), name
            continue
        assert result.exit_code == 0, (name, result.output)
        for text in [result.stdout] if name != "generate beams" else result.stdout.splitlines():
            strict(text)
    for file in [*tmp_path.glob("[pd]/*.json"), *tmp_path.glob("[pd]/*.jsonl")]:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            strict(text)


# Functions that may call json.dumps without allow_nan=False: their text is no result and no file for others.
HASHED_OR_PIPED = {
    "checkpoints/files/resumable.py:resumable_folder": "compared with a job that was read back",
    "data/parallel/blocks.py:job_folder": "hashed",
    "data/store/token_store.py:vocabulary_hash": "hashed",
    "evaluation/results/provenance.py:computed_by": "hashed",
    "evaluation/results/provenance.py:records_hash": "hashed",
    "evaluation/engine/cache.py:store_file": "hashed",
    "evaluation/results/result.py:read_result": "checked as it was read, not-a-number included",
    "evaluation/suites/suite.py:data_hash": "hashed",
    "evaluation/suites/suite.py:hash": "hashed",
    "evaluation/text_overlap.py:origin": "hashed",
    "serving/served.py:of_messages": "the key of a cache",
    "files.py:check_characters": "only its characters matter",
    "families/huggingface/arguments.py:described": "shown; its numbers are finite",
    "families/huggingface/rendering.py:_serve": "between two of our processes",
    "families/huggingface/templates.py:answer": "between two of our processes",
    "families/safe_loading.py:safe_config": "for transformers, which writes infinity so",
    "families/untrusted.py:_is_ordinary": "only its length matters",
    **{
        f"verify/{place}": "between two of our processes"
        for place in ("child.py:main", "child.py:answer", "process.py:_answer")
    },
}


def test_json_is_written_by_what_refuses_not_a_number() -> None:
    """Outside ``hanmo.files`` json.dump is not called, and json.dumps with allow_nan=False or in a function above."""
    root, found = Path(hanmo.__file__).parent, set()
    for path in root.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute) and ast.unparse(called) in ("json.dump", "json.dumps"):
                    assert called.attr == "dumps", path
                    if "allow_nan=False" not in ast.unparse(node):
                        found.add(f"{path.relative_to(root)}:{function.name}")
    assert found == HASHED_OR_PIPED.keys()


def test_what_is_infinite_by_nature_is_null() -> None:
    result = PerplexityResult(1e6, 10, 0, 0, (1.0, float("inf")), 0, [], {})
    told = strict(json_text(result.as_dict()))
    assert (told["perplexity"], told["interval"], told["bits_per_character"]) == (None, [1.0, None], None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_it_cannot_say(value: float) -> None:
    with pytest.raises(NotANumberError, match=r"the result\['a'\]\[1\]\['b'\] is "):
        json_text({"a": [0.5, {"b": value}]})
    assert strict(json_text(or_null({"a": (0.5, {"b": value}), "c": "NaN"}))) == {"a": [0.5, {"b": None}], "c": "NaN"}


def test_metrics_of_a_diverged_run_are_json(tmp_path: Path) -> None:
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=1)
    told = MetricsFile(tmp_path / "metrics.jsonl")
    told.on_log(None, state, None, {"loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.1})  # type: ignore[arg-type]
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert strict(line)["loss"] is None and strict(line)["grad_norm"] is None
    [entry] = read_metrics(tmp_path / "metrics.jsonl")
    assert entry["loss"] != entry["loss"] and entry["learning_rate"] == 0.1


def changed(source: Path, folder: Path, file: str, **values: Any) -> Path:
    """A copy of a model folder with keys added to one of its files."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**content, **values}), encoding="utf-8")
    return folder


FILES = ("config.json", "generation_config.json", "tokenizer_config.json")


@pytest.mark.parametrize("file", FILES)
def test_numbers_of_a_folder_that_json_cannot_say_do_not_travel(file: str, tmp_path: Path) -> None:
    """Mamba's configurations hold Infinity. inspect asked for a report of it, and a run could not save its model."""
    source = write_model("qwen3", tmp_path / "source")
    folder = changed(source, tmp_path / "model", file, time_step_limit=[0.0, math.inf], temperature=math.nan)
    strict(CliRunner().invoke(app, ["inspect", str(folder), "--json"]).stdout)
    convert(folder, tmp_path / "converted")
    save_model(open_model(folder, device="cpu"), tmp_path / "saved")
    for written in ("converted", "saved"):
        for name in FILES:
            strict((tmp_path / written / name).read_text(encoding="utf-8"))
        open_model(tmp_path / written, device="cpu")


@pytest.mark.parametrize("file", FILES)
def test_half_a_character_in_a_folder_is_said_before_any_work(file: str, tmp_path: Path) -> None:
    """It can be written nowhere: printing a report and saving a trained model ended in a traceback."""
    folder = changed(write_model("qwen3", tmp_path / "source"), tmp_path / "model", file, note="\ud83d")
    message = rf"{file}: not valid JSON: .*alone is half of a character"
    told = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    faults = [check["detail"] for check in strict(told.stdout)["checks"] if check["verdict"] == "fault"]
    assert told.exit_code == 1 and any(re.search(message, fault) for fault in faults)
    for action in (lambda: open_model(folder, device="cpu"), lambda: convert(folder, tmp_path / "converted")):
        with pytest.raises(CheckpointError, match=message):
            action()
    assert not (tmp_path / "converted").exists()
