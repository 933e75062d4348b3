"""Transformers' architectures alone, in batches, with beams, scored and packed are what plain transformers says of each text."""

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hanmo.errors import UnsupportedError
from hanmo.evaluation.engine.candidates import score_candidates
from hanmo.evaluation.engine.row_scores import RowScore, score_rows
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.rows import IGNORE, Context, Part, collate
from tests.searching import search
from tests.unit.architectures import BOTH, SEES_AHEAD, STOP, adopted, build, logprobs, said

PROMPTS = [tuple(range(10, 24)), tuple(range(30, 43)), tuple(range(40, 47))]
ANSWERS = [(50, 51, 52, 53), (50, 54), (60, 61, 62, 63, 64)]
COUNT = 7
# positions in an encoder, by padding, relative, in a decoder; no cache
FAST = ("bart", "m2m_100", "t5", "gpt2", "openai-gpt")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BOTH]


def contexts() -> list[Context]:
    return [Context(prompt, prompt) for prompt in PROMPTS]


def rows(opened: OpenedModel) -> list[list[list[Part]]]:
    return [[[Part(prompt, False), Part(answer, True)] for answer in ANSWERS] for prompt in PROMPTS]


def close(found: list[RowScore], expected: list[torch.Tensor]) -> None:
    for score, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(score.logprobs), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_company_changes_nothing(name: str) -> None:
    """Replies, beams, candidates, rows; packed examples are right or refused."""
    model = build(name)
    opened = adopted(model)
    for beams in (1, 3):
        settings = Settings(do_sample=False, num_beams=beams, max_new_tokens=COUNT)
        expected = [said(model, prompt, beams, COUNT) for prompt in PROMPTS]
        assert [one.ids for one in generate(opened, contexts(), settings)] == expected
        assert [generate(opened, [one], settings)[0].ids for one in contexts()] == expected
        if beams > 1:
            assert [found[0].ids for found in search(opened, contexts(), settings)] == expected
    scores = [logprobs(model, prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    questions = rows(opened)
    close([score for scored in score_candidates(opened, questions) for score in scored], scores)
    made = [opened.family.row(parts, stop=False) for question in questions for parts in question]
    close(score_rows(opened, made), scores)
    if opened.family.packs:
        batch = collate([opened.family.pack(made[:4]), opened.family.pack(made[4:])], opened.family.padding)
        try:
            found = opened.network(**batch).logprob[batch["labels"] != IGNORE]
        except UnsupportedError as error:
            assert type(opened.network).__name__ in str(error)  # by name
        else:
            torch.testing.assert_close(found, torch.cat(scores), rtol=0, atol=1e-4)


# positions by an offset, fixed, learned by index, in a table that is read otherwise, of an encoder and a decoder
BOUNDED = ("opt", "gptj", "openai-gpt", "roberta", "bart")
BOUNDED_TOO = (
    *("mbart", "pegasus", "marian", "blenderbot", "blenderbot-small", "plbart", "mvp", "led", "bigbird_pegasus"),
    *("gpt2", "codegen", "biogpt", "ctrl", "mpt", "bert", "roformer", "rembert", "gpt_neo", "reformer"),
)


@pytest.mark.parametrize("name", [*BOUNDED, *(pytest.param(name, marks=pytest.mark.slow) for name in BOUNDED_TOO)])
def test_more_tokens_than_positions_are_one_message(name: str) -> None:
    """In a prompt, in a reply and in a row; transformers' errors are of an index or of a size."""
    usual = vars(CONFIG_MAPPING[name]()) | CONFIG_MAPPING[name].attribute_map
    of_parts = ("max_encoder_position_embeddings", "max_decoder_position_embeddings")
    keys = [key for key in ("max_position_embeddings", "max_seq_len", *of_parts) if key in usual]
    opened = adopted(build(name, **dict.fromkeys(keys, 16)))
    ids, ever = tuple(range(4, 24)), Settings(do_sample=False, max_new_tokens=25, suppressed_ids=(STOP,))
    for given in (ids, ids[:10]):
        with pytest.raises(UnsupportedError, match=r"\d\d tokens in a row, but this model has 1[46] positions"):
            generate(opened, [Context(given, given)], ever)
    row = opened.family.row([Part(ids, False), Part(tuple(range(30, 55)), True)])
    with pytest.raises(UnsupportedError, match=r"\d\d tokens in a row, but this model has 1[46] positions"):
        score_rows(opened, [row])


def test_an_architecture_that_asks_for_more_than_tokens_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedError, match=r"XmodForCausalLM \(xmod\) is not read like a language model: .*language"
    ):
        adopted(build("xmod"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("bert", "xlnet") else pytest.mark.slow) for n in SEES_AHEAD]
)
def test_a_model_that_sees_ahead_is_refused_by_name(name: str) -> None:
    """A masked language model opens as a decoder and would say anything."""
    opened = adopted(build(name, **({"is_decoder": False} if name == "bert" else {})))
    with pytest.raises(UnsupportedError, match=rf"\({name}\) sees the tokens that it should predict"):
        generate(opened, contexts(), Settings(max_new_tokens=2))
    with pytest.raises(UnsupportedError, match="is_decoder"):
        score_rows(opened, [opened.family.row(parts) for parts in rows(opened)[0]])


def test_sparse_attention_comes_back_after_a_short_text() -> None:
    """BigBird reads short texts with full attention, and then would read every text so."""
    model = build("bigbird_pegasus")
    opened = adopted(model)
    long, short = tuple(range(4, 68)), tuple(range(10, 20))
    settings = Settings(do_sample=False, max_new_tokens=COUNT)
    asked = [short, long, short, long]
    found = generate(opened, [Context(ids, ids) for ids in asked], settings)
    assert [one.ids for one in found] == [said(model, ids, 1, COUNT) for ids in asked]
    parts = [[Part(ids, False), Part(ANSWERS[0], True)] for ids in asked]
    close(
        score_rows(opened, [opened.family.row(one, stop=False) for one in parts]),
        [logprobs(model, ids, ANSWERS[0]) for ids in asked],
    )


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "openai-gpt"))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sound_models_are_read_in_the_fastest_way(name: str, dtype: torch.dtype) -> None:
    """In batches, from their caches; rounding is not mistaken for a model that reads otherwise in company."""
    batching = adopted(build(name).to(dtype)).network.batching
    assert batching.batch == batching.rows == "any" and batching.continues and batching.cached == (name != "openai-gpt")


def test_half_precision_does_not_hide_that_a_model_reads_otherwise() -> None:
    """FSMT takes in but one token at once: logits that are off by 13 % are more than rounding makes of this network."""
    model = build("fsmt")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.1, generator=generator)
    assert not adopted(model).network.batching.continues
    assert not adopted(model.to(torch.bfloat16)).network.batching.continues
