"""Every command that the documents show is run, in a folder with small stand-ins under the names they use."""

import json
import os
import re
import shlex
import shutil
import sys
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from hanmo.checkpoints import save_model
from hanmo.checkpoints.convert import convert
from hanmo.cli import app
from hanmo.evaluation.suites.exam.suite import all_exams
from hanmo.families import OURS, load
from hanmo.serving.plan import IGNORED
from hanmo.serving.server import ROUTES
from hanmo.training.arguments import translate_deepspeed
from tests import processes
from tests.unit.clue_files import clue_folder
from tests.unit.exam_files import exam_folder
from tests.unit.serving import FakeEngine, running, says
from tests.unit.tiny import tiny, tiny_eva
from tests.unit.transformers_models import write_model

ROOT = Path(__file__).resolve().parents[2]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
DIALOGUES = "你好\t你好，谢谢你\n今天天气怎么样？\t今天天气真不错。\t明天去哪里玩？\t我们去吃火锅\n"
# Run by tests of their own, as they take minutes, or by whoever runs these tests.
ELSEWHERE = re.compile(r"make (demo|test|test-slow|env|check|bench)|(\.venv/bin/)?hanmo demo( .*)?|git clone .*|cd .*")


def commands(document: Path) -> list[str]:
    """The lines that start with ``$`` in console blocks, and the commands in tables, without remarks.

    A command in the head of a table takes all settings of its rows, so that each of them is tried.
    """
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    found = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, *rows = table.splitlines()
        for command in re.findall(r"`(hanmo .*?)`", head):
            settings = [code for row in rows for code in re.findall(r"`([a-z_0-9.]+=(?!FILE)[^`]+)`", row)]
            found.append(" ".join([command, *settings]))
        found += [code for row in rows for code in re.findall(r"`(hanmo .*?)`", row)]
    return [re.sub(r"\s+#.*", "", command) for command in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Original checkpoints, data and rules under the names that the documents use."""
    place = tmp_path_factory.mktemp("docs")
    write_originals(place)
    write_model("qwen3", place / "Qwen3-0.6B")
    (place / "runs").mkdir()
    save_model(tiny("eva", place), place / "runs" / "demo")
    rules = place / "rules" / "antonym"
    rules.mkdir(parents=True)
    (rules / "antonym.txt").write_text("('今天', '明天')\n", encoding="utf-8")
    data = place / "data"
    (data / "kdconv").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (data / "kdconv" / f"{split}.txt").write_text(DIALOGUES * 3, encoding="utf-8")
    alpaca = [{"instruction": "你好吗", "input": "", "output": "我很好"}] * 4
    (data / "alpaca.json").write_text(json.dumps(alpaca, ensure_ascii=False), encoding="utf-8")
    corpus = "".join(
        json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("今天天气真不错。", "我们去吃火锅。")
    )
    (data / "corpus.jsonl").write_text(corpus, encoding="utf-8")
    stories = json.dumps({"prompt": "今天天气怎么样？", "text": "今天天气真不错。"}, ensure_ascii=False) + "\n"
    (data / "stories.jsonl").write_text(stories * 128, encoding="utf-8")
    for name, header, subjects in (
        ("ceval", "id,question,A,B,C,D,answer", ["law", "marxism"]),
        ("mmlu", "", ["anatomy"]),
    ):
        exam_folder(all_exams()[name], place / name, header, subjects)
    for document in ("evaluation.md", "alignment.md"):
        text = (ROOT / "docs" / document).read_text("utf-8")
        for name, content in re.findall(r"```(?:yaml|python)\n# (\S+\.(?:yaml|py))\n(.*?)```", text, re.DOTALL):
            (place / name).write_text(content, encoding="utf-8")
    sums = [{"prompt": "今天天气怎么样？", "response": "三", "steps": ["天"]}, {"prompt": "你好吗", "response": "12"}]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sums)
    (data / "sums.jsonl").write_text(lines, encoding="utf-8")
    write_sources(place / "raw")
    clue_folder(place / "clue")
    pair = {
        "prompt": "今天天气怎么样？",
        "answers": [{"answer": "今天天气真不错。", "score": 1}, {"answer": "再见", "score": 0}],
    }
    (data / "pairs.jsonl").write_text((json.dumps(pair, ensure_ascii=False) + "\n") * 16, encoding="utf-8")
    (place / "hosts").write_text("first slots=8\nsecond slots=8\n", encoding="utf-8")
    for name in ("reviews", "reviews-train"):
        reviews = "".join(
            json.dumps({"text": text, "label": label}) + "\n" for label, text in enumerate(("不去", "很好"))
        )
        (place / f"{name}.jsonl").write_text(reviews, encoding="utf-8")
    idioms = "before,after,one,two,three,right\n今天,很好,天气,火锅,明天,one\n你,我,好,谢谢,吃,谢谢\n"
    (place / "idioms.csv").write_text(idioms, encoding="utf-8")
    (place / "questions.txt").write_text("你好\n今天天气怎么样？\n", encoding="utf-8")
    (place / "prompts.txt").write_text("你好\n今天天气怎么样？\n", encoding="utf-8")
    return place


def write_originals(place: Path) -> None:
    """A checkpoint in the original layout of each of our families, under a released name."""
    for name, target in (
        ("eva", "eva2.0-base"),
        ("transformer_xl", "txl-2.9b"),
        ("pangu", "pangu-2.6b"),
        ("glm", "glm-10b-chinese"),
    ):
        opened = tiny(name, place / "vocabulary" / name)
        save_model(opened, place / "saved" / name)
        convert(place / "saved" / name, place / target, to="original")
        if name != "transformer_xl":  # of which the shapes tell everything
            config = {key: value for key, value in opened.network.config.to_dict().items() if key != "model_type"}
            (place / target / "config.json").write_text(json.dumps(config), encoding="utf-8")
        vocabulary = opened.tokenizer.vocab_files_names["vocab_file"]
        (place / target / vocabulary).write_bytes((place / "saved" / name / vocabulary).read_bytes())


def write_sources(folder: Path) -> None:
    """A few records of each of the six sources of docs/pipeline.md, as they are published."""
    said, each = "你好吗我很好今天天气真不错明天去哪里玩火锅怎么样谢谢再见", range(24)
    texts = [said[number : number + 4 + number % 2] for number in each]
    files = {
        "weibo/posts.json": [
            json.dumps({"article": text, "abstract": text[:2], "comments": [["很好", 2], ["不去", 1]]}) for text in texts
        ],
        "couplets/in.txt": [" ".join(text) for text in texts],
        "couplets/out.txt": [" ".join(reversed(text)) for text in texts],
        "zhidao/one.csv": ["title,question,reply,is_best", *(f"{text},,{r},{b}" for text in texts for b, r in enumerate("好很"))],
        "classical/book.txt": [f"古文：{text}\n现代文：{text[::-1]}\n" for text in texts],
        "poetry/ci/ci.song.0.json": [
            json.dumps([{"author": text[:2], "rhythmic": text[2:], "paragraphs": [text]} for text in texts])
        ],
        "baike/train.json": [json.dumps({"title": text, "desc": "", "answer": text[::-1]}) for text in texts],
    }  # fmt: skip
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(command: str) -> None:
    words = shlex.split(command)
    if words[0] in ("mkdir", "cat"):
        assert processes.run(["sh", "-c", command]).returncode == 0, command
        return
    typed = "你好\n/quit\n"
    if "<" in words:
        at = words.index("<")
        typed = Path(words[at + 1]).read_text(encoding="utf-8")
        words = words[:at]
    assert Path(words[0]).name == "hanmo", f"no test knows how to run: {command}"
    if "--tensor-parallel" in words and words[1] != "convert":  # starts itself again in several processes
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command_line = [sys.executable, "-m", "hanmo", *words[1:]]
        done = processes.run(command_line, input=typed, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return
    result = CliRunner().invoke(app, words[1:], input=typed)
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"


def programs(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def test_both_readmes_show_the_same_commands_and_programs() -> None:
    """So that running those of one is running those of the other."""
    assert commands(README) == commands(CHINESE) and programs(README) == programs(CHINESE)


@pytest.mark.parametrize(
    "document",
    # checkpoints.md starts five pairs of processes
    [pytest.param(one, marks=pytest.mark.slow if one.name == "checkpoints.md" else ()) for one in DOCUMENTS],
    ids=lambda path: path.name,
)
def test_what_a_document_shows_runs(
    document: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands in their order, then its programs, which may use what the commands have made."""
    shutil.copytree(folder, tmp_path / "scratch")  # no document finds what another has written
    monkeypatch.chdir(tmp_path / "scratch")
    for command in commands(document):
        if not ELSEWHERE.fullmatch(command):
            run(command)
    for program in programs(document):
        exec(compile(program, document.name, "exec"), {})


# The scripts of the three repositories, the variables in them, and the options that they pass on.
SCRIPTS = """
eva_inference_interactive_beam.sh eva_inference_interactive_no_beam.sh eva_inference_static.sh eva_finetune.sh change_mp.py
eva_interactive.py eva_finetune.py eva_evaluate.py convert_to_hf.py
generate_text.sh generate_text_small.sh ds_finetune_gpt_2.9B.sh ds_pretrain_gpt_2.9B.sh generate_samples.py pretrain_gpt2.py
evaluate_perplexity.py ds_config_2.9B.json ds_config_2.9B_finetune.json
data_prepare.sh eval_pretrain.sh pretrain.sh pred_pretrain.sh train_sft.sh train_reward.sh eval_reward.sh pred_reward.sh
train_rlhf.sh train_dpo.sh data_prepare.py eval_pretrain.py pretrain.py train_sft.py train_reward.py train_rlhf.py train_dpo.py
"""
VARIABLES = """
WORKING_DIR MP_SIZE NUM_GPUS_PER_WORKER DATA_PATH CONFIG_PATH CKPT_PATH LR WM GRAD_ACC SAVE_PATH LOG_FILE DS_CONFIG TOKENIZER_PATH
BATCH_SIZE TRAIN_ITER EPOCHS ENC_LEN DEC_LEN TEMP TOPK TOPP NUM_BEAMS RULE_PATH
NUM_WORKERS OPTIONS_NCCL HOST_FILE_PATH config_json CHECKPOINT_PATH MPSIZE NLAYERS NHIDDEN NATT MAXSEQLEN MASTER_PORT script_dir
ROOT DATR_DIR MAIN MODEL MODEL_PATH OUTPUT_DIR TRAIN_FILENAME EVAL_FILENAME TEST_FILENAME OUTPUT_FILENAME CHECKPOINT TASK
REWARD_MODEL SFT_MODEL ACTOR_MODEL_PATH CRITIC_MODEL_PATH CRITIC_CHECKPOINT PRETRAIN_FILENAME REFERENCE_MODEL_PATH
ACCELERATE_CONFIG
"""
OPTIONS = """
--model-config --model-parallel-size --batch-size --epochs --gradient-accumulation-steps --enc-seq-length --dec-seq-length
--train-iters --save --log-file --load --no_load_strict --data-path --distributed-backend --lr --lr-decay-style --weight-decay
--clip-grad --warmup --tokenizer-path --eval-interval --log-interval --save-interval --checkpoint-activations --fp16 --deepspeed
--deepspeed-activation-checkpointing --deepspeed_config --train-ratio --eval-batch-size --num-beams --temperature --top_k --top_p
--length-penalty --repetition-penalty --no-repeat-ngram-size --rule-path --max-generation-length --min-generation-length --seed
--finetune --experiment-name --num-layers --hidden-size --num-attention-heads --seq-length --max-position-embeddings --mem-length
--no-load-optim --resume-dataloader --train-data --xl-dataset --lazy-loader --tokenizer-type --split --lr-decay-ratio
--lr-decay-iters --transformer-xl --num_nodes --num_gpus --hostfile --cache-dir --out-seq-length
--data_dir --output_dir --model_name_or_path --tokenizer_path --max_length --logging_steps --save_steps --learning_rate
--train_filename --train_batch_size --gradient_accumulation_steps --num_epochs --gradient_checkpointing --eval_filename
--eval_batch_size --eval_steps --checkpoint --task --max_length_generation --num_return_sequences --device_map --bits
--max_gen_length --actor_learning_rate --critic_learning_rate --lr_scheduler_type --ppo_train_batch_size --ppo_epochs
--enable_hybrid_engine --actor_zero_stage --critic_zero_stage --offload_reference_model --actor_gradient_checkpointing
--critic_gradient_checkpointing --release_inference_cache
num_rollouts chunk_size init_kl_coef target horizon gamma lam cliprange cliprange_value vf_coef scale_reward cliprange_reward
num_layers_unfrozen seq_length total_steps max_new_tokens cpu_offload
"""


@pytest.mark.parametrize("names", [SCRIPTS, VARIABLES, OPTIONS], ids=["scripts", "variables", "options"])
def test_every_name_of_the_original_scripts_has_a_row(names: str) -> None:
    rows = [line for line in (ROOT / "docs/migrating.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    known = {word for row in rows for code in re.findall(r"`([^`]+)`", row) for word in re.findall(r"[\w.-]+", code)}
    assert not set(names.split()) - known


def test_what_is_said_of_old_deepspeed_files_holds() -> None:
    text = (ROOT / "docs/migrating.md").read_text(encoding="utf-8").partition("in `zero_optimization`")[2]
    rows = re.findall(r"^\| `(\".*)` \| `(\".*)` \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for old, new in rows:
        config, _, notices = translate_deepspeed({"zero_optimization": {"stage": 2, **json.loads(f"{{{old}}}")}})
        assert config["zero_optimization"] == {"stage": 2, **json.loads(f"{{{new}}}")} and notices


def test_the_bytes_that_training_takes_are_those_of_the_released_sizes() -> None:
    """fp32 weights, gradients and Adam's two averages: 4 x 4 bytes a parameter."""
    sizes: dict[str, Any] = {}
    for name in OURS:
        sizes |= load(name).original_format.SIZES
    said = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("## Memory and speed")[2]
    figures = re.findall(r"(\d+) GB for\s+`([^`]+)`", said.partition("\n\n#")[0])
    assert len(figures) == 4
    assert [int(gigabytes) for gigabytes, _ in figures] == [
        round(sizes[one].parameters * 16 / 1e9) for _, one in figures
    ]


SERVING = ROOT / "docs" / "serving.md"


def test_the_endpoints_and_errors_of_the_server_are_those_of_its_document() -> None:
    text = SERVING.read_text(encoding="utf-8")
    told = set(re.findall(r"`((?:GET|POST) /[^`]*)`", text))
    assert told == {f"{method} {path.replace('{name:path}', 'NAME')}" for method, path, _ in ROUTES}
    sources = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "hanmo" / "serving").glob("*.py")))
    told = set(re.findall(r"`([a-z_]+)`", text.partition("## Errors")[2].partition("\n## ")[0])) - {"param"}
    assert told and not {code for code in told if f'"{code}"' not in sources}


