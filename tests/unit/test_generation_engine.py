"""Replies that join and leave between steps: each is what it is alone, whatever the company, the order and the cancellations."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
import torch

from hanmo.errors import ConfigError, NotANumberError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.generation.batch import Batch
from hanmo.generation.beam import Generation
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place
from hanmo.generation.engine import Engine, Group
from hanmo.generation.settings import Settings
from hanmo.generation.slots import Record, Step
from hanmo.nn.row_model import evaluating
from hanmo.records import Dialogue, Text
from hanmo.rows import Context, common_length
from tests.unit.tiny import NAMES, tiny

TEXTS = [
    "你好",
    "今天天气真不错明天去哪里玩",
    "谢谢",
    "火锅怎么样",
    "再见我很好",
    "明天",
    "好吗你好吗我很好",
    "啊",
    "天气真不错",
    "去哪里",
]
SAMPLED = Settings(max_new_tokens=14, temperature=1.3)
WAYS = [
    SAMPLED,
    SAMPLED.change(top_k=9, top_p=0.9, min_p=0.02),
    SAMPLED.change(repetition_penalty=1.3, no_repeat_ngram_size=3, min_new_tokens=4),
    SAMPLED.change(do_sample=False),
    SAMPLED.change(num_beams=3, do_sample=False, max_new_tokens=9),
    SAMPLED.change(presence_penalty=1.0, frequency_penalty=0.5, logit_bias=((7, 2.0), (9, -100.0)), max_new_tokens=25),
]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return tiny(request.param, tmp_path_factory.mktemp(request.param))


def context(model: OpenedModel, text: str) -> Context:
    return model.family.context(Dialogue((text,)), 64)


def long_context(model: OpenedModel, text: str, limit: int) -> Context:
    return model.family.context(Dialogue((text,)) if model.family.name == "eva" else Text(text), limit)


def again(step: Step) -> Step:
    """In place of a recorded graph: the step itself."""
    return step


def run(engine: Engine, before: Callable[[int], None] = lambda step: None) -> None:
    with evaluating(engine.model.network):
        for step in range(10_000):
            before(step)
            if engine.idle:
                return
            engine.step()


def asked(model: OpenedModel, count: int) -> list[tuple[Context, Settings, Place]]:
    random = Random(3)
    texts = [random.choice(TEXTS) for _ in range(count)]
    return [
        (context(model, text), WAYS[number % len(WAYS)].change(seed=number), Place(0, number % 3))
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("record", [None, again], ids=["growing", "in slots"])
def test_a_reply_is_the_same_whoever_joins_and_leaves(record: Record | None, model: OpenedModel) -> None:
    requests = asked(model, 24)
    alone = [generate(model, [one], settings, places=[place])[0] for one, settings, place in requests]
    engine, random = Engine(model, most_rows=7, record=record), Random(5)
    waiting, groups, together = list(enumerate(requests)), dict[int, Group](), list[int]()
    random.shuffle(waiting)

    def before(step: int) -> None:
        together.append(max((batch.live for batch in engine._batches), default=0))
        for _ in range(random.choice((0, 1, 3)) if waiting else 0):
            if waiting:
                number, (one, settings, place) = waiting.pop()
                groups[number] = engine.add([one], settings, [place])
        if step % 5 == 4:  # one that nobody waits for any more
            engine.cancel(engine.add([requests[0][0]], SAMPLED.change(seed=step)))
        elif step % 7 == 3 and not waiting:
            lost = engine.add([requests[1][0]], SAMPLED.change(seed=step, max_new_tokens=30))
            cancelled.append((step + 3, lost))
        for when, lost in cancelled:
            if when == step:
                engine.cancel(lost)

    cancelled: list[tuple[int, Group]] = []
    engine.add([requests[0][0]], SAMPLED.change(seed=99))
    run(engine, before)
    assert max(together) >= 6  # rows of one state
    for number, expected in enumerate(alone):
        [found] = groups[number].results()
        assert groups[number].error is None
        assert (found.ids, found.finished) == (expected.ids, expected.finished), requests[number]
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert found.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_with_fixed_rows_the_bits_are_the_same_in_any_company(dtype: torch.dtype, model: OpenedModel) -> None:
    requests = asked(model, 12)
    model.network.to(dtype)
    try:
        alone = [generate(model, [one], settings, places=[place], rows=4)[0] for one, settings, place in requests]
        engine, groups = Engine(model, rows=4), dict[int, Group]()

        def before(step: int) -> None:
            if step % 2 == 0 and step // 2 < len(requests):
                one, settings, place = requests[-1 - step // 2]
                groups[len(requests) - 1 - step // 2] = engine.add([one], settings, [place])

        engine.add([requests[0][0]], SAMPLED.change(seed=99))
        run(engine, before)
    finally:
        model.network.to(torch.float32)
    found = [groups[number].results()[0] for number in range(len(requests))]
    assert [(one.ids, one.logprobs, one.score) for one in found] == [
        (one.ids, one.logprobs, one.score) for one in alone
    ]


def test_fixed_rows_change_no_reply(model: OpenedModel) -> None:
    """``--rows`` costs time, not another reply, wherever the tokens are not within rounding of each other."""
    asked = [context(model, text) for text in TEXTS]
    for settings in (SAMPLED.change(seed=1), SAMPLED.change(num_beams=2, do_sample=False)):
        fixed, plain = (generate(model, asked, settings, rows=rows) for rows in (3, None))
        assert [one.ids for one in fixed] == [one.ids for one in plain]


def test_a_prompt_of_many_replies_is_read_once(model: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    prefill = model.network.prefill
    monkeypatch.setattr(
        model.network, "prefill", lambda **inputs: read.append(inputs["input_ids"].shape[0]) or prefill(**inputs)
    )
    settings, one = SAMPLED.change(seed=4), context(model, TEXTS[1])
    together = generate(model, [one] * 4, settings, places=[Place(0, choice) for choice in range(4)])
    assert read == [1]
    alone = [generate(model, [one], settings, places=[Place(0, choice)])[0] for choice in range(4)]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]
    assert len({reply.ids for reply in together}) > 1


LONG = "今天天气真不错明天去哪里玩火锅怎么样谢谢再见啊你好吗我很好" * 6  # several pieces


@pytest.mark.parametrize("rows", [None, 4], ids=["plain", "fixed rows"])
def test_a_beginning_that_was_read_before_changes_no_reply(
    rows: int | None, model: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fixed rows the ids, with them the bits; families that read a prompt as a whole read it again."""
    monkeypatch.setattr("hanmo.generation.reading.PIECE", 48)
    texts = [LONG[:150], LONG[:150] + "谢谢", LONG[:100] + "好" + LONG[100:160], LONG[:150], "你好"]
    asked = [long_context(model, text, 250) for text in texts]
    cold = [generate(model, [one], SAMPLED.change(seed=number), rows=rows)[0] for number, one in enumerate(asked)]
    engine = Engine(model, rows=rows, cache_bytes=1 << 30)
    found, reused = [], []
    for number, one in enumerate(asked):
        group = engine.add([one], SAMPLED.change(seed=number))
        run(engine)
        found += group.results()
        reused.append(group.reused)
    if rows is None:
        assert [one.ids for one in found] == [one.ids for one in cold]
    else:
        assert [(one.ids, one.logprobs) for one in found] == [(one.ids, one.logprobs) for one in cold]
    if model.family.name in ("eva", "glm"):
        assert reused == [0] * 5
    else:
        whole, shared = len(asked[0].ids), [0, *(common_length(asked[0].ids, one.ids) for one in asked[1:3])]
        assert reused[0] == reused[4] == 0 and reused[3] >= (whole - 1) // 64 * 64
        assert all(shared[number] - 64 < reused[number] <= shared[number] for number in (1, 2))
        if rows is not None:
            assert all(one % 64 == 0 for one in reused)


