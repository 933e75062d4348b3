"""Whatever a file claims, the program says so in one message, within 10 seconds and 1 GB, and nothing in it runs."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.files.verifying import verify_reading
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.errors import CheckpointError, HanmoError
from hanmo.families.huggingface.templates import TemplateRefusalError, is_plain, render_template
from hanmo.limits import run_within_limits
from tests.hostile import command, run
from tests.unit.checkpoint_files import HUB, original_tensors, write_hub
from tests.unit.hostile_files import FOLDERS, HONEST, ORIGINALS, TEMPLATES, WIDE, deflated, rewritten
from tests.unit.transformers_models import TEMPLATE, tokenizer, write_model

FAST = [kind for kind in TEMPLATES if kind not in ("a number of billions of digits", "a text that doubles", "itself")]
TALK = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好呀"}]
RICH = (
    "{%- set n = namespace(first=true, last='') -%}{%- macro turn(m) -%}<|im_start|>{{ m['role'] | upper }}\n"
    "{{- m.content.split('。')[-1].strip() }}{{ m | tojson }}<|im_end|>{%- endmacro -%}"
    "{%- for m in messages[::-1] if m.role != 'tool' -%}{%- if n.first -%}{{ eos_token }}{%- set n.first = false -%}"
    "{%- endif -%}{{ turn(m) }}{% generation %}{{ m.content | length * 2 }}{% endgeneration %}"
    "{%- if loop.last -%}{%- break -%}{%- endif -%}{%- endfor -%}{{ add_generation_prompt }}{{ range(3) | list | join('-') }}"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3", tmp_path_factory.mktemp("qwen") / "model")


def commands(folder: Path, target: Path) -> dict[str, Callable[[], object]]:
    """As the command line calls them, without a third of a second for the command line itself."""

    def inspect() -> None:
        if faults := [check.detail for check in inspect_model(folder).checks if check.verdict == "fault"]:
            raise HanmoError("; ".join(faults))

    return {
        "inspect": inspect,
        "convert": lambda: convert(folder, target),
        "open": lambda: open_model(folder, device="cpu"),
    }


def check_refused(folder: Path, tmp_path: Path, harmless: tuple[str, ...] = ()) -> None:
    """Each way to read a folder ends in a message, and a conversion leaves nothing behind.

    Args:
        harmless: ways that do not rely on what is not so, and may do what they were asked.
    """
    target = tmp_path / "target"
    for name, action in commands(folder, target).items():
        outcome = run(action, canary=tmp_path / "executed")
        assert outcome.kind == "message" or (outcome.kind == "fine" and name in harmless), f"{name}: {outcome}"
        assert len(outcome.printed) < 20_000, f"{name}: {outcome}"
        assert target.exists() == (name == "convert" and outcome.kind == "fine") or name == "open"


def made(make: Callable[[Path], object], honest: Path, folder: Path) -> Path:
    """A copy of an honest folder in which something is not so: what is changed is one of its files, as the maker says."""
    shutil.copytree(honest, folder)
    make(folder)
    before, after = ({file.name: file.read_bytes() for file in one.iterdir()} for one in (honest, folder))
    assert before != after
    return folder


@pytest.mark.parametrize("kind", ORIGINALS)
def test_an_original_that_lies_is_refused_in_one_message(original: Path, tmp_path: Path, kind: str) -> None:
    check_refused(made(ORIGINALS[kind], original, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_lies_is_refused_in_one_message(qwen: Path, tmp_path: Path, kind: str) -> None:
    """Sizes that no file fills matter to who builds the network; its tensors are what they are."""
    harmless = ("inspect", "convert") if kind in WIDE else ()
    check_refused(made(FOLDERS[kind], qwen, tmp_path / "model"), tmp_path, harmless)


def test_a_given_configuration_counts_no_more_layers_than_an_original_can_have(original: Path, tmp_path: Path) -> None:
    """Downloaded beside the model as often as config.json inside it."""
    given = tmp_path / "given.json"
    given.write_text(json.dumps({**json.loads((original / "config.json").read_text()), "num_layers": 10**9}))
    outcome = run(lambda: command("convert", original, tmp_path / "target", "--config", given), tmp_path / "executed")
    assert outcome.kind == "message", str(outcome)
    assert "num_layers is 1,000,000,000" in outcome.printed


def test_a_rule_that_gives_up_at_a_text_ends_in_a_message(qwen: Path, tmp_path: Path) -> None:
    """A regular expression that tries 2^45 ways at a text of one letter, and passes the trial on other texts."""
    folder, prompts = shutil.copytree(qwen, tmp_path / "model"), tmp_path / "prompts.txt"
    said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    rule = {"type": "Split", "pattern": {"Regex": "(?:a|a)" * 45 + "b"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps({**said, "pre_tokenizer": rule}), encoding="utf-8")
    prompts.write_text("a" * 60 + "\n", encoding="utf-8")
    outcome = run(lambda: command("generate", folder, "--input", prompts, "--device", "cpu"), tmp_path / "executed")
    assert outcome.kind == "message", str(outcome)
    assert "hanmo: the model's tokenizer cannot read this text by its own rules" in outcome.printed


def test_a_chat_template_that_takes_too_much_is_refused_in_one_message(qwen: Path, tmp_path: Path) -> None:
    make = rewritten("chat_template.jinja", TEMPLATES["a text of ten billion letters"])
    folder, prompts = made(make, qwen, tmp_path / "model"), tmp_path / "prompts.txt"
    prompts.write_text("你好\n", encoding="utf-8")
    outcome = run(lambda: command("generate", folder, "--input", prompts, "--device", "cpu"), tmp_path / "executed")
    assert outcome.kind == "message", str(outcome)
    assert re.search(r"hanmo: the chat template of \S+ takes too much memory", outcome.printed)
    assert outcome.printed.count("\n") == 1


@pytest.mark.parametrize("kinds", [FAST, pytest.param([*TEMPLATES], marks=pytest.mark.slow)], ids=["some", "all"])
def test_no_chat_template_takes_more_than_its_time_and_memory(tmp_path: Path, kinds: list[str]) -> None:
    """Whatever it does; and the next conversation is rendered as ever."""

    def render() -> None:
        words = tokenizer()
        for kind in kinds:
            words.chat_template = TEMPLATES[kind]
            with pytest.raises(HanmoError, match="the chat template"):
                render_template(words, TALK)
            words.chat_template = "{% set n = namespace(x='>') %}{{ n.x }}" + TEMPLATE
            assert render_template(words, TALK) == words.apply_chat_template(TALK, tokenize=False), kind

    outcome = run(render, canary=tmp_path / "executed")
    assert outcome.kind == "fine", str(outcome)


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        (TEMPLATE, True),
        ("{% for m in messages %}{{ (m['role'] == 'user') != (loop.index0 % 2 == 0) }}{% endfor %}", True),
        ("{{ '%9d' % 1 }}", False),
        ("{{ ('%9d') % 1 }}", False),
        ("{% set x = '%9d' %}{{ x % 1 }}", False),
        ("{{ 'a'.center(9) }}", False),
        ("{% set n = namespace(x=1) %}{{ n.x }}", False),
        ("{% for a in messages %}{% for b in messages %}{{ b }}{% endfor %}{% endfor %}", False),
        ("{% set a = 'x' %}{% set b = a ~ a %}{% set c = b ~ b %}{% set d = c ~ c %}{{ d }}", False),
        ("{{ messages | tojson(indent=9) }}", False),
        ("{% include 'a' %}", False),
        ("{% generation %}a{% endgeneration %}", False),
        ("{{ 'a", False),
        ("{% for c in 'aaaa' %}bbbb{% endfor %}", False),
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", True),
        ("{% for m in messages ~ messages %}{{ m }}{% endfor %}", False),
        ("{% set messages = 'aaaa' %}{% for m in messages %}{{ m }}{% endfor %}", False),
        ("{% set x = 'aaaa' %}{% set y = x ~ x ~ x %}{{ y }}{{ y }}", False),
        ("{% set index = '%9d' %}{{ index % 1 }}", False),
        ("a" * 5000, False),
    ],
)
def test_a_template_is_plain_where_nothing_in_it_can_grow(template: str, plain: bool) -> None:
    assert is_plain(template) == plain


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("ask", [False, True])
def test_both_processes_render_what_transformers_renders(system: bool, ask: bool) -> None:
    """A template with everything that common ones use, and a plain one, against ``apply_chat_template``."""
    words = tokenizer()
    talk = [{"role": "system", "content": "简短"}] * system + TALK
    for template in (TEMPLATE, RICH):
        words.chat_template = template
        expected = words.apply_chat_template(talk, tokenize=False, add_generation_prompt=ask)
        assert render_template(words, talk, ask) == expected
    assert is_plain(TEMPLATE) and not is_plain(RICH)


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 1500 + "1" + ")" * 1500 + " }}",
        "{{ " + "not " * 900 + "1 }}",
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{% for m in messages %}{{ loop.index % 0 }}{% endfor %}",
    ],
    ids=["brackets", "not", "if", "a remainder of nothing"],
)
def test_a_plain_template_that_python_trips_over_is_refused_in_one_message(template: str) -> None:
    words = tokenizer()
    words.chat_template = template
    assert is_plain(template)
    with pytest.raises(TemplateRefusalError, match="does not take this conversation"):
        render_template(words, TALK)


def test_tokens_that_are_texts_are_not_repeated_without_limits(tmp_path: Path) -> None:
    """A million letters as the token that begins, two hundred times in every turn of many."""

    def render() -> None:
        words = tokenizer()
        words.add_special_tokens({"bos_token": "a" * 10**6})
        words.chat_template = "{% for m in messages %}" + "{{ bos_token }}" * 200 + "{% endfor %}"
        with pytest.raises(CheckpointError, match="takes too much memory"):
            render_template(words, TALK * 5)

    outcome = run(render, canary=tmp_path / "executed")
    assert outcome.kind == "fine", str(outcome)


def test_what_a_template_says_itself_is_passed_on() -> None:
    words = tokenizer()
    for rich in ("", "{% set n = namespace(x=1) %}"):
        words.chat_template = rich + "{{ raise_exception('no system turns') }}"
        with pytest.raises(TemplateRefusalError, match=r"does not take this conversation: .*no system turns"):
            render_template(words, TALK)


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_original_in_an_unusual_form_gives_the_same_weights(
    original: Path, tmp_path: Path, kind: str
) -> None:
    """Converted with --verify, the tensors are those that went in, to the bit; so they are when it is opened."""
    folder = shutil.copytree(original, tmp_path / "model")
    HONEST[kind](folder)
    convert(folder, tmp_path / "target", verify=True)
    back = convert(tmp_path / "target", tmp_path / "back", to="original")
    written = torch.load(tmp_path / "back" / back["files"][0], weights_only=True)
    wanted = original_tensors(HUB)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    embedding = open_model(folder, device="cpu").network.get_input_embeddings().weight
    assert torch.equal(embedding, open_model(original, device="cpu").network.get_input_embeddings().weight)


def test_verify_notices_tensors_that_are_not_what_the_file_holds(original: Path, tmp_path: Path) -> None:
    """A reader that maps the wrong bytes, here simulated by changing one number after reading, is found out."""
    weights = find_weights(original)
    verify_reading(weights)
    name = next(iter(weights.ranks[0]))
    weights.ranks[0][name] = weights.ranks[0][name].clone()
    weights.ranks[0][name].view(-1)[0] += 1
    with pytest.raises(CheckpointError, match=f"{name} was not read as the file holds it"):
        verify_reading(weights)


def test_verify_notices_mapped_bytes_of_a_compressed_file(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of old: compressed members mapped as if they were stored."""
    folder = shutil.copytree(original, tmp_path / "model")
    deflated(folder)
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **given: load(path, **{**given, "mmap": True}))
    with pytest.raises(CheckpointError):
        convert(folder, tmp_path / "target", verify=True)
    assert not (tmp_path / "target").exists()


