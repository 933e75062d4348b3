"""The decode loop: against transformers' generate where no rule of ours is in play, and on hand-computed cases."""

from typing import Any

import pytest
import torch

from hanmo.families.decoding import TRANSFORMERS_4_31
from hanmo.generation.decode import generate
from hanmo.generation.engine import Engine
from hanmo.generation.group import make_group
from hanmo.generation.settings import Settings
from hanmo.nn.row_model import evaluating
from hanmo.rows import Context
from tests.searching import search, stream
from tests.unit.decoding_peers import GPT2_SIZE, GPT2_STOP, as_t5, eva, gpt2
from tests.unit.tiny import tiny

PROMPTS = [(3, 7, 2, 9), (5,), (11, 4), (8, 8, 1, 6, 2, 3, 13)]
PLAIN = Settings(do_sample=False, max_new_tokens=12)
SEARCHES = [
    {},
    {"num_beams": 2},
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True, "max_new_tokens": 5},
]
RULED = [
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"suppressed_ids": (3, 5)},
    {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "suppressed_ids": (7,)},
]


def contexts(prompts=PROMPTS) -> list[Context]:
    return [Context(ids, ids) for ids in prompts]


def theirs(model: Any, settings: Settings, prompts, pad: int, **inputs: Any) -> list[tuple[tuple[int, ...], float]]:
    """What transformers' generate says, up to the stop token, and its score (of beams)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens or None,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        bad_words_ids=[[token] for token in settings.suppressed_ids] or None,
        return_dict_in_generate=True,
        output_scores=True,
        **inputs,
    )
    start = 1 if model.config.is_encoder_decoder else width
    said = [row[start:].tolist() for row in output.sequences]
    stop = model.generation_config.eos_token_id
    said = [tuple(row[: row.index(stop)] if stop in row else row) for row in said]
    return list(
        zip(said, output.sequences_scores.tolist() if settings.num_beams > 1 else [0.0] * len(said), strict=True)
    )


@pytest.mark.parametrize("changes", SEARCHES + RULED, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_transformers_on_a_causal_model(seed, changes):
    opened = gpt2(seed, stop_bias=2.0)
    settings = PLAIN.change(**changes)
    said = generate(opened, contexts(), settings)
    # One prompt at a time: transformers' penalty would count the padding as said.
    expected = [theirs(opened.network.model, settings, [prompt], GPT2_STOP)[0] for prompt in PROMPTS]
    assert [one.ids for one in said] == [ids for ids, _ in expected]
    if settings.num_beams > 1:
        assert [one.score for one in said] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("changes", SEARCHES, ids=str)
def test_agrees_with_transformers_on_a_batch(changes):
    opened = gpt2(3, stop_bias=2.0)
    settings = PLAIN.change(**changes)
    expected = theirs(opened.network.model, settings, PROMPTS, GPT2_STOP)
    assert [one.ids for one in generate(opened, contexts(), settings)] == [ids for ids, _ in expected]


@pytest.mark.parametrize("changes", SEARCHES, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_transformers_on_eva(seed, changes, tmp_path):
    """EVA folded into T5; of EVA's rules only that <unk> is never said cannot be switched off."""
    opened = eva(seed, tmp_path)
    with torch.no_grad():  # so that some replies end before the limit
        opened.network.lm_head.weight[opened.tokenizer.sep_token_id] *= 2
    settings = PLAIN.change(**changes)
    prompts = [(18, 20, 4), (14, 4, 15, 16, 4), (24, 4)]
    full = [(*prompt, opened.tokenizer.bos_token_id) for prompt in prompts]
    expected = theirs(as_t5(opened, tmp_path / "t5"), settings, full, 5, suppress_tokens=[0])
    said = generate(opened, contexts(prompts), settings)
    assert [one.ids for one in said] == [ids for ids, _ in expected]


def test_these_models_stop_now_and_then():
    """Or the comparisons above would say nothing of finished replies."""
    for changes in SEARCHES:
        settings = PLAIN.change(**changes)
        said = [one for seed in range(3) for one in generate(gpt2(seed, stop_bias=2.0), contexts(), settings)]
        finished = sum(one.finished for one in said)
        assert 0 < finished < len(said), (changes, finished)


def test_batch_size_changes_nothing():
    opened = gpt2(1, stop_bias=2.0)
    for settings in (PLAIN, PLAIN.change(num_beams=3)):
        together = generate(opened, contexts(), settings)
        alone = [generate(opened, [context], settings)[0] for context in contexts()]
        assert [one.ids for one in together] == [one.ids for one in alone]
        assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-4)


