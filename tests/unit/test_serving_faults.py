"""Faults that other servers have had, one test each; none of them needs thousands of requests."""

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from hanmo.errors import NotANumberError
from hanmo.generation.chat import ChatSession
from hanmo.generation.engine import Engine
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, Text
from hanmo.rows import IGNORE
from hanmo.serving import answers
from hanmo.serving import server as serving_server
from tests.unit.serving import LIMIT, FakeEngine, Running, running, says, sent, until
from tests.unit.tiny import NAMES, tiny, tiny_eva

GREEDY = Settings(max_new_tokens=8, do_sample=False)


@pytest.fixture(scope="module")
def pangu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A small decoder of 256 positions with the engine itself."""
    with running({"model": tiny("pangu", tmp_path_factory.mktemp("pangu"))}) as server:
        yield server


@pytest.fixture
def slow() -> Iterator[Running]:
    """A model of long replies, whose steps a test holds back with ``gate``."""
    opened = tiny_eva()
    ids = opened.family.encode("今天天气真不错" * 60)
    engine = FakeEngine(opened, lambda context, settings, place: (ids, True), most_rows=2)
    with running({"model": opened}, {"model": engine}, settings=GREEDY.change(max_new_tokens=400), queue=4) as server:
        yield server


HELLO = [{"role": "user", "content": "你好"}]


@pytest.mark.parametrize("stream", [True, False])
def test_1_generation_ends_when_the_client_leaves(slow: Running, stream: bool) -> None:
    engine = slow.engines["model"]
    engine.pause = 0.02
    with sent(slow, "/v1/chat/completions", messages=HELLO, stream=stream) as connection:
        until(lambda: slow.gauge("num_requests_running") == 1)
        if stream:
            assert connection.recv(4096)
    until(lambda: slow.gauge("num_requests_running") == 0)
    assert engine.cancelled == 1 and engine.idle


def test_1_a_waiting_request_leaves_the_queue_with_its_client(slow: Running) -> None:
    slow.engines["model"].gate.clear()
    connections = [sent(slow, "/v1/chat/completions", messages=HELLO) for _ in range(4)]
    until(lambda: slow.gauge("num_requests_waiting") == 4)
    for connection in connections:
        connection.close()
    slow.engines["model"].gate.set()
    until(lambda: slow.gauge("num_requests_waiting") + slow.gauge("num_requests_running") == 0)
    assert slow.engines["model"].idle


def test_3_a_stop_string_in_completions_with_echo() -> None:
    opened = tiny_eva()
    with running({"model": opened}, {"model": FakeEngine(opened, says("今天天气", opened))}) as server:
        answer = server.post("/v1/completions", prompt="今天", echo=True, stop="今天", max_tokens=50).json["choices"][0]
        assert answer["text"] == "今天" and answer["stop_reason"] == "今天"  # the prompt holds the stop and stays whole
        streamed = server.post(
            "/v1/completions", prompt="你", echo=True, stop="天气", max_tokens=50, stream=True
        ).events
        assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == "你今天"


def test_4_stop_strings_count_after_min_tokens() -> None:
    opened = tiny_eva()
    with running({"model": opened}, {"model": FakeEngine(opened, says("好你好你好", opened))}) as server:
        texts = [
            server.chat(stop="好", min_tokens=least, max_tokens=50).json["choices"][0]["message"]["content"]
            for least in (0, 1)
        ]
        assert texts == ["", "好你"]


def test_5_a_seed_draws_the_same_in_any_company(pangu: Running) -> None:
    def said(seed: int | None) -> str:
        answer = pangu.chat(seed=seed, temperature=1.5, max_tokens=6)
        return answer.json["choices"][0]["message"]["content"]

    alone = [said(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(said, [0, 1, 2, 3] * 2))
    assert together == alone * 2 and len(set(alone)) > 1
    several = pangu.chat(seed=1, n=6, temperature=2, max_tokens=6).json["choices"]
    assert len({choice["message"]["content"] for choice in several}) > 1


def test_6_no_reply_reaches_another_client() -> None:
    """An engine that repeats the prompt, random leaving, and a nonce in every prompt."""
    opened = tiny_eva()
    family = opened.family
    engine = FakeEngine(opened, lambda context, settings, place: (context.ids[:-1], True), most_rows=4)
    letters = "你好吗我很今天气真不错明"
    draw = random.Random(3)
    nonces = ["".join(draw.sample(letters, 6)) for _ in range(64)]

    def ask(number: int) -> bool:
        if number % 4 == 3:
            with sent(server, "/v1/completions", prompt=nonces[number], stream=True) as connection:
                connection.recv(1 + number)
            return True
        answer = server.post("/v1/completions", prompt=nonces[number], max_tokens=50)
        return answer.json["choices"][0]["text"] == family.decode(family.encode(nonces[number]))

    with running({"model": opened}, {"model": engine}) as server:
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(64)))
        until(lambda: engine.idle)
        assert server.server.worker._live == {}


def test_7_a_full_queue_refuses_and_the_rest_finishes(slow: Running) -> None:
    engine = slow.engines["model"]
    engine.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(slow.chat, max_tokens=3) for _ in range(16)]
        until(lambda: sum(answer.done() for answer in answers) == 12)
        engine.gate.set()
        found = [answer.result() for answer in answers]
    refused = [answer for answer in found if answer.status == 503]
    assert len(refused) == 12 and sum(answer.status == 200 for answer in found) == 4
    assert all(answer.error["code"] == "queue_full" and int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert slow.gauge('admission_rejections_total{reason="queue_full"}') == 12
    assert slow.chat(n=5).status == 503 and slow.chat(n=4, max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_8_the_boundary_of_the_context_is_exact(pangu: Running, stream: bool) -> None:
    """256 positions: 250 and 6 fit, 251 and 6 do not."""

    def ask(prompt: int, reply: int) -> Any:
        return pangu.post("/v1/completions", prompt=[9] * prompt, max_tokens=reply, stream=stream)

    assert ask(250, 6).status == ask(255, 1).status == 200
    assert ask(9, 10**9).error["code"] == "context_length_exceeded"
    for prompt, reply in ((251, 6), (256, 1), (1, 256), (300, 16)):
        refused = ask(prompt, reply)
        assert refused.status == 400 and refused.error["code"] == "context_length_exceeded"
        assert refused.error["param"] == "prompt"
        assert refused.error["message"].startswith(
            f"This model's maximum context length is 256 tokens. However, you requested {prompt + reply} tokens"
        )


def test_8_a_conversation_is_never_cut(pangu: Running) -> None:
    """256 positions, and a reply of 8 by default: a shorter reply where there is less room, never a shorter prompt."""
    for text in ("好" * 300, "好" * 100_000):
        refused = pangu.chat(text)
        assert refused.status == 400 and refused.error["code"] == "context_length_exceeded"
        assert refused.error["param"] == "messages"
    family = pangu.engines["model"].model.family
    texts = (letter * size for letter in "好你吗天" for size in range(120, 300))
    long = next(text for text in texts if len(family.context(Dialogue((text,)), 999).ids) == 252)
    answer = pangu.chat(long, ignore_eos=True).json
    assert answer["usage"]["prompt_tokens"] == 252 and answer["usage"]["completion_tokens"] == 4
    assert answer["choices"][0]["finish_reason"] == "length"
    assert pangu.chat(long, max_tokens=5).error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("name", ["pangu", "transformer_xl", "huggingface"])
def test_10_echoed_logprobs_are_those_of_the_evaluation(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    ids = opened.family.encode("今天天气怎么样，明天去哪里玩")
    from hanmo.evaluation.engine.row_scores import score_rows
    from hanmo.rows import Part

    row = opened.family.row([Part(tuple(ids[:1]), False), Part(tuple(ids[1:]), True)], stop=False)
    [expected] = score_rows(opened, [row])
    assert int((row.labels != IGNORE).sum()) == len(ids) - 1
    with running({"model": opened}) as server:
        asked = {"prompt": [ids, ids[:3]], "temperature": 0, "echo": True, "logprobs": 1, "seed": 1234}
        scored = server.post("/v1/completions", max_tokens=1, **asked).json["choices"]
        told = scored[0]["logprobs"]
        assert told["token_logprobs"][1 : len(ids)] == pytest.approx(expected.logprobs, abs=1e-5)
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        assert len(told["tokens"]) == len(told["top_logprobs"]) == len(told["text_offset"]) == len(ids) + 1
        pairs = zip(told["top_logprobs"][1:], told["token_logprobs"][1:], strict=True)
        assert all(max(top.values()) >= value for top, value in pairs)
        assert len(scored[1]["logprobs"]["tokens"]) == 4
        nothing = server.post("/v1/completions", max_tokens=0, **asked).json
        assert nothing["choices"][0]["logprobs"]["token_logprobs"] == told["token_logprobs"][:-1]
        assert nothing["usage"]["completion_tokens"] == 0
        assert server.post("/v1/completions", max_tokens=0, prompt=ids).error["param"] == "max_tokens"


@pytest.mark.parametrize("name", ["eva", "glm"])
def test_10_a_split_scores_what_the_decoder_reads(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    from hanmo.evaluation.engine.row_scores import score_rows

    [[context, answer]] = opened.family.cloze("今天天气", ["很好吗"])
    [expected] = score_rows(opened, [opened.family.row([context, answer], stop=False)])
    with running({"model": opened}) as server:
        asked = {"prompt": [*context.ids, *answer.ids], "echo": True, "logprobs": 1, "max_tokens": 0}
        told = server.post("/v1/completions", split=len(context.ids), **asked).json["choices"][0]["logprobs"]
        assert told["token_logprobs"][: len(context.ids)] == [None] * len(context.ids)
        assert told["token_logprobs"][len(context.ids) :] == pytest.approx(expected.logprobs, abs=1e-5)


def test_11_the_settings_of_the_first_request_do_not_stay(pangu: Running) -> None:
    def said(**fields: Any) -> str:
        return pangu.chat(max_tokens=6, **fields).json["choices"][0]["message"]["content"]

    greedy = said(temperature=0)
    wild = {said(temperature=3, seed=seed) for seed in range(4)}
    assert len(wild) > 1
    assert said(temperature=0) == greedy
    assert said(temperature=0, stop=greedy[1:]) == greedy[:1]
    assert said(temperature=0) == greedy


def test_12_no_number_in_an_answer_is_infinite(pangu: Running) -> None:
    answer = pangu.chat(logit_bias={"9": 100, "8": -100}, logprobs=True, top_logprobs=20, max_tokens=3)
    assert answer.status == 200
    json.loads(answer.body, parse_constant=lambda name: pytest.fail(name))
    refused = pangu.request("POST", "/v1/chat/completions", b'{"messages": [], "temperature": NaN}')
    assert refused.status == 400 and "NaN" in refused.error["message"]


def test_12_a_model_that_computes_nan_says_so_and_lives_on() -> None:
    opened = tiny_eva()
    engine = FakeEngine(opened, says("你好", opened))
    with running({"model": opened}, {"model": engine}) as server:
        engine.error = NotANumberError("EvaModel computes NaN at /home/someone")
        broken = server.chat()
        assert broken.status == 500 and broken.error["type"] == "server_error"
        assert "/home" not in broken.error["message"]
        streamed = server.chat(stream=True)
        assert streamed.status == 200 and "error" in streamed.events[-1]
        engine.error = None
        assert server.chat().status == 200


def test_13_a_dead_worker_is_told_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_server, "LINGER", 0.5)
    opened = tiny_eva()
    engine = FakeEngine(opened, says("你好" * 99, opened))
    with running({"model": opened}, {"model": engine}, settings=GREEDY.change(max_new_tokens=150)) as server:
        engine.gate.clear()
        with sent(server, "/v1/chat/completions", messages=HELLO, stream=True) as streaming:
            until(lambda: server.gauge("num_requests_waiting") == 1)
            engine.broken = RuntimeError("a secret at /home/someone")
            engine.gate.set()
            until(lambda: server.get("/health").status == 503)
            refused = server.chat()
            assert refused.status == 503 and refused.error["code"] == "worker_dead" and "retry-after" in refused.headers
            told = b"".join(iter(lambda: streaming.recv(65536), b"")).decode()
            assert '"code":"worker_dead"' in told and told.rstrip("0\r\n").endswith("data: [DONE]\n\n".rstrip())
            assert "/home" not in told
        until(lambda: server.server.should_exit)
    assert server.server.worker.dead == "RuntimeError: a secret at /home/someone"


def test_14_streams_end_with_a_reason_when_the_server_ends(slow: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_server, "GRACE", 0.05)
    slow.engines["model"].pause = 0.05
    asked = {"path": "/v1/chat/completions", "messages": HELLO}
    with sent(slow, **asked, stream=True) as streaming, sent(slow, **asked) as whole:
        until(lambda: slow.gauge("num_requests_running") == 2)
        slow.server.should_exit = True
        told = b"".join(iter(lambda: streaming.recv(65536), b"")).decode()
        assert '"finish_reason":"length"' in told and "data: [DONE]" in told
        answer = b"".join(iter(lambda: whole.recv(65536), b"")).decode()
        assert answer.startswith("HTTP/1.1 503") and "shutting_down" in answer and "retry-after" in answer.lower()


@pytest.mark.parametrize("name", NAMES)
def test_15_messages_become_the_ids_that_a_chat_session_builds(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    session = ChatSession(opened, GREEDY, 200, system="今天" if name != "huggingface" else "")
    messages = [{"role": "system", "content": session.system}] if session.system else []
    with running({"model": opened}, {"model": Engine(opened, 16)}) as server:
        for text in ("你好吗", "明天去哪里玩", "再见"):
            session._ids = [None] * len(session.turns)  # a client sends the texts of replies, not their ids
            reply = session.reply(text)
            messages.append({"role": "user", "content": text})
            ids = server.post("/tokenize", messages=messages).json["tokens"]
            assert tuple(ids) == reply.context.ids
            said = server.post("/v1/chat/completions", messages=messages, return_token_ids=True).json["choices"][0]
            assert tuple(said["prompt_token_ids"]) == reply.context.ids
            assert tuple(said["token_ids"]) == reply.ids
            messages.append({"role": "assistant", "content": reply.text})


@pytest.mark.parametrize("name", NAMES)
def test_15_a_prompt_becomes_the_ids_that_generate_builds(name: str, tmp_path: Path) -> None:
    from hanmo.generation.prompts import as_context

    opened = tiny(name, tmp_path)
    with running({"model": opened}) as server:
        answer = server.post("/v1/completions", prompt="今天天气", max_tokens=1, return_token_ids=True)
        expected = as_context(opened, Text("今天天气"), 99).ids
        assert tuple(answer.json["choices"][0]["prompt_token_ids"]) == expected
        assert tuple(server.post("/tokenize", prompt="今天天气").json["tokens"]) == expected


WRONG: list[dict[str, Any]] = [
    {"messages": None}, {"messages": []}, {"messages": "你好"}, {"messages": [1]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
    {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 10**30}, {"max_tokens": "9"},
    {"max_tokens": True}, {"max_tokens": 1.5}, {"n": 0}, {"n": 10**6}, {"temperature": -1}, {"temperature": "hot"},
    {"top_p": 1.1}, {"top_p": -0.1}, {"top_k": -2}, {"seed": 2**63}, {"seed": 1.5},
    {"stop": ""}, {"stop": ["a"] * 99}, {"stop": [1]}, {"stop": "x" * 10_000}, {"stop": {}}, {"stream": "yes"},
    {"stream_options": {"include_usage": True}}, {"stream": True, "stream_options": 1}, {"logit_bias": {"x": 1}},
    {"logit_bias": {"99999999": 1}}, {"logit_bias": {"-1": 1}}, {"logit_bias": {"1": 101}}, {"logit_bias": [1]},
    {"logit_bias": {str(id_): 1 for id_ in range(2000)}}, {"logprobs": 1}, {"top_logprobs": 3}, {"echo": True},
    {"top_logprobs": 21, "logprobs": True}, {"presence_penalty": 3}, {"min_tokens": -1}, {"stop_token_ids": [10**9]},
    {"stop_token_ids": [-1]}, {"repetition_penalty": 0}, {"best_of": 3}, {"use_beam_search": True, "n": 2},
    {"use_beam_search": True, "num_beams": 10**9}, {"prompt": "你好"}, {"suffix": "x"}, {"model": 3}, {"min_p": 2},
]  # fmt: skip


@pytest.mark.parametrize("fields", WRONG, ids=lambda fields: json.dumps(fields)[:40])
def test_16_a_wrong_value_is_named_and_refused(pangu: Running, fields: dict[str, Any]) -> None:
    refused = pangu.post("/v1/chat/completions", **{"messages": HELLO, **fields})
    assert refused.status == 400 and refused.error["type"] == "invalid_request_error"
    named = refused.error["param"]
    assert named is not None and named.partition(".")[0] in {*fields, "logprobs", "n"}
    assert len(refused.error["message"]) < 1100


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"messages": \xff}',
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', b'{"x": Infinity}', b'{"x": 1' + b"0" * 5000 + b"}",
        b"\x00" * 100, "{}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_16_a_body_that_is_no_json_is_refused(pangu: Running, body: bytes) -> None:
    refused = pangu.request("POST", "/v1/chat/completions", body)
    assert refused.status == 400 and refused.error["type"] == "invalid_request_error"


def test_16_control_characters_are_text(pangu: Running) -> None:
    assert pangu.chat("你\u0000好\u200b", max_tokens=1).status == 200


def test_16_a_body_that_is_too_large_is_refused(pangu: Running) -> None:
    refused = pangu.chat("x" * (3 << 20))
    assert refused.status == 413 and refused.error["message"]
    with closing(http.client.HTTPConnection("127.0.0.1", pangu.port, timeout=LIMIT)) as connection:
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()
        assert connection.getresponse().status == 413


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [-1], [10**6], [True], [1.5], ["a", 1], [[1], "a"], {}, 3, ["a"] * 1000, [""], [[1, "a"]]]
)
def test_16_a_prompt_that_is_none_is_refused(pangu: Running, prompt: Any) -> None:
    refused = pangu.post("/v1/completions", prompt=prompt)
    assert refused.status == 400 and refused.error["param"] == "prompt"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.nip.io"])
def test_17_a_name_that_is_not_this_machines_is_refused(pangu: Running, host: str) -> None:
    """DNS rebinding: a page's own name leads to this machine."""
    refused = pangu.request("GET", "/v1/models", headers={"Host": host})
    assert refused.status == 403 and refused.error["code"] == "host_not_allowed"


