"""Nothing that lies in a model folder is run, and nothing is asked: every command, on folders that bring their own code."""

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils

import hanmo
from hanmo.checkpoints import open_model
from hanmo.cli import COMMANDS, main
from hanmo.errors import CheckpointError, HanmoError, UnsupportedError, VocabularyError
from hanmo.evaluation.suites.exam.suite import all_exams
from hanmo.families import safe_loading
from hanmo.families.safe_loading import safe_config
from hanmo.training import stages
from tests.unit.armed import OTHERS, TYPES, Listening, arm, canary, write
from tests.unit.clue_files import clue_folder
from tests.unit.exam_files import exam_folder

OWN_CODE = "needs the folder's own code"
# Every command that opens a model or its tokenizer. {m} is the model's folder; the others lie in the working folder.
OPENING = {
    "chat": "chat {m}",
    "generate": "generate {m} --input talk.txt",
    "serve": "serve {m} --port 0",
    "convert": "convert {m} converted",
    "inspect": "inspect {m}",
    "train pretrain": "train pretrain {m} talk.txt run",
    "train sft": "train sft {m} talk.txt run",
    "train reward": "train reward {m} pairs.jsonl run",
    "train dpo": "train dpo {m} pairs.jsonl run",
    "train kto": "train kto {m} pairs.jsonl run",
    "train grpo": "train grpo {m} pairs.jsonl run rewards=[builtins:len]",
    "train ppo": "train ppo {m} pairs.jsonl run rewards=[builtins:len]",
    "reward score": "reward score {m} talk.txt",
    "eval dialogue": "eval dialogue {m} talk.txt",
    "eval perplexity": "eval perplexity {m} talk.txt",
    "eval clue": "eval clue {m} --data clue",
    "eval exam": "eval exam {m} --kind ceval --data exam",
    "eval task": "eval task {m} task.yaml",
    "data clean": "data clean talk.txt --out clean.jsonl --scorer {m}",
    "data tokenize": "data tokenize talk.txt --tokenizer {m} --out store",
    "data inspect": "data inspect talk.txt --tokenizer {m}",
}
FEW = [*TYPES[:5], *(pytest.param(name, marks=pytest.mark.slow) for name in TYPES[5:])]
OPEN_NOTHING = {
    *("demo", "data corpus", "data prepare", "data contamination", "data recipe"),
    *("eval rouge", "eval compare", "eval table", "eval human-prepare", "eval human-score"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data for every command."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "talk.txt").write_text("你好吗\t我很好\n谢谢\t再见\n", encoding="utf-8")
    pair = {"prompt": "你好吗", "chosen": "我很好", "rejected": "再见"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair, ensure_ascii=False) + "\n", encoding="utf-8")
    task = "data: answers.jsonl\ntemplate: '{text}{option}'\nlabels: {good: 好, bad: 再见}\nanswer: label\n"
    (folder / "task.yaml").write_text(task, encoding="utf-8")
    (folder / "answers.jsonl").write_text('{"text": "你好吗", "label": "good"}\n', encoding="utf-8")
    clue_folder(folder / "clue")
    exam_folder(all_exams()["ceval"], folder / "exam", "id,question,A,B,C,D,answer", ["law"])
    return folder


class Ran:
    """How a command ended, what it said, and whether it read what it was not to read."""

    def __init__(self, code: int, out: str, err: str, asked: bool):
        self.code, self.out, self.err, self.asked = code, out, err, asked

    @property
    def messages(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("hanmo: ")]


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    work = tmp_path / "work"
    shutil.copytree(files, work)
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def typed(command: str) -> Ran:
        stdin = Listening()
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "argv", ["hanmo", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err, stdin.asked)

    return typed


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a type that needs its own code for the tokenizer or the model; made once."""
    made: dict[str, Path] = {}
    place = tmp_path_factory.mktemp("armed")

    def of(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = arm(write(model_type, place / model_type))
        return made[model_type]

    return of


def refused(run: Callable[[str], Ran], command: str, folder: Path) -> None:
    """One message that says what the folder needs; nothing was run, nothing was asked. ``inspect`` reports it."""
    ran = run(OPENING[command].format(m=folder))
    assert not canary(folder).exists(), f"{command}: the folder's code was run"
    assert not ran.asked, f"{command}: asked on standard input"
    assert "Traceback" not in ran.err
    if command == "inspect":
        assert ran.code != 0 and OWN_CODE in ran.out
    else:
        assert ran.code == 2, ran.err
        assert len(ran.messages) == 1 and OWN_CODE in ran.messages[0], ran.err


def test_every_command_is_known_to_open_a_model_or_not() -> None:
    functions = {group: [one for names in modules.values() for one in names] for group, modules in COMMANDS.items()}
    names = {f"{group} {one}".strip().replace("_", "-") for group, commands in functions.items() for one in commands}
    names |= {f"train {stage}" for stage in stages.NAMES}
    assert names == OPENING.keys() | OPEN_NOTHING


@pytest.mark.parametrize("command", OPENING)
def test_no_command_runs_a_folders_code(run, armed, command: str) -> None:
    refused(run, command, armed("llama"))


@pytest.mark.parametrize("model_type", [*FEW, *OTHERS])
def test_no_type_of_model_runs_a_folders_code(run, armed, model_type: str) -> None:
    refused(run, "inspect", armed(model_type))
    if model_type in TYPES:
        refused(run, "convert", armed(model_type))
    else:
        refused(run, "generate", armed(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*TYPES, "nobodys_model"])
def test_no_command_on_no_type_runs_a_folders_code(run, armed, model_type: str) -> None:
    for command in OPENING:
        refused(run, command, armed(model_type))


@pytest.mark.parametrize("model_type", FEW)
def test_what_transformers_knows_opens_with_its_own_classes(tmp_path: Path, model_type: str, monkeypatch) -> None:
    folder = arm(write(model_type, tmp_path / "model"), tokenizer_class="PreTrainedTokenizerFast")
    stdin = Listening()
    monkeypatch.setattr(sys, "stdin", stdin)
    opened = open_model(folder, dtype="fp32", device="cpu")
    assert not canary(folder).exists() and not stdin.asked
    assert opened.network.config.model_type == model_type
    assert opened.family.tokenizer.encode("你好", add_special_tokens=False)
    assert not any(hasattr(part, "auto_map") for part in (opened.network.config, opened.network.generation_config))


def test_transformers_asks_nothing_inside_safe_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks where no caller has passed ``trust_remote_code``; hanmo sets its timeout to 0, which no argument can."""
    stdin = Listening()
    monkeypatch.setattr(sys, "stdin", stdin)
    with safe_loading._without_questions(), pytest.raises(ValueError, match="custom code"):
        dynamic_module_utils.resolve_trust_remote_code(
            None, "someone/model", has_local_code=False, has_remote_code=True
        )
    assert not stdin.asked


def test_a_converted_folder_names_no_code(tmp_path: Path, run) -> None:
    folder = arm(write("llama", tmp_path / "model"), tokenizer_class="PreTrainedTokenizerFast")
    assert run(f"convert {folder} converted").code == 0
    written = list(Path("converted").iterdir())
    assert written and not any(file.suffix == ".py" for file in written)
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((Path("converted") / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name", ["AutoModel", "AutoConfig", "AutoTokenizer", "AutoProcessor", "RagTokenizer", "Trainer"]
)
def test_a_tokenizers_class_is_a_tokenizers_class(tmp_path: Path, monkeypatch, name: str) -> None:
    """transformers takes any of its classes by name, and an auto class would ask whether to run the folder's code."""
    folder = arm(write("llama", tmp_path / "model"), tokenizer_class=name)
    stdin = Listening()
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(VocabularyError, match=f"names '{name}' as its tokenizer, which is none of transformers'"):
        open_model(folder, dtype="fp32", device="cpu")
    assert not canary(folder).exists() and not stdin.asked


KERNELS = [
    "own-org/kernel",
    "own-org/kernel@main:run",
    "paged|own-org/kernel",
    "flash_attention_2",
    "sonicmoe",
    ["sdpa"],
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_configuration_chooses_no_kernel(tmp_path: Path, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        folder = tmp_path / key
        folder.mkdir()
        said = {"model_type": "llama", key: kernel, "attn_implementation_of_nobody": kernel}
        (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
        config = safe_config(folder)
        assert (config._attn_implementation, config._experts_implementation) == (None, None)
        assert f"{key.lstrip('_')} {kernel!r} is not followed" in capsys.readouterr().err
        said = {"model_type": "encoder-decoder", "encoder": {"model_type": "bert", key: kernel}}
        said["decoder"] = {"model_type": "bert", "auto_map": {"AutoModelForCausalLM": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
        config = safe_config(folder)
        assert (config.encoder._attn_implementation, config.encoder._experts_implementation) == (None, None)
        assert not hasattr(config.decoder, "auto_map")


def test_what_a_configuration_may_choose_is_kept(tmp_path: Path) -> None:
    said = {"model_type": "llama", "attn_implementation": "eager", "experts_implementation": "batched_mm"}
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    config = safe_config(tmp_path)
    assert (config._attn_implementation, config._experts_implementation) == ("eager", "batched_mm")


def test_weights_come_from_the_files_that_were_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``transformers_weights`` would have transformers read another file than the one that hanmo has looked at."""
    folder = write("llama", tmp_path / "model")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**said, "transformers_weights": "other.safetensors"}))
    opened = open_model(folder, dtype="fp32", device="cpu")
    assert not hasattr(opened.network.config, "transformers_weights")
    assert "transformers_weights is not followed" in capsys.readouterr().err


def test_an_adapter_beside_a_model_is_not_followed(tmp_path: Path) -> None:
    folder = write("llama", tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "own-org/own-model", "peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match="an adapter beside a model, which is not applied unless it is named"):
        open_model(folder, dtype="fp32", device="cpu")


@pytest.mark.parametrize(
    "said",
    [
        {"init_inputs": ["/etc/hostname"]},
        {"gguf_file": "/etc/hostname"},
        {"fast_tokenizer_files": ["tokenizer.json", "../tokenizer.4.0.0.json"]},
    ],
)
def test_a_tokenizer_reads_its_own_files_alone(tmp_path: Path, said: dict[str, Any]) -> None:
    folder = write("llama", tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend", **said}))
    with pytest.raises(HanmoError, match=r"from its own files alone|expected the plain name of a file beside it"):
        open_model(folder, dtype="fp32", device="cpu")


def test_a_model_that_speaks_no_text_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="of type 'pvt', which transformers has no language model for"):
        open_model(write("pvt", tmp_path / "model"), dtype="fp32", device="cpu")


# What could run or fetch something, and the modules that may call it. Anybody else goes through them.
ALLOWED = {
    "from_pretrained": {"families/safe_loading.py"},
    "from_config": {"families/safe_loading.py"},
    "torch.load": {
        "checkpoints/originals/unpickle.py",
        "training/sharded.py",
        "training/streams.py",
    },  # with weights_only, see below
    "pickle.load": set(),
    "pickle.loads": {"training/launch.py"},  # what one process of a run leaves for the others
    "import_module": {
        *(
            "cli/__init__.py",
            "config.py",  # a function that the user names
            "families/__init__.py",
            "training/stages/__init__.py",
        ),
        "tokenizers/base.py",
    },
    "spec_from_file_location": {"config.py"},  # a file of the user's own functions
    "exec_module": {"config.py"},
    "snapshot_download": {"checkpoints/locate.py"},
    "input": {"cli/common.py"},  # what a user says to a model
}
NEVER = {
    *("eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("pickle.Unpickler", "run_path", "run_module", "os.system", "os.popen"),
    *("extractall", "get_class_from_dynamic_module", "hf_hub_download", "load_adapter", "shelve.open", "joblib.load"),
}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Calls by the names they could be forbidden under: ``torch.load`` as load and torch.load."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                found.append((node.func.id, node))
            elif isinstance(node.func, ast.Attribute):
                found += [(node.func.attr, node), (ast.unparse(node.func), node)]
    return found


def test_no_module_goes_around_the_doors() -> None:
    root = Path(hanmo.__file__).parent
    wrong = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for called, node in calls(ast.parse(path.read_text(encoding="utf-8"))):
            method = isinstance(node.func, ast.Attribute)
            own = called in ("eval", "compile") and method  # network.eval(), re.compile()
            if not own and (called in NEVER or name not in ALLOWED.get(called, {name})):
                wrong.append(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
            if called == "torch.load" and "weights_only=True" not in ast.unparse(node):
                wrong.append(f"{name}:{node.lineno}: torch.load without weights_only=True")
            if called.endswith(("trust_remote_code", "np.load")) and "allow_pickle" in ast.unparse(node):
                wrong.append(f"{name}:{node.lineno}: allow_pickle")
            if any(word.arg == "trust_remote_code" for word in node.keywords) and name != "families/safe_loading.py":
                wrong.append(f"{name}:{node.lineno}: trust_remote_code")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "AutoTokenizer.from_pretrained(path)",
            "eval('1')",
            "pickle.load(file)",
            "torch.load(path)",
            "yaml.load(text)",
        ),
        *("__import__('os')", "AutoModel.from_config(config)", "module.exec_module(it)", "input()"),
    ],
)
def test_the_walk_sees_what_is_forbidden(text: str) -> None:
    names = {name for name, _ in calls(ast.parse(text))}
    assert names & (NEVER | ALLOWED.keys())
