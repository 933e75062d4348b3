"""A step in slots is one graph, whoever joins and leaves; ``test_generation_engine`` compares the replies."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from hanmo.errors import ConfigError, NotANumberError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.engine import Engine
from hanmo.generation.settings import Settings
from hanmo.generation.slots import Slots, Step
from hanmo.nn.row_model import evaluating
from hanmo.records import Dialogue
from tests.unit.tiny import NAMES, tiny

TEXTS = ["你好", "今天天气真不错，去哪里玩", "火锅", "谢谢你再见啊你好吗我很好", "好吗"]
SAMPLED = Settings(max_new_tokens=20, min_new_tokens=20, temperature=1.3)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return tiny(request.param, tmp_path_factory.mktemp(request.param))


def again(step: Step) -> Step:
    return step


def test_two_hundred_steps_are_one_graph_without_breaks(model: OpenedModel) -> None:
    """With eight rows, of which some leave and others join all the time, sampled, greedy and by beams."""
    torch._dynamo.reset()
    counter = CompileCounter()

    def compiled(step: Step) -> Step:
        return torch.compile(step, backend=counter, fullgraph=True)

    ways = [
        SAMPLED,
        SAMPLED.change(do_sample=False),
        SAMPLED.change(num_beams=2, do_sample=False, max_new_tokens=9, min_new_tokens=1),
    ]
    engine, groups, steps = Engine(model, most_rows=8, record=compiled), list[Any](), 0
    with evaluating(model.network), patch.object(Slots, "step", autospec=True, side_effect=Slots.step) as taken:
        for number in range(8):  # so many rows from the first step on
            engine.add([model.family.context(Dialogue((TEXTS[number % 5],)), 64)], SAMPLED.change(seed=number))
        while steps < 200:
            engine.step()
            steps += 1
            while steps < 180 and sum(group.width for group in engine.running if not group.done) < 7:
                how = ways[len(groups) % 3].change(seed=len(groups))
                groups.append((engine.add([model.family.context(Dialogue((TEXTS[len(groups) % 5],)), 64)], how), how))
                engine._admit()
            if engine.idle:
                break
        shapes = {call.args[0]._ids_R1.shape for call in taken.call_args_list}
    assert counter.frame_count == len(shapes) <= 2, shapes  # as the first ones join, and from then on
    assert len(groups) > 20
    for number, (group, how) in enumerate(groups):
        [expected] = generate(model, [model.family.context(Dialogue((TEXTS[number % 5],)), 64)], how)
        if group.done:
            assert group.results()[0].ids == expected.ids


def test_a_reply_that_outgrows_its_columns_goes_on(model: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.generation.slots.COLUMNS", 16)
    how = SAMPLED.change(max_new_tokens=60, min_new_tokens=60, seed=1)
    contexts = [model.family.context(Dialogue((text,)), 64) for text in TEXTS]
    engine = Engine(model, record=again)
    groups = [engine.add([context], how) for context in contexts]
    with evaluating(model.network):
        while not engine.idle:
            engine.step()
    assert [group.results()[0].ids for group in groups] == [generate(model, [one], how)[0].ids for one in contexts]


def test_a_position_that_the_model_has_not_is_refused_before_it_is_fed(tmp_path: Path) -> None:
    model = tiny("pangu", tmp_path)
    positions = model.network.config.max_position_embeddings
    engine = Engine(model, record=again)
    engine.add(
        [model.family.context(Dialogue(("你好",)), 64)],
        SAMPLED.change(max_new_tokens=positions, min_new_tokens=positions, seed=1),
    )
    with evaluating(model.network), pytest.raises(UnsupportedError, match="positions"):
        while not engine.idle:
            engine.step()


@pytest.mark.parametrize("record", [None, again], ids=["growing", "in slots"])
def test_numbers_that_are_not_finite_do_not_outlive_their_reply(model: OpenedModel, record: Any) -> None:
    """What a row held before is masked, but 0 x NaN is NaN."""
    how = SAMPLED.change(max_new_tokens=40, min_new_tokens=40)
    engine = Engine(model, record=record)
    contexts = [model.family.context(Dialogue((text,)), 64) for text in (TEXTS[1], TEXTS[3], TEXTS[0])]
    going, broken = (engine.add([context], how.change(seed=seed)) for seed, context in enumerate(contexts[:2]))
    with evaluating(model.network):
        for _ in range(4):
            engine.step()
        [batch] = engine._batches
        batch._loosen()
        for keys in _kept(batch._state):
            keys[batch.groups[broken]] = torch.nan
        while not broken.done:
            engine.step()
        assert isinstance(broken.error, NotANumberError)
        later = engine.add([contexts[2]], how.change(seed=2))
        while not engine.idle:
            engine.step()
    for group, context, seed in ((going, contexts[0], 0), (later, contexts[2], 2)):
        assert group.error is None
        assert group.results()[0].ids == generate(model, [context], how.change(seed=seed))[0].ids


def _kept(state: Any) -> list[torch.Tensor]:
    if hasattr(state, "cache"):
        return [layer.keys for layer in state.cache.layers] + [layer.values for layer in state.cache.layers]
    return [*state.keys, *state.values]


def test_the_position_keys_of_a_recorded_step_stay(tmp_path: Path) -> None:
    model = tiny("transformer_xl", tmp_path)
    context = model.family.context(Dialogue((TEXTS[1],)), 64)
    prompt = model.family.prompt(context.ids)
    ids_11, positions_111 = torch.tensor([[5]]), torch.tensor([[[len(context.ids)]]])
    with evaluating(model.network), torch.no_grad():
        _, state = model.network.prefill(**{name: value[None] for name, value in prompt.inputs.items()})
        kept = state.take(torch.tensor([0]))
        slot = state.fixed(64)
        model.network.step(ids_11, positions_111, slot)
        before = slot.position_keys[0]
        for step in range(100):
            model.network.step(ids_11, positions_111 + step, kept)
    assert slot.position_keys[0] is before and kept.position_keys[0] is not before


def test_rows_of_equal_bits_are_not_put_into_slots(model: OpenedModel) -> None:
    with pytest.raises(ConfigError, match="rows and record"):
        Engine(model, rows=2, record=again)


def test_the_budget_counts_what_slots_take(tmp_path: Path) -> None:
    """Three rows of 30 tokens are four rows of 256 columns."""
    engine = Engine(tiny("pangu", tmp_path), record=again)
    engine._column_bytes = 10
    assert engine._bytes_of(3, 30) == 4 * 256 * 10
    engine._record = None
    assert engine._bytes_of(3, 30) == 3 * 30 * 10