def test_the_fields_of_requests_are_those_of_the_servers_document() -> None:
    """Those that the code reads by name, and those that it accepts without effect."""
    text = SERVING.read_text(encoding="utf-8").partition("## Fields")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+)`", text))
    sources = "".join(
        (ROOT / "hanmo" / "serving" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("chat", "completions", "plan")
    )
    read = set(re.findall(r"""fields\.(?:whole|number|flag|text|texts|ids|value|inner)\(\s*"(\w+)""", sources))
    assert read <= told and told >= IGNORED
    assert not {name for name in told if f'"{name}"' not in sources} - {"usage", "x-hanmo-ignored"}


@pytest.mark.parametrize("document", [README, CHINESE, SERVING], ids=lambda path: path.name)
def test_the_client_that_a_document_shows_is_answered(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in that sends what OpenAI's client sends; the client itself is no part of this environment."""
    [program] = re.findall(r"```py\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    opened = tiny_eva()
    with running({"demo": opened}, {"demo": FakeEngine(opened, says("今天天气真不错", opened))}) as server:
        monkeypatch.setitem(sys.modules, "openai", stand_in())
        exec(compile(program.replace("8000", str(server.port)), document.name, "exec"), {})
    assert capsys.readouterr().out == "今天天气真不错\n"


def stand_in() -> ModuleType:
    """A module with an ``OpenAI`` that has ``chat.completions.create``."""

    class OpenAI:
        def __init__(self, base_url: str, api_key: str):
            self.base_url, self.key = base_url, api_key
            self.chat = self.completions = self

        def create(self, **fields: Any) -> Any:
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            request = urllib.request.Request(f"{self.base_url}/chat/completions", json.dumps(fields).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read(), object_hook=lambda value: SimpleNamespace(**value))

    module = ModuleType("openai")
    module.OpenAI = OpenAI  # type: ignore[attr-defined]
    return module