def test_sampling_gives_logprobs_of_the_model_as_it_is():
    opened = gpt2(2, stop_bias=3.0)
    settings = Settings(max_new_tokens=10, temperature=0.6, top_k=5, top_p=0.8, repetition_penalty=1.2, seed=4)
    for context, one in zip(contexts(), generate(opened, contexts(), settings), strict=True):
        said = [*one.ids, *([GPT2_STOP] if one.finished else [])]
        logits = opened.network.model(torch.tensor([[*context.ids, *said]])).logits[0, len(context.ids) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(said)), said]
        assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert one.score == pytest.approx(expected.sum().item(), abs=1e-3)


def test_sampling_draws_from_the_filtered_distribution():
    """Logits / temperature, top-k, then top-p, softmax: the frequencies follow it, and nothing else is ever drawn."""
    opened = gpt2(5)
    prompt = PROMPTS[0]
    logits = opened.network.model(torch.tensor([prompt])).logits[0, -1] / 2.0
    best = logits.topk(6)
    probs = best.values.softmax(-1)
    keep = int((probs.cumsum(-1) <= 0.8).sum()) + 1
    expected = torch.zeros(GPT2_SIZE).index_put((best.indices[:keep],), probs[:keep] / probs[:keep].sum())
    settings = Settings(max_new_tokens=1, temperature=2.0, top_k=6, top_p=0.8, seed=0)
    said = generate(opened, contexts([prompt] * 4000), settings)
    drawn = torch.tensor([one.ids[0] if one.ids else GPT2_STOP for one in said]).bincount(minlength=GPT2_SIZE) / 4000
    assert keep > 2
    assert (drawn - expected).abs().max() < 0.03
    assert set(drawn.nonzero()[:, 0].tolist()) <= set(expected.nonzero()[:, 0].tolist())


