"""GLM's text as ids, written out by hand: contexts, options, what is cut, and which ids the mask tokens are."""

from pathlib import Path

import pytest

from hanmo.families.glm.family import GlmFamily
from hanmo.families.glm.modeling import GlmConfig
from hanmo.records import Dialogue, PromptResponse, Text
from hanmo.rows import Part
from tests.unit.tiny import CONFIGS, tiny

PIECES = 120  # of the tiny vocabulary; the command tokens follow: <eos> [SEP] [CLS] [MASK] two unused <sop> <eop> [sMASK] [gMASK]
EOS, SEP, CLS, MASK, SOP, EOP, SMASK, GMASK = (PIECES + place for place in (0, 1, 2, 3, 6, 7, 8, 9))


@pytest.fixture
def family(tmp_path: Path) -> GlmFamily:
    made = tiny("glm", tmp_path).family
    assert isinstance(made, GlmFamily)
    return made


def pieces(family: GlmFamily, text: str) -> list[int]:
    """The ids of plain text."""
    ids = family.tokenizer.encode(text, add_special_tokens=False)
    assert ids and max(ids) < PIECES
    return list(ids)


def test_the_mask_tokens_are_those_of_the_vocabulary(family: GlmFamily) -> None:
    config = family.config
    assert list(config.mask_token_ids) == [MASK, SMASK, GMASK]
    assert (config.sop_token_id, config.eop_token_id) == (SOP, EOP)
    assert config.pad_token_id == config.eos_token_id == EOS


def test_where_gmask_is_the_end_of_a_piece_it_stays_so(family: GlmFamily) -> None:
    """The original model of 10 billion parameters: its [gMASK] is <|endofpiece|>, in the text of every record too."""
    config = GlmConfig(**CONFIGS["glm"], mask_token_ids=(50003, 50008, 50007), eop_token_id=50007)
    shared = GlmFamily(config, family.tokenizer)
    assert list(shared.config.mask_token_ids) == [MASK, SMASK, EOP]
    assert list(shared.context(Text("你好"), 64).ids) == [CLS, *pieces(shared, "你好"), EOP, EOS]


def test_contexts_by_hand(family: GlmFamily) -> None:
    """Text is gone on with or filled; of a dialogue every turn is given, as the answer is still to come."""
    assert list(family.context(Text("你好"), 64).ids) == [CLS, *pieces(family, "你好"), GMASK, EOS]
    before, after = pieces(family, "今天"), family.tokenizer.encode("[MASK]再见", add_special_tokens=False)
    assert list(family.context(Text("今天[MASK]再见"), 64).ids) == [CLS, *before, *after, EOS]
    assert after[0] == MASK
    talk = Dialogue(("你好", "再见", "谢谢"))
    assert list(family.context(talk, 64).ids) == [CLS, *pieces(family, "你好\n再见\n谢谢"), SEP, MASK, EOS]


def test_options_answer_the_gap(family: GlmFamily) -> None:
    after = family.tokenizer.encode("[MASK]再见", add_special_tokens=False)
    context = Part((CLS, *pieces(family, "今天"), *after, EOS), False)
    options = ["好", "明天去"]
    assert family.cloze("今天", options, "再见") == [
        [context, Part(tuple(pieces(family, one)), True)] for one in options
    ]


def test_the_longer_side_is_cut_one_token_at_a_time(family: GlmFamily) -> None:
    """As the original: the context while it is longer than the answer with its end, else the answer."""
    prompt, answer = "火好去明八" * 3, "八啊三啊五" * 2
    asked, said = pieces(family, prompt), pieces(family, answer)
    source, target = 4 + len(asked), len(said) + 1  # [CLS] [SEP] [MASK] <eos> beside the prompt; <eop>
    assert source > target > 8
    for limit in range(source + target + 1, 9, -1):
        given, told = source, target
        while given + told > limit:
            given, told = (given - 1, told) if given > told else (given, told - 1)
        ((context, learned),) = family.parts(PromptResponse(prompt, answer), limit)
        kept = asked[source - given :]
        assert context == Part((CLS, *kept, SEP, MASK, EOS), False)
        assert learned == Part(tuple(said[: told - 1]), True)


@pytest.mark.parametrize("room", [1, 2, 9])
def test_a_text_that_is_cut_is_not_said_to_end(room: int, family: GlmFamily) -> None:
    """Labels by hand: the text's tokens, and behind its last one, if it is seen, the stop token."""
    ids = pieces(family, "今天天气真不错")
    context = family.context(Text(""), 100).ids
    [parts] = family.parts(Text("今天天气真不错"), len(context) + room + 1)
    row = family.row(parts)
    stop = family.config.eop_token_id if room >= len(ids) else -100
    assert len(ids) == 2 and row.labels.tolist() == [*[-100] * len(context), *ids[:room], stop]