def test_17_pages_of_other_origins_are_refused(pangu: Running) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert pangu.request("GET", "/v1/models", headers={"Host": host}).status == 200
    for origin in ("null", "http://localhost:3000", "https://evil.example", ""):
        answer = pangu.request("POST", "/v1/completions", b"{}", {"Origin": origin})
        assert answer.status == 403 and answer.error["code"] == "origin_not_allowed"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    own = {"Host": f"localhost:{pangu.port}", "Origin": f"http://localhost:{pangu.port}"}
    assert pangu.request("GET", "/v1/models", headers=own).status == 200
    assert pangu.request("OPTIONS", "/v1/models", headers={"Origin": "http://localhost:3000"}).status == 403


def test_18_a_key_is_asked_for_and_never_told(caplog: pytest.LogCaptureFixture) -> None:
    opened, key = tiny_eva(), "sk-密-secret"
    caplog.set_level("INFO", "hanmo.serving")
    with running({"model": opened}, {"model": FakeEngine(opened, says("你好", opened))}, key=key) as server:
        server.key = None
        for given in (None, "", "Bearer", "Bearer wrong", "Bearer sk-", "Basic c2s=", "Bearer \u00e9"):
            headers = {} if given is None else {"Authorization": given}
            refused = server.request("GET", "/v1/models", headers=headers)
            assert refused.status == 401 and refused.error["code"] == "invalid_api_key"
            assert refused.error["type"] == "invalid_request_error" and "secret" not in refused.body.decode()
        carried = {"Authorization": "Bearer " + key.encode().decode("latin-1")}
        assert server.request("GET", "/v1/models", headers=carried).status == 200
        for path in ("/tokenize", "/metrics", "/score", "/nowhere"):
            assert server.request("POST", path, b"{}").status == 401
        assert server.get("/health").status == server.get("/ping").status == 200
        assert key not in repr(vars(server.server.config.app))
    assert "secret" not in caplog.text and "/v1/models" in caplog.text