def test_a_seed_repeats_and_another_differs():
    opened = gpt2(2)
    settings = Settings(max_new_tokens=10, temperature=2.0)
    one, again, other = (
        [g.ids for g in generate(opened, contexts(), settings.change(seed=seed))] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_sampled_beams_follow_the_seed_and_survive_a_narrow_filter():
    opened = gpt2(2, stop_bias=3.0)
    settings = Settings(max_new_tokens=8, num_beams=4, top_k=1, seed=3)
    # With one candidate per beam there is only one thing to say: the greedy reply.
    greedy = generate(opened, contexts(), PLAIN.change(max_new_tokens=8))
    assert [one.ids for one in generate(opened, contexts(), settings)] == [one.ids for one in greedy]
    wide = settings.change(top_k=0, temperature=1.5)
    one, again = generate(opened, contexts(), wide), generate(opened, contexts(), wide)
    assert one == again


def test_streaming_says_the_same():
    opened = gpt2(1, stop_bias=2.0)
    for settings in (PLAIN, PLAIN.change(num_beams=2), Settings(max_new_tokens=9, seed=5)):
        for context in contexts():
            assert tuple(stream(opened, context, settings)) == generate(opened, [context], settings)[0].ids


def test_tokens_are_told_as_they_are_drawn():
    told: dict[int, list[int]] = {index: [] for index in range(len(PROMPTS))}
    said = generate(gpt2(1, stop_bias=2.0), contexts(), PLAIN, on_token=lambda index, token: told[index].append(token))
    assert [tuple(ids) for ids in told.values()] == [one.ids for one in said]


def test_finished_rows_leave_the_batch():
    opened = gpt2(1, stop_bias=2.0)
    said = generate(opened, contexts(), PLAIN)
    assert sum(one.finished for one in said) > 0
    rows = opened.network.rows_read
    assert rows[0] == len(PROMPTS) and rows[-1] < len(PROMPTS)


def test_ctrl_c_returns_what_there_is_only_if_asked():
    def stop_at_three(index: int, token: int) -> None:
        seen.append(token)
        if len(seen) == 3:
            raise KeyboardInterrupt

    opened = gpt2(0, stop_bias=-9.0)
    seen: list[int] = []
    [said] = generate(opened, contexts(PROMPTS[:1]), PLAIN, stop_at_three, keep_on_interrupt=True)
    assert said.ids == tuple(seen) and len(seen) == 3 and not said.finished
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        generate(opened, contexts(PROMPTS[:1]), PLAIN, stop_at_three)


def test_search_returns_all_it_kept_best_first():
    opened = gpt2(0, stop_bias=3.0)
    settings = PLAIN.change(num_beams=4)
    found = search(opened, contexts(), settings)
    assert all(len(kept) == 4 for kept in found)
    assert all([h.score for h in kept] == sorted((h.score for h in kept), reverse=True) for kept in found)
    assert [kept[0].ids for kept in found] == [one.ids for one in generate(opened, contexts(), settings)]


def test_lengths_may_count_the_prompt():
    """The convention of old transformers: all prompts count as wide as the widest."""
    opened = gpt2(0, stop_bias=-9.0)
    settings = PLAIN.change(num_beams=2, max_new_tokens=3)
    ours, old = (
        search(opened, contexts(), settings, conventions=conventions) for conventions in (None, TRANSFORMERS_4_31)
    )
    width = max(map(len, PROMPTS))
    for new, before in zip(ours, old, strict=True):
        assert new[0].score * 3 == pytest.approx(before[0].score * (3 + width), abs=1e-4)


def test_nothing_to_do():
    assert generate(gpt2(0), [], PLAIN) == []


def test_the_last_token_is_not_fed():
    opened = gpt2(0, stop_bias=-9.0)
    generate(opened, contexts(PROMPTS[:1]), PLAIN.change(max_new_tokens=3))
    assert len(opened.network.rows_read) == 3


def test_logprobs_of_a_bf16_model_are_computed_in_fp32(tmp_path):
    """Every token's: rounded to bf16 they would be off by up to 1 in 256."""
    opened = tiny("pangu", tmp_path)
    network = opened.network.to(torch.bfloat16)
    ids = (9, 10, 11, 12)
    (reply,) = generate(opened, [Context(ids, ids)], Settings(do_sample=False, max_new_tokens=3))
    assert len(reply.logprobs) == len(reply.ids) + reply.finished
    inputs = {name: value[None] for name, value in opened.family.prompt(ids).inputs.items()}
    with torch.no_grad():
        logits, state = network.prefill(**inputs)
        expected = []
        for place, token in enumerate(reply.ids, len(ids)):
            expected.append(logits[0, -1].double().log_softmax(-1)[token].item())
            logits = network.step(torch.tensor([[token]]), torch.tensor([[[place]]]), state)
    assert reply.logprobs[: len(reply.ids)] == pytest.approx(expected, abs=1e-5)


def scored(**changes: Any) -> list[float]:
    """The scores of five tokens with logits 1, 2, 4, -1 and 3 after a reply of 2, 2 and 4."""
    group = make_group(gpt2(0), contexts([PROMPTS[0]]), PLAIN.change(**changes))
    logits = torch.full((1, GPT2_SIZE), -9.0)
    logits[0, :5] = torch.tensor([1.0, 2.0, 4.0, -1.0, 3.0])
    return group.filtered(group.scores(logits, [[2, 2, 4]], [0]))[0, :5].tolist()


def test_penalties_and_biases_are_those_of_openai() -> None:
    """logit - count x frequency - (count > 0) x presence + bias, before the temperature."""
    assert scored() == [1.0, 2.0, 4.0, -1.0, 3.0]
    assert scored(presence_penalty=0.5) == [1.0, 2.0, 3.5, -1.0, 2.5]
    assert scored(frequency_penalty=0.25) == [1.0, 2.0, 3.5, -1.0, 2.75]
    both = scored(frequency_penalty=0.25, presence_penalty=-1.0, logit_bias=((0, 2.0), (4, -0.75)), temperature=0.5)
    assert both == [6.0, 4.0, 9.0, -2.0, 6.0]


def test_min_p_is_a_share_of_the_best_probability() -> None:
    """exp(3 - 4) = 0.368 of the best one's probability, exp(2 - 4) = 0.135."""
    nothing = float("-inf")
    assert scored(min_p=0.3) == [nothing, nothing, 4.0, nothing, 3.0]
    assert scored(min_p=0.13) == [nothing, 2.0, 4.0, nothing, 3.0]
    assert scored(min_p=1.0) == [nothing, nothing, 4.0, nothing, nothing]


def test_the_likeliest_tokens_of_every_step_are_recorded_on_request() -> None:
    opened = gpt2(2, stop_bias=2.0)
    engine = Engine(opened)
    group = engine.add(contexts([PROMPTS[0]]), Settings(max_new_tokens=6, temperature=1.4, seed=1), best=3)
    with evaluating(opened.network):
        while not engine.idle:
            engine.step()
    [reply] = group.replies
    said = [*reply.ids, *([GPT2_STOP] if reply.finish == "stop" else [])]
    logits = opened.network.model(torch.tensor([[*PROMPTS[0], *said]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    values, ids = logits.log_softmax(-1).topk(3)
    assert [[one for one, _ in step] for step in reply.best] == ids.tolist()
    assert [value for step in reply.best for _, value in step] == pytest.approx(values.flatten().tolist(), abs=1e-4)
