"""``hanmo serve`` and ``hanmo chat --url``: options, mistakes, and the process from its start to its end."""

import http.client
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hanmo.checkpoints import save_model
from hanmo.cli import app
from hanmo.cli import chat as chat_cli
from hanmo.errors import ConfigError, HanmoError
from hanmo.generation.chat import ChatSession
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, iter_records
from hanmo.serving import server
from tests import processes
from tests.unit.serving import FakeEngine, Running, running, says
from tests.unit.tiny import tiny_eva


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("serve")
    save_model(tiny_eva(), place / "demo")
    save_model(tiny_eva(), place / "other" / "demo")
    save_model(tiny_eva(), place / "second")
    return place


def test_serve_opens_models_under_their_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(server, "serve_models", lambda *given: taken.extend(given))
    words = [
        "serve",
        str(folder / "demo"),
        str(folder / "second"),
        "temperature=0.5",
        "--port",
        "0",
        "--most-rows",
        "3",
    ]
    result = CliRunner().invoke(app, [*words, "--queue", "5", "--limit", "99", "--metrics-names", "vllm"])
    assert result.exit_code == 0, result.output
    served, engines, place, queue, names = taken
    assert [one.name for one in served] == list(engines) == ["demo", "second"]
    assert served[0].settings.temperature == 0.5 and served[0].longest == 99
    assert (place.host, place.port, place.key, queue, names) == ("127.0.0.1", 0, None, 5, "vllm")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["temperature=1"], "no model given"),
        (["demo", "other/demo"], "two models are called demo"),
        (["demo", "second", "--size", "base"], "--size is about the files of one model"),
        (["demo", "published=true"], "mixes the replies"),
        (["demo", "--host", "0.0.0.0"], "an API key is needed"),
        (["demo", "--host", "::"], "an API key is needed"),
        (["demo", "--api-key", " "], "the API key is empty"),
        (["demo", "--metrics-names", "a b"], "expected letters"),
        (["demo", "temprature=1"], "did you mean temperature"),
    ],
)
def test_serve_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], problem: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(server, "serve_models", lambda *given: pytest.fail("it serves"))
    result = CliRunner().invoke(app, ["serve", *words])
    assert isinstance(result.exception, HanmoError) and problem in str(result.exception)


def test_a_port_that_is_taken_is_one_message() -> None:
    with server.Place(port=0).listening() as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use; take another --port"):
            server.Place(port=port).listening()


def test_the_process_from_its_start_to_its_end(folder: Path) -> None:
    """A real engine in a process of its own; SIGTERM ends a running stream with a reason."""
    command = [sys.executable, "-m", "hanmo", "serve", str(folder / "demo"), "--port", "0", "max_new_tokens=2000"]
    environment = {**os.environ, "PYTHONPATH": str(processes.ROOT), "OMP_NUM_THREADS": "1"}
    with processes.started(command, stderr=-1, env=environment) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "/v1" in line)
        found = re.fullmatch(r"hanmo: demo at http://127.0.0.1:(\d+)/v1 \(Ctrl-C ends\)\n", told)
        assert found, told
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=processes.LIMIT)
        asked = {"messages": [{"role": "user", "content": "你好"}], "stream": True, "ignore_eos": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked))
        answer = connection.getresponse()
        assert answer.status == 200 and answer.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        rest = answer.read().decode()
        assert '"finish_reason":"length"' in rest and rest.endswith("data: [DONE]\n\n")
        assert process.wait(processes.LIMIT) in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def remote() -> Iterator[Running]:
    opened = tiny_eva()
    engine = FakeEngine(opened, says("今天天气真不错", opened))
    with running({"demo": opened}, {"demo": engine}, key="secret") as one:
        yield one


def talked(remote: Running, monkeypatch: pytest.MonkeyPatch, lines: list[str], **given: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    chat_cli.chat(**{"url": f"http://127.0.0.1:{remote.port}/v1/", "api_key": "secret", **given})


def test_chat_with_a_server(
    remote: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.jsonl"
    lines = ["你好", "/set temperature 0.5", "/set rule_files false", "再见", f"/save {file}"]
    talked(remote, monkeypatch, lines, rest=["demo", "max_new_tokens=5"], system="谢谢")
    shown = capsys.readouterr()
    [dialogue] = iter_records(file)
    assert f"Sys >>> {dialogue.turns[1]}" in shown.out.splitlines() and "今天天气真不错".startswith(dialogue.turns[1])
    assert "rule_files is not sent to a server" in shown.err
    assert isinstance(dialogue, Dialogue) and dialogue.turns[0::2] == ("你好", "再见") and dialogue.system == "谢谢"
    family = remote.engines["demo"].model.family
    context, settings, _ = remote.engines["demo"].calls[-1]
    assert context == family.context(Dialogue((*dialogue.turns[:3],), "谢谢"), 512)
    assert settings.temperature == 0.5 and settings.max_new_tokens == 5 and settings.seed is not None


def test_the_same_seed_says_the_same_here_and_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = tiny_eva()
    settings = Settings(max_new_tokens=6, temperature=2.0, seed=4)
    session = ChatSession(opened, settings, 128)
    expected = session.reply("你好").text
    with running({"demo": opened}, settings=settings.change(seed=None)) as one:
        talked(one, monkeypatch, ["你好"], seed=4)
    assert capsys.readouterr().out.splitlines()[1] == f"Sys >>> {expected}"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"url": "http://127.0.0.1:9"}, "is hanmo serve running there"),
        ({"url": "file:///etc/passwd"}, "expected http://HOST:PORT"),
        ({"api_key": "wrong"}, "the API key is missing or wrong"),
        ({"rest": ["dem"]}, "did you mean demo"),
        ({"rest": ["suppressed_ids=[1]"]}, "suppressed_ids is not sent to a server"),
        ({"vocab": Path("vocab.txt")}, "--vocab is about a model of this machine"),
        ({"limit": 9}, "--limit is about a model of this machine"),
    ],
)
def test_chat_with_a_server_refuses(
    remote: Running, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(HanmoError, match=re.escape(problem)):
        talked(remote, monkeypatch, ["你好"], **given)