def test_ctrl_c_ends_what_is_tried_and_its_process(tmp_path: Path) -> None:
    """The process that tries does not see Ctrl-C; the one that waits ends it."""
    process_file = tmp_path / "process"

    def endless() -> None:
        process_file.write_text(str(os.getpid()))
        while True:
            time.sleep(1)

    def interrupted() -> None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            run_within_limits(endless, "a file")
        except KeyboardInterrupt:
            print("stopped")
            raise SystemExit(3) from None

    outcome = run(interrupted, canary=tmp_path / "executed")
    assert outcome.printed == "stopped\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(process_file.read_text()), 0)


def test_code_that_runs_would_be_noticed(tmp_path: Path) -> None:
    """The harness itself: each kind of end is told apart."""
    canary = tmp_path / "executed"
    assert run(lambda: print("done"), canary).kind == "fine"
    assert run(lambda: command("inspect", tmp_path / "nothing"), canary).kind == "message"
    assert run(lambda: 1 // 0, canary).kind == "traceback"
    # Well above the limit: a copy may free some of what the process had when it was forked.
    assert run(lambda: bytearray(b"a") * (1600 << 20), canary).kind == "memory"
    assert run(lambda: os.abort(), canary).kind == "crashed"
    assert run(lambda: os.kill(os.getpid(), signal.SIGXCPU), canary).kind == "hung"
    assert run(canary.touch, canary).kind == "executed"