def test_beginnings_stay_within_their_memory(model: OpenedModel) -> None:
    asked = [long_context(model, TEXTS[number % 10] + LONG[number : number + 40], 64) for number in range(8)]
    if model.family.name in ("eva", "glm"):
        pytest.skip("this family reads a prompt as a whole")
    with evaluating(model.network):
        _, state = model.network.prefill(**model.family.stack_prompts([model.family.prompt(asked[0].ids)]))
    most = 3 * 66 * state.column_bytes
    engine = Engine(model, cache_bytes=most)
    assert engine.beginnings is not None
    for one in asked:
        engine.add([one], SAMPLED.change(seed=1, max_new_tokens=2))
        run(engine)
        assert 0 < engine.beginnings.bytes <= most


def test_replies_wait_for_memory_and_one_that_needs_more_than_there_is_is_refused(model: OpenedModel) -> None:
    one = context(model, TEXTS[1])
    with evaluating(model.network):
        _, state = model.network.prefill(**model.family.stack_prompts([model.family.prompt(one.ids)]))
    # every row of a batch has the columns of the longest, in blocks of 64
    engine = Engine(model, cache_bytes=2 * (len(one.ids) + 14 + 64) * state.column_bytes)
    groups = [engine.add([one], SAMPLED.change(seed=number)) for number in range(5)]
    lost = engine.add([one], SAMPLED.change(seed=1, max_new_tokens=300))
    together = list[int]()
    run(engine, lambda step: together.append(sum(batch.live for batch in engine._batches)))
    assert max(together) == 2
    assert all(group.error is None and group.replies[0].finish for group in groups)
    assert isinstance(lost.error, UnsupportedError) and "--cache-gb" in str(lost.error)


