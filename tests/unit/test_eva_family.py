"""EVA's rows, prompts and chat contexts on a vocabulary of a dozen tokens, by hand."""

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import UnsupportedError
from hanmo.families.eva.family import CHAT_TURNS, EvaFamily
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse, ScoredAnswers, Text
from hanmo.rows import IGNORE, Part, collate, stack

TOKENS = ["<unk>", "<pad>", "<sep>", "<eod>", "<s_0>", "甲", "乙", "丙", "丁", "戊", "但", "不过"]
UNK, _, SEP, _, START, A, B, C, D, E = range(10)


@pytest.fixture(scope="module")
def eva(tmp_path_factory) -> EvaFamily:
    vocab = tmp_path_factory.mktemp("eva") / "vocab.txt"
    vocab.write_text("\n".join(TOKENS), encoding="utf-8")
    return EvaFamily(EvaConfig(vocab_size=len(TOKENS)), EvaTokenizer(vocab_file=str(vocab)))


def test_the_vocabulary_decides_the_special_ids(eva):
    c = eva.config
    assert (c.pad_token_id, c.eos_token_id, c.decoder_start_token_id) == (1, SEP, START)


def test_parts_of_a_dialogue(eva):
    record = Dialogue(("甲", "乙丙", "丁"))
    assert eva.parts(record, 20) == [[Part((A, SEP, B, C, SEP), False), Part((D,), True)]]


@pytest.mark.parametrize(
    ("limit", "context"),
    # <s_0> takes one place: 甲<sep>乙丙<sep><s_0> are 6. The turn that does not fit ends the walk.
    [(6, (A, SEP, B, C, SEP)), (5, (B, C, SEP)), (4, (B, C, SEP)), (3, None)],
)
def test_turns_that_fit(eva, limit, context):
    parts = eva.parts(Dialogue(("甲", "乙丙", "丁")), limit, 10)
    assert parts == ([] if context is None else [[Part(context, False), Part((D,), True)]])


def test_a_long_turn_hides_older_ones(eva):
    parts = eva.parts(Dialogue(("甲", "乙" * 9, "丙", "丁")), 8)
    assert parts[0][0].ids == (C, SEP)


def test_long_targets_are_dropped(eva):
    record = Dialogue(("甲", "乙丙丁"))
    assert eva.parts(record, 20, 4)
    assert eva.parts(record, 20, 3) == []
    assert eva.parts(record, 3) == []  # one limit for both axes


def test_a_dialogue_of_one_turn(eva):
    assert eva.parts(Dialogue(("甲",)), 20) == [[Part((A, SEP), False), Part((UNK, UNK), True)]]


def test_other_records(eva):
    expected = eva.parts(Dialogue(("甲", "乙")), 20)
    assert eva.parts(PromptResponse("甲", "乙"), 20) == expected
    assert eva.parts(ScoredAnswers("甲", (("丙", 0.0), ("乙", 1.0))), 20) == expected
    assert eva.parts(PromptResponse("甲", "乙", system="戊"), 20)[0][0].ids == (E, SEP, A, SEP)
    assert eva.parts(Dialogue(("甲", "乙"), system="戊"), 20)[0][0].ids == (E, SEP, A, SEP)


def test_running_text_is_refused_with_advice(eva):
    for attempt in (lambda: eva.parts(Text("甲", "a.txt:3"), 20), lambda: eva.context(Text("甲", "a.txt:3"), 20)):
        with pytest.raises(UnsupportedError, match=r"a\.txt:3.*dialogues.*turns"):
            attempt()
    with pytest.raises(UnsupportedError, match="dialogues"):
        eva.pretrain([A, B], Random(0))


def test_row(eva):
    row = eva.row([Part((A, SEP), False), Part((B, C, D), True)])
    assert row.inputs["input_ids"].tolist() == [A, SEP, START]
    assert row.inputs["attention_mask"].tolist() == [1, 1, 1]
    assert row.inputs["decoder_input_ids"].tolist() == [START, B, C, D]
    assert row.labels.tolist() == [B, C, D, SEP]
    assert row.weights.tolist() == [0.25] * 4
    assert row.end == 3


def test_row_that_goes_on_or_is_closed(eva):
    parts = [Part((A, SEP), False), Part((B, C), True)]
    going = eva.row(parts, stop=False)
    assert going.labels.tolist() == [B, C, IGNORE]
    assert going.weights.tolist() == [0.5, 0.5, 0.0]
    closed = eva.row(parts, feed_stop=True)
    assert closed.inputs["decoder_input_ids"].tolist() == [START, B, C, SEP]
    assert closed.labels.tolist() == [B, C, SEP, IGNORE]
    assert closed.end == 3