MEANINGFUL: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tool_choice": "required"}, {"functions": [{"name": "f"}]},
    {"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_schema", "json_schema": {}}},
    {"guided_json": {}}, {"guided_choice": ["a"]}, {"structured_outputs": {"regex": "a"}}, {"chat_template": "{{ x }}"},
    {"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": [1]}, {"bad_words": ["x"]}, {"allowed_token_ids": [1]},
    {"modalities": ["audio"]}, {"add_generation_prompt": False}, {"continue_final_message": True}, {"prompt_logprobs": 1},
    {"skip_special_tokens": False}, {"web_search_options": {}},
]  # fmt: skip


@pytest.mark.parametrize("fields", MEANINGFUL, ids=lambda fields: json.dumps(fields)[:40])
def test_19_what_would_change_the_meaning_is_not_ignored(pangu: Running, fields: dict[str, Any]) -> None:
    refused = pangu.chat(**fields)
    assert refused.status == 400 and refused.error["param"] in fields


def test_19_what_asks_for_nothing_is_accepted(pangu: Running) -> None:
    nothing = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "chat_template_kwargs": {}, "stop": [],
        "modalities": ["text"], "logit_bias": {}, "skip_special_tokens": True, "presence_penalty": 0, "best_of": 1,
    }  # fmt: skip
    answer = pangu.chat(max_tokens=1, **nothing)
    assert answer.status == 200 and "x-hanmo-ignored" not in answer.headers


