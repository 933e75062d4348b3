"""The real clients against ``hanmo serve``: openai, langchain-openai and lm-eval. They are in the extra [conformance]."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue
from tests.served import KEY, Process, serving
from tests.unit.tiny import tiny

pytestmark = pytest.mark.slow
openai = pytest.importorskip("openai", reason="the clients are not installed: pip install 'hanmo[conformance]'")
TALK: Any = [{"role": "user", "content": "你好"}]
DECODERS = ("pangu", "transformer_xl", "huggingface")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return tiny("pangu", tmp_path_factory.mktemp("pangu"))


@pytest.fixture(scope="module")
def server(opened: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serving(opened, tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def client(server: Process) -> Any:
    return openai.OpenAI(base_url=server.url, api_key=KEY, timeout=120)


def expected(opened: OpenedModel, text: str, **changes: Any) -> str:
    """The reply of the model without a server."""
    context = opened.family.context(Dialogue((text,)), 250)
    [reply] = generate(opened, [context], Settings(**changes))
    return opened.family.decode(reply.ids)


def test_openai_lists_and_chats(client: Any, opened: OpenedModel) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    answer = client.chat.completions.create(model="tiny", messages=TALK, seed=5, max_tokens=12, temperature=1.3)
    assert answer.choices[0].message.content == expected(opened, "你好", seed=5, max_new_tokens=12, temperature=1.3)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    greedy = client.chat.completions.create(model="tiny", messages=TALK, temperature=0, max_completion_tokens=9)
    assert greedy.choices[0].message.content == expected(opened, "你好", do_sample=False, max_new_tokens=9)


def test_openai_streams_what_it_answers(client: Any) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": TALK, "seed": 6, "max_tokens": 20, "n": 2}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage and all(chunk.usage is None for chunk in chunks[:-1])
    for index in range(2):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == whole.choices[index].message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [whole.choices[index].finish_reason]


def test_openai_reads_log_probabilities(client: Any) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=TALK, seed=1, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = chat.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 and token.bytes is not None for token in content)
    echoed = client.completions.create(model="tiny", prompt="今天天气", max_tokens=1, logprobs=1, echo=True, seed=1)
    found = echoed.choices[0].logprobs
    assert found.token_logprobs[0] is None and echoed.choices[0].text.startswith("今天天气")
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(found.top_logprobs)


def test_openai_raises_its_own_errors(client: Any, server: Process) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=TALK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=TALK, temperature=1000)
    assert wrong.value.param == "temperature" and "temperature" in wrong.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[7] * 300)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url, api_key="guess").models.list()


def test_openai_asks_many_things_at_once(server: Process, opened: OpenedModel) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, timeout=120) as client:
            fields: dict[str, Any] = {"model": "tiny", "messages": TALK, "max_tokens": 15}
            answers = await asyncio.gather(*(client.chat.completions.create(**fields, seed=n) for n in range(16)))
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [expected(opened, "你好", seed=seed, max_new_tokens=15) for seed in range(16)]


def test_openai_comes_back_when_the_queue_is_full(opened: OpenedModel, tmp_path: Path) -> None:
    async def ask(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, timeout=120, max_retries=20) as client:
            fields: dict[str, Any] = {
                "model": "tiny",
                "messages": TALK,
                "max_tokens": 100,
                "extra_body": {"ignore_eos": True},
            }
            answers = await asyncio.gather(*(client.chat.completions.create(**fields, seed=n) for n in range(6)))
        return [answer.choices[0].finish_reason for answer in answers]

    with serving(opened, tmp_path, "--queue", "1", "--most-rows", "1") as process:
        assert asyncio.run(ask(process.url)) == ["length"] * 6


def test_langchain_chats_and_completes(server: Process, opened: OpenedModel) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install 'hanmo[conformance]'")
    about: dict[str, Any] = {"base_url": server.url, "api_key": KEY, "model": "tiny", "seed": 3}
    chat = langchain.ChatOpenAI(**about, max_tokens=9, temperature=1.0, stream_usage=True)
    said = expected(opened, "你好", seed=3, max_new_tokens=9)
    answer = chat.invoke("你好")
    assert answer.content == said and answer.usage_metadata["output_tokens"] > 0
    parts = list(chat.stream("你好"))
    assert "".join(part.content for part in parts) == said
    assert langchain.OpenAI(**about, max_tokens=9).invoke("你好")


@pytest.mark.parametrize("name", DECODERS)
def test_lm_eval_scores_as_the_model_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty items by the remote tokenizer: every log-likelihood is that of the model's own logits, to 1e-5."""
    lm_eval = pytest.importorskip("lm_eval", reason="pip install 'hanmo[conformance]'")
    draws = random.Random(0)
    letters = "你好吗我很今天气真不错明去哪里玩火锅怎么样谢再见啊"
    words = ["".join(draws.choices(letters, k=draws.randint(2, 8))) for _ in range(60)]
    items = [{"q": words[3 * n], "choices": [words[3 * n + 1], words[3 * n + 2]], "gold": n % 2} for n in range(20)]
    (tmp_path / "items.jsonl").write_text(
        "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8"
    )
    task = {
        "task": "twenty", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = tiny(name, tmp_path / "vocab")
    with serving(model, tmp_path) as process:
        base = process.url.removesuffix("/v1")
        found = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "tiny", "base_url": f"{base}/v1/completions", "tokenizer_backend": "remote", "max_length": 200,
                "num_concurrent": 1, "auth_token": KEY,
            },
            tasks=[task], log_samples=True, bootstrap_iters=0,
        )  # fmt: skip
    opened = open_model(tmp_path / "tiny", dtype="fp32", device="cpu")
    for sample in found["samples"]["twenty"]:
        for choice, (loglikelihood, is_greedy) in zip(sample["doc"]["choices"], sample["filtered_resps"], strict=True):
            given, greedy = scored(opened, sample["doc"]["q"], choice)
            assert float(loglikelihood) == pytest.approx(given, abs=1e-5 * max(1, abs(given)))
            assert bool(is_greedy) is greedy


def scored(opened: OpenedModel, context: str, choice: str) -> tuple[float, bool]:
    """log p(choice | context) from the logits of the whole text, and whether every token of the choice is the likeliest."""
    given = opened.family.encode(context)
    start = len(given)
    ids = [*given, *opened.family.encode(context + choice)[start:]]  # what lm-eval sends
    with torch.no_grad():
        logits = opened.network(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        ).logits
    logprobs = logits[0, start - 1 : -1].log_softmax(-1)
    answer = torch.tensor(ids[start:])
    return float(logprobs.gather(1, answer[:, None]).sum()), bool((logprobs.argmax(-1) == answer).all())