def test_given_opening_is_fed_and_not_learned(eva):
    [parts] = eva.parts(PromptResponse("甲", "丙丁", prefix="乙"), 20)
    row = eva.row(parts)
    assert row.inputs["input_ids"].tolist() == [A, SEP, START]
    assert row.inputs["decoder_input_ids"].tolist() == [START, B, C, D]
    assert row.labels.tolist() == [IGNORE, C, D, SEP]
    assert row.weights.sum().item() == pytest.approx(1.0)
    context = eva.context(PromptResponse("甲", "", prefix="乙"), 20)
    prompt = eva.prompt(context.ids)
    assert context.ids == parts[0].ids
    assert context.full_ids == (A, SEP, B)
    assert prompt.inputs["decoder_input_ids"].tolist() == [START, B]
    assert prompt.start.tolist() == [2]


def test_unscored_rows_weigh_nothing(eva):
    row = eva.row([Part((A, SEP), False)])
    assert row.labels.tolist() == [IGNORE]
    assert row.weights.tolist() == [0.0]


@given(
    st.lists(st.tuples(st.lists(st.integers(A, E), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_labels_are_the_next_inputs(eva, pieces, stop, closed):
    """Wherever a label is scored, feeding one more token shows it; the axes agree; weights sum to 1 or 0."""
    parts = [Part((A, SEP), False), *(Part(tuple(ids), scored) for ids, scored in pieces)]
    row = eva.row(parts, stop, closed)
    fed = [*row.inputs["decoder_input_ids"].tolist()[1:], SEP]
    labels = row.labels.tolist()
    assert len(labels) == len(row.weights) == row.end + 1 == len(fed)
    assert all(label in (IGNORE, token) for label, token in zip(labels, fed, strict=True))
    scored = sum(label != IGNORE for label in labels)
    ends = stop and parts[-1].scored
    assert scored == sum(len(part.ids) for part in parts if part.scored) + ends
    assert row.weights.sum().item() == pytest.approx(float(scored > 0))


def test_loss_is_the_mean_of_means(eva):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1}
    model = EvaModel(EvaConfig(vocab_size=len(TOKENS), **sizes, initializer_range=0.5)).eval()
    rows = [eva.row([Part((A, SEP), False), Part(ids, True)]) for ids in ((B,), (C, D, E, A))]
    losses = [model(**collate([row], eva.padding)).loss.item() for row in rows]
    assert losses[0] != pytest.approx(losses[1])
    assert model(**collate(rows, eva.padding)).loss.item() == pytest.approx(sum(losses) / 2)


def test_prompt(eva):
    prompts = [eva.prompt(ids) for ids in ((A, SEP), (A, SEP, B, SEP))]
    assert prompts[0].inputs["input_ids"].tolist() == [A, SEP, START]
    assert prompts[0].inputs["decoder_input_ids"].tolist() == [START]
    assert (prompts[0].start.tolist(), prompts[0].step.tolist(), prompts[0].stop_ids) == ([1], [1], (SEP,))
    batch = stack([prompt.inputs for prompt in prompts], eva.padding, left=True)
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]


def test_chat_leaves_long_turns_out_and_goes_on(eva):
    context = eva.context(Dialogue(("甲", "乙" * 9, "丙")), 6)
    assert context.ids == (A, SEP, C, SEP)
    assert context.full_ids == (A, SEP, *[B] * 9, SEP, C, SEP)
    assert eva.context(Dialogue(("甲" * 9,)), 6).ids == ()


def test_chat_looks_back_at_so_many_turns(eva):
    context = eva.context(Dialogue(("戊", *["甲"] * CHAT_TURNS)), 128)
    assert context.ids == (A, SEP) * CHAT_TURNS
    assert context.full_ids[:2] == (E, SEP)


def test_what_the_model_said_is_kept_as_ids(eva):
    """甲乙 might have been said as other ids than its text gives; the ids count."""
    context = eva.context(Dialogue(("丙", "甲乙", "丁"), ids=(None, (B, A), None)), 20)
    assert context.ids == (C, SEP, B, A, SEP, D, SEP)


def test_decode_spells_out_what_was_generated(eva):
    assert eva.decode([A, UNK, B]) == "甲<unk>乙"


def test_rules_are_eva_s_own(eva):
    rules = eva.logits_processor(Settings(min_new_tokens=1), [(A, SEP)])
    scores = rules([[]], [0], torch.zeros(1, len(TOKENS)))
    assert scores[0, SEP] < -1000
    assert scores[0, UNK] < scores[0, SEP]
    assert scores[0, A] == 0