def test_19_suffix_is_for_models_that_fill_blanks(pangu: Running, tmp_path: Path) -> None:
    refused = pangu.post("/v1/completions", prompt="今天", suffix="再见")
    assert refused.status == 400 and refused.error["param"] == "suffix"
    opened = tiny("glm", tmp_path)
    from hanmo.generation.decode import fill

    with running({"model": opened}) as server:
        for prompt, fields in (
            ("今天[MASK]再见", {"prompt": "今天", "suffix": "再见"}),
            ("[MASK]你好[MASK]", {"prompt": "[MASK]你好[MASK]"}),
        ):
            context = opened.family.context(Text(prompt), 99)
            [answers] = fill(opened, [context], Settings(max_new_tokens=4, temperature=2.0, seed=3))
            expected = "\n".join(opened.family.decode(answer.ids) for answer in answers)
            asked = {**fields, "max_tokens": 4, "temperature": 2, "seed": 3}
            answer = server.post("/v1/completions", return_token_ids=True, **asked).json
            assert answer["choices"][0]["text"] == expected
            assert answer["choices"][0]["token_ids"] == [id_ for one in answers for id_ in one.ids]
            streamed = server.post("/v1/completions", stream=True, **asked).events
            assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == expected
            assert [chunk["choices"][0]["finish_reason"] for chunk in streamed[:-1]] == [None] * (len(streamed) - 1)