def test_commands_that_serve_are_ones_that_the_command_line_takes() -> None:
    """They run until they are ended, so their models and options alone are tried."""
    found = [
        line
        for document in (README, CHINESE, SERVING)
        for line in re.findall(r"hanmo serve [a-z0-9./ =_-]+", document.read_text("utf-8"))
    ]
    assert found
    for command in found:
        words = [word for word in shlex.split(command)[2:] if word]
        result = CliRunner().invoke(app, ["serve", *words, "--port", "99999"])
        assert "65535" in result.output, f"{command}\n{result.output}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = {
        command.split()[1] for document in DOCUMENTS for command in commands(document) if command.startswith("make ")
    }
    assert shown
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in shown)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_an_order_that_it_knows() -> None:
    def dry(*given: str) -> tuple[int, str]:
        # The make that runs this suite hands its own settings down.
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = processes.run(["make", "-n", "test", *given], cwd=ROOT, env=outside)
        return done.returncode, done.stdout + done.stderr

    code, said = dry("ORDER=random", "SEED=3")
    assert code == 0 and "--random-order --random-order-seed 3 " in said
    code, said = dry()
    assert code == 0 and "--random-order" not in said
    code, said = dry("ORDER=randm")
    assert code == 2 and "ORDER=randm: expected as-written or random" in said


def test_the_readmes_are_in_step() -> None:
    english, chinese = (commands(ROOT / name) for name in ("README.md", "README.zh-CN.md"))
    assert english == chinese
    headings = [
        len(re.findall(r"^## ", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert headings[0] == headings[1]


def test_files_that_the_documents_link_to_exist() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
