"""The endpoints as clients use them: fields, the exact form of answers and of streams, errors."""

import base64
import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hanmo
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, Text
from hanmo.serving import job
from tests.unit.chat_templates import CASES, TALK, TOOLS, chatting
from tests.unit.serving import LIMIT, FakeEngine, Running, byte_level_model, running, says
from tests.unit.tiny import tiny, tiny_eva

SAID = "今天天气真不错"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two models with the engine itself."""
    opened = {"eva": tiny_eva(), "pangu": tiny("pangu", tmp_path_factory.mktemp("pangu"))}
    with running(opened) as server:
        yield server


@pytest.fixture(scope="module")
def scripted() -> Iterator[Running]:
    """A model that always says the same and stops, one token a step."""
    opened = tiny_eva()
    with running({"model": opened}, {"model": FakeEngine(opened, says(SAID, opened))}) as server:
        yield server


def about(answer: dict[str, Any]) -> tuple[Any, ...]:
    return answer["id"], answer["created"], answer["model"]


def test_a_chat_completion_has_every_field_that_clients_read(scripted: Running) -> None:
    answer = scripted.chat(user="me", metadata={"a": 1}).json
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": SAID, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    tokens = scripted.post("/tokenize", prompt=SAID, add_special_tokens=False).json["count"]
    given = scripted.post("/tokenize", messages=[{"role": "user", "content": "你好"}]).json["count"]
    usage = {"prompt_tokens": given, "completion_tokens": tokens, "total_tokens": given + tokens}
    assert answer["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 0}}


def test_the_chunks_of_a_stream(scripted: Running) -> None:
    streamed = scripted.chat(stream=True, stream_options={"include_usage": True}, n=2)
    first, second, *middle, usage = streamed.events
    assert streamed.headers["cache-control"] == "no-cache" and streamed.headers["x-accel-buffering"] == "no"
    assert len({about(chunk) for chunk in streamed.events}) == 1
    assert {chunk["object"] for chunk in streamed.events} == {"chat.completion.chunk"}
    assert [one["choices"][0]["index"] for one in (first, second)] == [0, 1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in middle if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == SAID
        assert own[-1]["delta"] == {} and own[-1]["finish_reason"] == "stop"
        assert all(choice["finish_reason"] is None and choice["delta"]["content"] for choice in own[:-1])
    assert all(chunk["usage"] is None for chunk in [first, second, *middle])
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 2 * len(own[:-1])


def test_a_stream_without_usage_has_no_such_chunk(scripted: Running) -> None:
    assert all(chunk["choices"] and "usage" not in chunk for chunk in scripted.chat(stream=True).events)
    continuous = scripted.chat(stream=True, stream_options={"continuous_usage_stats": True}).events
    counts = [chunk["usage"]["completion_tokens"] for chunk in continuous]
    assert counts == sorted(counts) and counts[0] == 0 < counts[-1]


def test_completions_stream_too(scripted: Running) -> None:
    chunks = scripted.post("/v1/completions", prompt="你好", stream=True, echo=True, max_tokens=50).events
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "你好" + SAID
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_idle_stream_says_that_it_is_alive(scripted: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "KEEP_ALIVE", 0.02)
    gate = scripted.engines["model"].gate
    gate.clear()
    connection = http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=LIMIT)
    with contextlib.closing(connection):
        body = json.dumps({"messages": [{"role": "user", "content": "你好"}], "stream": True})
        connection.request("POST", "/v1/chat/completions", body)
        answer, told = connection.getresponse(), b""
        while b"\n\n: keep-alive\n\n" not in told:
            told += answer.readline()
        gate.set()
        told += answer.read()
    assert told.endswith(b"data: [DONE]\n\n") and b'"content":"' in told


def test_null_means_not_given(scripted: Running) -> None:
    """What LangChain sends."""
    names = "seed stop logprobs temperature top_p n max_tokens stream stream_options logit_bias tools best_of suffix"
    answer = scripted.post("/v1/completions", prompt=["你好"], **dict.fromkeys(names.split()))
    assert answer.status == 200 and answer.json["choices"][0]["text"] == SAID
    assert "x-hanmo-ignored" not in answer.headers


def test_parts_of_content_are_joined(scripted: Running) -> None:
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    messages = [{"role": "developer", "content": "今天"}, {"role": "user", "content": parts}]
    scripted.post("/v1/chat/completions", messages=messages)
    family = scripted.engines["model"].model.family
    context, _, _ = scripted.engines["model"].calls[-1]
    assert context == family.context(Dialogue(("你好",), system="今天"), 512)


def test_max_completion_tokens_goes_before_max_tokens(scripted: Running) -> None:
    for fields in ({"max_completion_tokens": 2}, {"max_tokens": 2}, {"max_completion_tokens": 2, "max_tokens": 3}):
        answer = scripted.chat(**fields).json
        assert answer["usage"]["completion_tokens"] == 2 and answer["choices"][0]["finish_reason"] == "length"


def test_unknown_fields_are_named_in_a_header(scripted: Running) -> None:
    assert scripted.chat(temperatur=1, service_tier="auto").headers["x-hanmo-ignored"] == "temperatur"
    strange = scripted.chat(**{"a\r\nb: c": 1})
    assert strange.status == 200 and "b" not in strange.headers


def test_a_stop_string_ends_the_text_before_it(scripted: Running) -> None:
    choice = scripted.chat(stop=["气真", "不"]).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("今天天", "stop", "气真")
    kept = scripted.chat(stop="气真", include_stop_str_in_output=True).json["choices"][0]
    assert kept["message"]["content"] == "今天天气真"
    chunks = scripted.chat(stop="气真", stream=True).events
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "今天天"


def test_a_stop_token_of_the_request_ends_the_reply(scripted: Running) -> None:
    ids = scripted.post("/tokenize", prompt=SAID, add_special_tokens=False).json["tokens"]
    choice = scripted.chat(stop_token_ids=[ids[1]], return_token_ids=True).json["choices"][0]
    assert (choice["token_ids"], choice["stop_reason"]) == (ids[:1], ids[1])
    assert scripted.chat(stop_token_ids=[ids[1]], min_tokens=50).json["choices"][0]["message"]["content"] == SAID


def test_logprobs_of_a_chat(scripted: Running) -> None:
    answer = scripted.chat(logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in answer).decode() == SAID
    assert all(token["logprob"] == -0.5 and len(token["top_logprobs"]) == 2 for token in answer)
    chunks = scripted.chat(logprobs=True, stream=True).events
    told = [token for chunk in chunks for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [token["token"] for token in told] == [token["token"] for token in answer]
    assert all(token["top_logprobs"] == [] for token in told)


def test_the_bytes_of_half_characters(tmp_path: Path) -> None:
    opened = byte_level_model(tmp_path)
    with running({"model": opened}, {"model": FakeEngine(opened, says("好👍", opened))}) as server:
        answer = server.chat(logprobs=True, max_tokens=100).json["choices"][0]
        assert answer["message"]["content"] == "好👍"
        tokens = answer["logprobs"]["content"]
        assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == "好👍" and len(tokens) == 7
        assert tokens[0]["token"] == "bytes:\\xe5"
        cut = server.chat(max_tokens=5, stream=True).events
        texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in cut]
        assert "".join(texts) == server.chat(max_tokens=5).json["choices"][0]["message"]["content"] == "好\ufffd"
        assert not any("\ufffd" in text for text in texts[:-2])


@pytest.mark.parametrize("name", ["eva", "pangu"])
def test_a_completion_says_what_generate_says(real: Running, name: str) -> None:
    opened = real.engines[name].model
    from hanmo.generation.prompts import as_context

    context = as_context(opened, Text("今天天气"), 512)
    settings = Settings(max_new_tokens=6, temperature=2.0, seed=7)
    expected = generate(opened, [context] * 2, settings, places=[Place(0, 0), Place(0, 1)])
    fields = {"model": name, "prompt": "今天天气", "max_tokens": 6, "temperature": 2, "seed": 7, "n": 2}
    answer = real.post("/v1/completions", return_token_ids=True, **fields).json
    assert [tuple(choice["token_ids"]) for choice in answer["choices"]] == [reply.ids for reply in expected]
    assert [choice["text"] for choice in answer["choices"]] == [opened.family.decode(one.ids) for one in expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_several_prompts_are_answered_in_order(real: Running) -> None:
    prompts = ["今天", "明天去哪里玩"]
    both = real.post("/v1/completions", model="pangu", prompt=prompts, n=2, max_tokens=4).json
    alone = [real.post("/v1/completions", model="pangu", prompt=one, max_tokens=4).json for one in prompts]
    texts = [one["choices"][0]["text"] for one in alone]
    assert [choice["text"] for choice in both["choices"]] == [texts[0], texts[0], texts[1], texts[1]]
    assert both["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)


def test_token_ids_are_taken_as_they_are(real: Running) -> None:
    for prompt, expected in (([9, 10, 11], [[9, 10, 11]]), ([[9, 10], [11]], [[9, 10], [11]])):
        answer = real.post(
            "/v1/completions", model="pangu", prompt=prompt, max_tokens=1, return_token_ids=True, top_k=1
        )
        assert [choice["prompt_token_ids"] for choice in answer.json["choices"]] == expected


def test_beam_search_by_its_extension(real: Running) -> None:
    opened = real.engines["pangu"].model
    settings = Settings(max_new_tokens=5, num_beams=3, do_sample=False, length_penalty=0.5)
    [expected] = generate(opened, [opened.family.context(Text("今天"), 99)], settings)
    answer = real.post(
        "/v1/completions",
        model="pangu", prompt="今天", max_tokens=5, use_beam_search=True, num_beams=3, length_penalty=0.5,
    )  # fmt: skip
    assert answer.json["choices"][0]["text"] == opened.family.decode(expected.ids)


def test_settings_reach_the_engine(scripted: Running) -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "seed": 5, "repetition_penalty": 1.5,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"9": -100, "8": 3}, "min_tokens": 2,
        "no_repeat_ngram_size": 3, "max_tokens": 7,
    }  # fmt: skip
    scripted.chat(**fields)
    _, settings, place = scripted.engines["model"].calls[-1]
    assert settings == Settings(
        max_new_tokens=7, min_new_tokens=2, temperature=0.5, top_p=0.9, min_p=0.1, seed=5, repetition_penalty=1.5,
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=((8, 3.0), (9, -100.0)), no_repeat_ngram_size=3,
    )  # fmt: skip
    assert place == Place(0)
    for greedy in ({"temperature": 0}, {"temperature": 1e-9}, {"top_p": 0, "temperature": 1}):
        scripted.chat(**greedy)
        assert not scripted.engines["model"].calls[-1][1].do_sample
    scripted.chat(ignore_eos=True, max_tokens=9)
    assert scripted.engines["model"].calls[-1][1].min_new_tokens == 9


def test_models_are_listed(real: Running) -> None:
    for path in ("/v1/models", "/v1//models", "/v1/models/"):
        listed = real.get(path).json
        assert listed["object"] == "list" and [card["id"] for card in listed["data"]] == ["eva", "pangu"]
    card = real.get("/v1/models/pangu").json
    assert card["object"] == "model" and card["max_model_len"] == 256 and isinstance(card["created"], int)
    missing = real.get("/v1/models/gpt-4")
    assert missing.status == 404 and missing.error["code"] == "model_not_found"


def test_a_request_names_its_model(real: Running) -> None:
    unknown = real.chat(model="gpt-4")
    assert unknown.status == 404 and unknown.error["code"] == "model_not_found"
    none = real.chat()
    assert none.status == 400 and none.error["param"] == "model" and "eva, pangu" in none.error["message"]


def test_tokens_and_texts(real: Running) -> None:
    family = real.engines["pangu"].model.family
    plain = real.post("/tokenize", model="pangu", prompt="今天", add_special_tokens=False, return_token_strs=True).json
    assert plain["tokens"] == family.encode("今天") and plain["count"] == len(plain["token_strs"])
    assert plain["max_model_len"] == 256
    assert real.post("/detokenize", model="pangu", tokens=plain["tokens"]).json == {"prompt": "今天"}
    template = real.post("/apply-template", model="pangu", messages=[{"role": "user", "content": "今天"}]).json
    assert template["tokens"] == list(family.context(Dialogue(("今天",)), 99).ids)
    assert template["prompt"].startswith("<s>") and "今天" in template["prompt"]


@pytest.mark.parametrize("name", ["eva", "pangu"])
def test_what_lm_eval_asks_of_a_remote_tokenizer(real: Running, name: str) -> None:
    info = real.get(f"/tokenizer_info?model={name}").json
    ids = real.post("/tokenize", model=name, prompt=info["eos_token"], add_special_tokens=False).json["tokens"]
    assert ids == [real.engines[name].model.family.stop_ids[0]]
    assert isinstance(real.post("/tokenize", model=name, prompt="test", add_special_tokens=False).json["tokens"], list)


def test_the_state_of_the_server(real: Running) -> None:
    for path in ("/health", "/ping"):
        assert (real.get(path).status, real.get(path).body) == (200, b"")
    assert real.get("/version").json == {"version": hanmo.__version__}
    assert real.get("/load").json == {"server_load": 0}


def test_metrics_count_what_was_done(scripted: Running) -> None:
    names = (
        "prompt_tokens_total",
        "generation_tokens_total",
        "request_success_total",
        "time_to_first_token_seconds_count",
    )
    before = [scripted.gauge(name) for name in names]
    usage = scripted.chat(n=2).json["usage"]
    grown = [scripted.gauge(name) - value for name, value in zip(names, before, strict=True)]
    assert grown == [usage["prompt_tokens"], usage["completion_tokens"], 2, 1]
    page = scripted.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert scripted.gauge("num_requests_running") == scripted.gauge("num_requests_waiting") == 0


def test_scores_of_texts(real: Running) -> None:
    from hanmo.evaluation.engine.candidates import score_alone
    from hanmo.rows import Part

    before, answers = "今天天气", ["再见", "我很好"]
    for name in ("eva", "pangu"):
        family = real.engines[name].model.family
        ids = [[*family.encode(before), *([family.stop_id] if name == "eva" else [])] for _ in answers]
        rows = [[Part((*([family.tokenizer.bos_token_id] if name == "pangu" else []), *given), False)] for given in ids]
        for row, answer in zip(rows, answers, strict=True):
            said = (
                family.encode(answer) if name == "eva" else family.encode(before + answer)[len(family.encode(before)) :]
            )
            row.append(Part(tuple(said), True))
        expected = [-one.nll for one in score_alone(real.engines[name].model, rows)]
        for path, fields in (
            ("/score", {"text_1": before, "text_2": answers}),
            ("/v1/score", {"queries": [before] * 2, "documents": answers}),
        ):
            data = real.post(path, model=name, **fields).json["data"]
            assert [one["index"] for one in data] == [0, 1]
            assert [one["score"] for one in data] == pytest.approx(expected, abs=1e-4)


def test_scores_of_a_reward_model(tmp_path: Path) -> None:
    from hanmo.nn.row_model import attach_value_head
    from hanmo.records import PromptResponse
    from hanmo.training.rl.rewards import score_records

    opened = tiny("pangu", tmp_path)
    attach_value_head(opened.network, "linear")
    expected = score_records(
        opened, [PromptResponse("今天天气怎么样？", text) for text in ("很好", "明天去哪里玩")], 200
    )
    with running({"reward": opened}) as server:
        answer = server.post("/score", text_1="今天天气怎么样？", text_2=["很好", "明天去哪里玩"])
        assert [one["score"] for one in answer.json["data"]] == pytest.approx(expected, abs=1e-5)
        for wrong in (
            {"text_1": "今天"},
            {"text_1": ["a", "b"], "text_2": ["a"] * 3},
            {"text_1": "今天" * 999, "text_2": "好"},
            {},
        ):
            assert server.post("/score", **wrong).status == 400


def test_requests_keep_their_id_and_connection(scripted: Running) -> None:
    assert scripted.request("GET", "/version", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = scripted.request("GET", "/version", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    assert made != "a b" and len(made) == 32
    connection = http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=30)
    for _ in range(3):
        connection.request("POST", "/tokenize", json.dumps({"prompt": "你好"}))
        response = connection.getresponse()
        assert response.status == 200 and response.read() and not response.will_close
    connection.close()


def test_embeddings_and_others_are_refused_in_the_form_of_errors(scripted: Running) -> None:
    for method, path, status in (
        ("POST", "/v1/embeddings", 404), ("POST", "/v1/responses", 404), ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405), ("GET", "/../etc/passwd", 404), ("GET", "/v1/models/..%2f..%2fetc", 404),
    ):  # fmt: skip
        answer = scripted.request(method, path, base64.b64encode(b"x"))
        assert answer.status == status and answer.error["type"] == "invalid_request_error"


@pytest.fixture(scope="module")
def chatted() -> Iterator[Running]:
    """A model for each kind of chat template, in one process."""
    models = {name: chatting(case.template) for name, case in CASES.items() if not case.arguments}
    models["tools"] = chatting(TOOLS)
    with running(models) as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_messages_become_what_the_chat_template_makes_of_them(chatted: Running, name: str) -> None:
    """Golden texts of five kinds of templates; reasoning of earlier turns is dropped, arguments are heard."""
    case, model = CASES[name], name.split()[0]
    roles = zip(("user", "assistant", "user"), TALK, strict=True)
    messages = [{"role": role, "content": text} for role, text in roles]
    if case.system:
        messages.insert(0, {"role": "system", "content": case.system})
    fields = {"model": model, "messages": messages, "chat_template_kwargs": case.arguments or None}
    found = chatted.post("/apply-template", **fields).json
    tokenizer = chatting(case.template).tokenizer
    assert found["tokens"] == tokenizer.encode(case.prompt, add_special_tokens=False)
    answer = chatted.post("/v1/chat/completions", max_tokens=2, **fields)
    assert answer.status == 200 and answer.json["usage"]["prompt_tokens"] == len(found["tokens"])


def test_an_argument_that_the_template_does_not_use_is_refused(chatted: Running) -> None:
    refused = chatted.chat(model="qwen3", chat_template_kwargs={"enable_thought": False})
    assert refused.status == 400 and refused.error["param"] == "chat_template_kwargs"
    assert "enable_thinking" in refused.error["message"]


@pytest.mark.parametrize("prompt", [[3, 10**6], [[3], [4, -1]], [[3, "好"]], [2.5]])
def test_an_id_that_the_model_has_not_is_named(real: Running, prompt: Any) -> None:
    error = real.post("/v1/completions", model="pangu", prompt=prompt).error
    assert error["param"] == "prompt"
    assert any(
        f"prompt holds {shown}; token ids are between 0 and" in error["message"]
        for shown in ("1000000", "-1", "a string", "2.5")
    )


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
ASKED = {"role": "user", "content": "北京天气如何"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "北京", "days": 2}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": '{"晴": 25}'}


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([ASKED], [WEATHER]),
        ([{"role": "system", "content": "系统"}, ASKED, CALLING, RESULT], [WEATHER]),
        ([ASKED, CALLING, RESULT], None),
        ([ASKED, CALLING, RESULT, {"role": "assistant", "content": "晴"}, {"role": "user", "content": "谢谢"}], []),
    ],
    ids=["tools", "a result", "a result alone", "later"],
)
def test_tool_turns_reach_the_template_as_plain_transformers_gives_them(
    chatted: Running, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    plain = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        plain.append({**message, "content": message["content"] or "", **({"tool_calls": calls} if calls else {})})
    tokenizer = chatting(TOOLS).tokenizer
    text = tokenizer.apply_chat_template(plain, tools=tools, tokenize=False, add_generation_prompt=True)
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert "北京" in text
    fields = {"model": "tools", "messages": messages, "tools": tools, "tool_choice": "auto" if tools else None}
    assert chatted.post("/apply-template", **fields).json["tokens"] == expected
    assert chatted.post("/tokenize", **fields).json["tokens"] == expected
    answer = chatted.post("/v1/chat/completions", max_tokens=2, return_token_ids=True, **fields)
    assert answer.status == 200 and answer.json["choices"][0]["prompt_token_ids"] == expected


def test_tools_that_must_not_be_called_are_not_shown(chatted: Running) -> None:
    plain, kept = (
        chatted.post("/tokenize", model="tools", messages=[ASKED], **more).json["tokens"]
        for more in ({}, {"tools": [WEATHER], "tool_choice": "none"})
    )
    assert plain == kept


_DEEP: Any = {}
for _ in range(40):
    _DEEP = {"a": _DEEP}


def calling(arguments: Any) -> dict[str, Any]:
    return {
        **CALLING,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "chatml", "messages": [ASKED], "tools": [WEATHER]}, "writes nothing of tools"),
        (
            {"model": "chatml", "messages": [ASKED, CALLING, RESULT]},
            "writes nothing of calls of tools and their results",
        ),
        ({"messages": [ASKED], "tools": [WEATHER], "tool_choice": "required"}, "tool_choice is not supported"),
        ({"messages": [ASKED], "tools": [{"type": "function"}]}, 'tools[0] must be {"type": "function"'),
        ({"messages": [ASKED], "tools": [WEATHER] * 129}, "at most 128 tools"),
        ({"messages": [ASKED], "tools": [{**WEATHER, "more": _DEEP}]}, "nested too deeply"),
        ({"messages": [ASKED, calling("{")]}, "messages[1].tool_calls[0].function.arguments is not valid JSON"),
        ({"messages": [ASKED, calling("[1]")]}, "must be a JSON object"),
        ({"messages": [ASKED, calling([])]}, "must be a JSON object"),
        (
            {"messages": [ASKED, {**CALLING, "tool_calls": [{**CALLING["tool_calls"][0], "id": _DEEP}]}]},
            "tool_calls[0] must be",
        ),
        ({"messages": [ASKED, calling(json.dumps(_DEEP))]}, "nested too deeply"),
        ({"messages": [{**ASKED, "tool_calls": CALLING["tool_calls"]}]}, "only the assistant calls tools"),
        ({"messages": [ASKED, CALLING]}, "neither the user's nor a tool's"),
        ({"messages": [ASKED, CALLING, {**RESULT, "content": None}]}, "messages[2].content must be a string"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_tools_that_cannot_be_followed_are_refused_by_name(chatted: Running, fields: dict[str, Any], said: str) -> None:
    refused = chatted.post("/v1/chat/completions", **{"model": "tools", **fields})
    assert refused.status == 400 and said in refused.error["message"]
    assert refused.error["param"] in fields


def test_a_family_without_a_template_refuses_tools(real: Running) -> None:
    refused = real.post("/v1/chat/completions", model="pangu", messages=[ASKED], tools=[WEATHER])
    assert (
        refused.status == 400 and refused.error["param"] == "tools" and "no chat template" in refused.error["message"]
    )