def test_20_usage_counts_the_tokens_of_the_texts() -> None:
    opened = tiny_eva()
    text = "今天天气真不错"
    ids = opened.family.encode(text)
    with running({"model": opened}, {"model": FakeEngine(opened, says(text, opened))}) as server:
        given = len(opened.family.context(Text("你好"), 99).ids) if opened.family.blank else 2

        def usage(**fields: Any) -> tuple[int, int, int]:
            found = server.post("/v1/completions", prompt="你好", max_tokens=50, **fields).json["usage"]
            return found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]

        assert usage() == usage(echo=True) == (given, len(ids), given + len(ids))
        assert usage(n=3) == (given, 3 * len(ids), given + 3 * len(ids))
        assert usage(stop=text[-1])[1] == len(ids)  # the token that completes the stop string was generated
        assert usage(stop=opened.family.decode(ids[:1]))[1] == 1
        chunks = server.chat(stream=True, stream_options={"include_usage": True}, max_tokens=50).events
        assert chunks[-1]["usage"]["completion_tokens"] == len(ids)


@contextmanager
def unread(pause: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, socket.socket]]:
    """A server that gives a reader up after a pause, and a long stream of it, of which nothing has been read."""
    monkeypatch.setattr(answers, "SLOWEST", pause)
    opened = tiny_eva()
    ids = opened.family.encode("今天天气真不错") * 700
    engine = FakeEngine(opened, lambda context, settings, place: (ids, True))
    many = GREEDY.change(max_new_tokens=20_000)
    with (
        running({"model": opened}, {"model": engine}, settings=many, limit=30_000) as server,
        closing(socket.socket()) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        data = json.dumps({"messages": HELLO, "stream": True, "logprobs": True, "top_logprobs": 5}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        )
        connection.sendall(head % len(data) + data)
        yield server, connection


def test_a_reader_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with unread(0.3, monkeypatch) as (server, _):
        until(lambda: server.server._api.worker._jobs)
        until(lambda: not server.server._api.worker._jobs and not server.server.worker.running.total())


@pytest.mark.slow
def test_a_slow_reader_gets_all_of_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes several times as long as a reader may pause, without ever pausing so long."""
    found, began = b"", time.monotonic()
    with unread(1, monkeypatch) as (_, connection):
        while piece := connection.recv(4096):
            found += piece
            time.sleep(0.015)
    assert time.monotonic() - began > 4 and b"data: [DONE]" in found[-200:]


def test_a_hundred_connections_that_say_nothing_hold_nobody_up(pangu: Running) -> None:
    idle = [socket.create_connection(("127.0.0.1", pangu.port)) for _ in range(100)]
    try:
        assert pangu.chat(max_tokens=1).status == 200
    finally:
        for connection in idle:
            connection.close()


def test_health_does_not_wait_for_the_model(slow: Running) -> None:
    slow.engines["model"].gate.clear()
    with sent(slow, "/v1/chat/completions", messages=HELLO):
        until(lambda: slow.gauge("num_requests_waiting") == 1)
        assert slow.get("/health").status == 200
        slow.engines["model"].gate.set()


def test_threads_of_a_server_end_with_it() -> None:
    before = set(threading.enumerate())
    opened = tiny_eva()
    with running({"model": opened}, {"model": FakeEngine(opened, says("你好", opened))}) as server:
        assert server.chat().status == 200
    until(lambda: not [one for one in set(threading.enumerate()) - before if "hanmo" in one.name])