def test_a_long_prompt_is_read_between_the_steps_of_others(model: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.generation.reading.PIECE", 32)
    engine = Engine(model)
    short = engine.add(
        [context(model, TEXTS[0])],
        SAMPLED.change(seed=1, max_new_tokens=60, logit_bias=tuple((one, -100.0) for one in model.family.stop_ids)),
    )
    with evaluating(model.network):
        engine.step()
        long = engine.add([long_context(model, LONG, 200)], SAMPLED.change(seed=2))
        before = len(short.replies[0].ids)
        while not long.started:
            engine.step()
        waited = len(short.replies[0].ids) - before
        while not engine.idle:
            engine.step()
    assert waited == (1 if model.family.name in ("eva", "glm") else -(-len(long.contexts[0].ids) // 32))
    expected = generate(model, long.contexts, SAMPLED.change(seed=2))
    assert [reply.ids for reply in long.replies] == [list(one.ids) for one in expected]


def test_many_prompts_at_once_are_not_all_read_before_the_first_token(
    model: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanmo.generation.reading.PIECE", 20)
    engine = Engine(model)
    groups = [
        engine.add([context(model, LONG[number : number + 12])], SAMPLED.change(seed=number)) for number in range(8)
    ]
    lengths = [len(group.contexts[0].ids) for group in groups]
    with evaluating(model.network):
        engine.step()
        assert groups[0].replies[0].logprobs and not groups[-1].started
        while not groups[-1].started:
            before = [group.started for group in groups]
            engine.step()
            read = sum(n for n, group, was in zip(lengths, groups, before, strict=True) if group.started and not was)
            assert read < 20 + max(lengths)


def test_a_short_prompt_does_not_wait_for_a_long_one(model: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.generation.reading.PIECE", 4)
    engine = Engine(model)
    engine.add([context(model, TEXTS[0])], SAMPLED.change(max_new_tokens=64, min_new_tokens=64))
    with evaluating(model.network):
        engine.step()
        long = engine.add([long_context(model, LONG, 160)], SAMPLED)
        short = engine.add([context(model, TEXTS[1])], SAMPLED.change(seed=1))
        engine.step()
        as_a_whole = long.started  # by families whose prompts are not read in pieces
        while not short.started:
            engine.step()
        assert as_a_whole or not long.started


def test_replies_that_join_together_copy_the_state_once(model: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, widened, plain = Engine(model), list[tuple[int, int]](), Batch.widen

    def widen(batch: Batch, rows: int) -> None:
        if rows > len(batch._used):
            widened.append((len(batch._used), rows))
        plain(batch, rows)

    monkeypatch.setattr(Batch, "widen", widen)
    settings = SAMPLED.change(min_new_tokens=14)
    engine.add([context(model, TEXTS[0])], settings.change(seed=9))
    with evaluating(model.network):
        engine.step()
        groups = [engine.add([context(model, TEXTS[1])], settings.change(seed=seed)) for seed in range(6)]
        engine.step()
        engine.step()
    assert widened == [(1, 7)] and len(engine._batches) == 1
    run(engine)
    for seed, group in enumerate(groups):
        [expected] = generate(model, [context(model, TEXTS[1])], settings.change(seed=seed))
        assert group.results()[0].ids == expected.ids


def test_there_are_never_more_rows_than_asked_for(model: OpenedModel) -> None:
    engine, most = Engine(model, most_rows=4), list[int]()
    for number, text in enumerate(TEXTS):
        engine.add([context(model, text)], WAYS[number % 5].change(seed=number))
    run(engine, lambda step: most.append(sum(batch.live for batch in engine._batches)))
    assert 1 < max(most) <= 4


def test_a_group_that_fails_leaves_the_others_alone(model: OpenedModel) -> None:
    engine = Engine(model)
    good = engine.add([context(model, TEXTS[0])], SAMPLED.change(seed=1))
    bad = engine.add([context(model, TEXTS[1])], SAMPLED.change(seed=1, suppressed_ids=(10**6,)))
    biased = engine.add([context(model, TEXTS[1])], SAMPLED.change(seed=1, logit_bias=((10**6, 1.0),)))
    run(engine)
    assert good.error is None and good.replies[0].finish
    assert isinstance(bad.error, ConfigError) and "suppressed_ids=[1000000]" in str(bad.error)
    assert isinstance(biased.error, ConfigError) and "logit_bias=[1000000]" in str(biased.error)
    with torch.no_grad():
        sound = model.network.lm_head.weight.clone()
        model.network.lm_head.weight.fill_(float("nan"))
    broken = engine.add([context(model, TEXTS[0])], SAMPLED.change(seed=1))
    run(engine)
    with torch.no_grad():
        model.network.lm_head.weight.copy_(sound)
    assert isinstance(broken.error, NotANumberError)


def test_where_memory_runs_out_the_engine_goes_on(model: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, settings = Engine(model), SAMPLED.change(seed=1, do_sample=False)
    lost = [engine.add([context(model, text)], settings) for text in TEXTS[:2]]
    with evaluating(model.network), monkeypatch.context() as patch:
        engine.step()
        patch.setattr(model.network, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        assert set(engine.step()) == set(lost)
        assert all(isinstance(group.error, torch.OutOfMemoryError) and group.done for group in lost)
        patch.setattr(model.network, "prefill", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        unread = engine.add([context(model, TEXTS[2])], settings)
        assert engine.step() == [unread] and isinstance(unread.error, torch.OutOfMemoryError)
    found = engine.add([context(model, TEXTS[0])], settings)
    run(engine)
    [expected] = generate(model, [context(model, TEXTS[0])], settings)
    assert (found.error, tuple(found.replies[0].ids)) == (None, expected.ids)
    if expected.finished:
        assert found.replies[0].stop in model.family.stop_ids


def test_rows_that_cannot_hold_a_prompts_replies_are_refused(model: OpenedModel) -> None:
    engine = Engine(model, rows=2)
    with pytest.raises(ConfigError, match="3 rows for one prompt, but --rows 2"):
        engine.add([context(model, TEXTS[0])], SAMPLED.change(num_beams=3))
    with pytest.raises(ConfigError, match="published"):
        engine.add([context(model, TEXTS[0])], SAMPLED.change(published=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "record"), [(None, None), (None, again), (8, None)], ids=["plain", "slots", "fixed rows"]
)
def test_two_hundred_replies_are_what_they_are_alone(
    rows: int | None, record: Record | None, model: OpenedModel
) -> None:
    """At 1 to 64 at a time, in random order, while others are cancelled; with fixed rows the digests of the bits are equal."""
    requests, random = asked(model, 200), Random(7)
    alone = [generate(model, [one], settings, places=[place], rows=rows)[0] for one, settings, place in requests]
    engine, groups, live = Engine(model, most_rows=64, rows=rows, record=record), dict[int, Group](), list[int]()
    waiting, lost = list(enumerate(requests)), list[Group]()
    random.shuffle(waiting)

    def before(step: int) -> None:
        live.append(sum(batch.live for batch in engine._batches))
        wanted = (64, 1, 24, 40)[step // 40 % 4]
        while waiting and sum(not one.done for one in engine.running) + len(engine._waiting) < wanted:
            number, (one, settings, place) = waiting.pop()
            groups[number] = engine.add([one], settings, [place])
            if random.random() < 0.3:
                lost.append(engine.add([one], settings.change(seed=random.randrange(99), max_new_tokens=40), [place]))
        for group in list(lost):
            if random.random() < 0.2:
                engine.cancel(group)
                lost.remove(group)

    engine.add([requests[0][0]], SAMPLED.change(seed=99))
    run(engine, before)
    found = [groups[number].results()[0] for number in range(len(requests))]
    assert not any(group.error for group in groups.values())
    assert sorted(live)[len(live) // 2] >= 8 if rows is None else max(live) == rows
    if rows is None:
        assert [(one.ids, one.finished) for one in found] == [(one.ids, one.finished) for one in alone]
    else:
        assert [digest(one) for one in found] == [digest(one) for one in alone]


def digest(reply: Generation) -> str:
    return sha256(repr((reply.ids, [value.hex() for value in reply.logprobs])).encode()).hexdigest()


def test_what_never_fits_is_refused_at_once(model: OpenedModel) -> None:
    """Also the first request of all, whose size is known once its prompt was read; others neither wait nor lose what was read."""
    one = context(model, TEXTS[1])
    with evaluating(model.network):
        _, state = model.network.prefill(**model.family.stack_prompts([model.family.prompt(one.ids)]))
    room = 3 * (len(one.ids) + 14 + 64) * state.column_bytes
    first = Engine(model, cache_bytes=room)
    wide = first.add([one], SAMPLED.change(num_beams=50, max_new_tokens=200))
    run(first)
    assert isinstance(wide.error, UnsupportedError) and "MB" in str(wide.error)
    endless = tuple((id_, -100.0) for id_ in model.family.stop_ids)
    running = first.add([one], SAMPLED.change(seed=1, logit_bias=endless))
    with evaluating(model.network):
        first.step()
        kept = first.beginnings.bytes if first.beginnings else 0
        again = first.add([one], SAMPLED.change(num_beams=50, max_new_tokens=200))
        assert again in first.step() and not running.done
        assert first.beginnings is not None and first.beginnings.bytes >= kept


def test_memory_that_runs_out_while_rows_move_ends_their_batch_alone(
    model: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    beams = engine.add([context(model, TEXTS[1])], SAMPLED.change(num_beams=3, do_sample=False))
    with evaluating(model.network), monkeypatch.context() as patch:
        engine.step()
        patch.setattr(Batch, "_take", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        while not beams.done:
            assert engine.step() == [beams]
    assert isinstance(beams.error, torch.OutOfMemoryError)
    found = engine.add([context(model, TEXTS[0])], SAMPLED.change(seed=1))
    run(engine)
    assert found.error is None and found.replies[0].finish


def test_positions_of_a_row_that_has_ended_do_not_run_out(tmp_path: Path) -> None:
    """PanGu-α with 256 positions: 250 tokens and 6 new ones use them all; company goes on longer."""
    opened = tiny("pangu", tmp_path)
    ids = tuple(opened.family.encode(LONG * 3))[:250]
    full, short = Context(ids, ids), context(opened, TEXTS[0])
    for rows in (None, 2):
        engine = Engine(opened, rows=rows)
        groups = [
            engine.add([full], SAMPLED.change(seed=1, max_new_tokens=7)),
            engine.add([short], SAMPLED.change(seed=2, max_new_tokens=40)),
        ]
        run(engine)
        assert [group.error for group in groups] == [None, None]


def test_replies_to_one_prompt_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.generation.reading.PIECE", 32)
    opened = tiny("pangu", tmp_path)
    engine = Engine(opened, cache_bytes=1 << 30)
    asked = long_context(opened, LONG, 200)
    run_first = engine.add([context(opened, TEXTS[0])], SAMPLED.change(seed=1, max_new_tokens=1))
    run(engine)
    groups = [engine.add([asked], SAMPLED.change(seed=1), [Place(0, choice)]) for choice in range(4)]
    run(engine)
    assert run_first.done and groups[0].reused == 0
    assert all(group.reused == len(asked.ids) - 1 for group in groups[1:])
