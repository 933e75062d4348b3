"""EVA's score rules one by one, on a vocabulary small enough to see what is banned and why."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import RecordError
from hanmo.families.eva.decoding import (
    SEPARATOR,
    SUPPRESSED,
    SUPPRESSED_ALWAYS,
    EvaLogitsProcessor,
    Vocabulary,
    read_antonyms,
)
from hanmo.generation.settings import Settings
from tests.counting import counted_calls
from tests.unit.decoding_peers import TOKENS, eva, eva_tokenizer

OFF = Settings(repetition_penalty=1.0, rule_files=False)
ANTONYMS = OFF.change(rule_files=True)
ID = {token: index for index, token in enumerate(TOKENS)}
SPELLED = [{"\u2582": " ", "\u2583": "\n"}.get(token, token) for token in TOKENS]
PAIRS = [("好", "坏"), ("今天", "明天"), ("来", "了")]


class TokensOnly:
    """As much of a tokenizer as the rules read."""

    sep_token, unk_token = "<sep>", "<unk>"

    def __init__(self, tokens, spelled):
        self._tokens, self._spelled, self.vocab_size = tokens, spelled, len(tokens)

    def get_vocab(self):
        return {token: index for index, token in enumerate(self._tokens)}

    def convert_ids_to_tokens(self, ids):
        return [self._spelled[index] for index in ids]


SMALL = TokensOnly(TOKENS, SPELLED)


@pytest.fixture(scope="module")
def book():
    return Vocabulary(SMALL, PAIRS)


def ids(text: str) -> list[int]:
    """One id for each blank-separated token; | is the separator, _ the space."""
    return [ID[{"|": "<sep>", "_": "\u2582"}.get(token, token)] for token in text.split()]


def banned(book, settings, contexts, generated, sources=None):
    """For each row the tokens whose score is the ban's, <unk> aside."""
    rules = EvaLogitsProcessor(book, settings, [ids(text) for text in contexts])
    rows = range(len(generated)) if sources is None else sources
    scores = rules([ids(text) for text in generated], rows, torch.zeros(len(generated), len(TOKENS)))
    assert (scores[:, 0] == SUPPRESSED_ALWAYS).all()
    return [{TOKENS[index] for index in (row == SUPPRESSED).nonzero()[:, 0].tolist()} for row in scores]


def test_everything_off_leaves_only_unk(book):
    scores = torch.randn(2, len(TOKENS))
    after = EvaLogitsProcessor(Vocabulary(SMALL), OFF, [ids("好 |")])([[], ids("好")], [0, 0], scores.clone())
    assert torch.equal(after[:, 1:], scores[:, 1:])


def test_banned_ids_are_never_said(book):
    settings = OFF.change(suppressed_ids=(ID["好"], ID["天"]))
    scores = EvaLogitsProcessor(book, settings, [[]])([[]], [0], torch.zeros(1, len(TOKENS)))
    assert {TOKENS[index] for index in (scores[0] == SUPPRESSED_ALWAYS).nonzero()[:, 0]} == {"<unk>", "好", "天"}


def test_penalty_counts_context_and_reply_but_not_the_separator(book):
    scores = torch.full((1, len(TOKENS)), 2.0)
    scores[0, ID["天"]] = -2.0
    after = EvaLogitsProcessor(book, OFF.change(repetition_penalty=1.6), [ids("天 | 好 |")])([ids("今")], [0], scores)
    changed = {
        TOKENS[index]: round(after[0, index].item(), 4) for index in range(1, len(TOKENS)) if after[0, index] != 2
    }
    assert changed == {"天": -3.2, "好": 1.25, "今": 1.25}


def test_minimum_length_counts_the_reply(book):
    settings = OFF.change(min_new_tokens=2)
    assert banned(book, settings, ["好 |"] * 3, ["", "好", "好 天"]) == [{"<sep>"}, {"<sep>"}, set()]


def test_ngrams_are_of_characters(book):
    settings = OFF.change(no_repeat_ngram_size=3)
    # 天气好: 好 is banned after 天气, however that was said.
    assert banned(book, settings, ["天气 好 |"] * 2, ["天 气", "天气"]) == [{"好"}] * 2
    # After 天 the token 气 alone would not complete it; nor is there a token 气好.
    assert banned(book, settings, ["天气 好 |"], ["天"]) == [set()]


def test_a_token_that_would_complete_an_earlier_window(book):
    # 不天气 as a window: after 不 the two-character token 天气 is banned, 天 is not.
    assert banned(book, OFF.change(no_repeat_ngram_size=3), ["不 天 气 |"], ["不"]) == [{"天气"}]


def test_a_whole_window_that_is_a_token_is_banned_for_good(book):
    settings = OFF.change(no_repeat_ngram_size=2)
    assert "天气" in banned(book, settings, ["天 气 |"], ["了"])[0]
    assert "天气" in banned(book, settings, ["了 |"], ["天 气 了"])[0]
    # … and where context and reply meet
    assert "天气" in banned(book, settings, ["了 天"], ["气 了"])[0]


def test_the_separator_is_one_item(book):
    # Ending in 天好 as an earlier utterance did, with n = 3, the separator would complete 天好<sep>.
    assert banned(book, OFF.change(no_repeat_ngram_size=3), ["天 好 |"], ["天 好"]) == [{"<sep>"}]


def test_windows_run_across_the_separator(book):
    # 天<sep>好 occurred; after 天<sep> comes 好 no more.
    assert banned(book, OFF.change(no_repeat_ngram_size=3), ["天 | 好 | 天 |"], [""]) == [{"好"}]


def test_spaces_are_never_banned(book):
    assert banned(book, OFF.change(no_repeat_ngram_size=2), ["好 _ |"], ["好"]) == [set()]


def test_specials_are_spelled_out(book):
    """<pad> is five characters: after its last three came 好, which its last four alone would not tell."""
    assert banned(book, OFF.change(no_repeat_ngram_size=4), ["<pad> 好 |"], ["<pad>"]) == [{"好"}]
    assert banned(book, OFF.change(no_repeat_ngram_size=4), ["<pad> 好 |"], ["天"]) == [set()]
    # with n = 5 the whole window is the token's text
    assert banned(book, OFF.change(no_repeat_ngram_size=5), ["<pad> |"], [""]) == [{"<pad>"}]


@pytest.mark.parametrize("pause", ["，", ",", "。"])
def test_no_but_after_a_pause(book, pause):
    assert banned(book, OFF.change(no_repeat_ngram_size=4), ["好 |"], [f"天 {pause}"]) == [{"但", "不过"}]
    assert banned(book, OFF.change(no_repeat_ngram_size=4), [f"好 {pause}"], [""]) == [{"但", "不过"}]
    assert banned(book, OFF, ["好 |"], [f"天 {pause}"]) == [set()]  # the rule goes with the n-gram rule


def test_antonyms_since_the_last_separator(book):
    assert banned(book, ANTONYMS, ["坏 | 今天 |", "坏 | 今天"], ["好", "好"]) == [{"坏"}, {"坏", "明天"}]
    assert banned(book, ANTONYMS, ["坏 |"], ["明天 来"]) == [{"今天", "了"}]
    assert banned(book, OFF, ["坏 |"], ["明天 来"]) == [set()]


def test_antonyms_are_banned_in_their_row_or_as_published_in_all(book):
    contexts, said = ["天 |", "天 |"], ["好", "来"]
    assert banned(book, ANTONYMS, contexts, said) == [{"坏"}, {"了"}]
    assert banned(book, ANTONYMS.change(published=True), contexts, said) == [{"坏", "了"}] * 2


def test_rows_follow_their_source(book):
    settings = OFF.change(no_repeat_ngram_size=3)
    rows = banned(book, settings, ["天 好 了", "天 坏 了"], ["天 好", "天 好", "天 坏"], sources=[1, 0, 1])
    assert [row & {"了"} for row in rows] == [set(), {"了"}, {"了"}]


def test_later_rules_win(book):
    """A penalised, banned separator is banned; <unk> is never said whatever else holds."""
    settings = OFF.change(repetition_penalty=2.0, min_new_tokens=1, no_repeat_ngram_size=5)
    scores = EvaLogitsProcessor(book, settings, [ids("<unk> |")])([[]], [0], torch.ones(1, len(TOKENS)))
    assert (scores[0, 0].item(), scores[0, ID["<sep>"]].item()) == (SUPPRESSED_ALWAYS, SUPPRESSED)


def naive_bans(book, size, said):
    """Rule 3 word by word as it is specified, slow."""
    items = [item for index in said for item in ([SEPARATOR] if index == book.stop_id else SPELLED[index])]
    recorded: dict[str, set[int]] = {}
    for start in range(len(items) - size + 1):
        window = items[start : start + size]
        for known in range(size):
            rest = "".join(window[known:]).replace(SEPARATOR, "<sep>")
            if rest in ID:
                recorded.setdefault("".join(window[:known]), set()).add(ID[rest])
    found = recorded.get("", set()).copy()
    for known in range(1, size):
        found |= recorded.get("".join(items[-known:]), set())
    return found | ({ID["但"], ID["不过"]} if items and items[-1] in "，,。" else set())


conversation = st.lists(st.sampled_from([i for i in range(len(TOKENS)) if i not in (1, 7)]), max_size=25)


@given(context=conversation, said=conversation, size=st.integers(1, 5))
def test_bans_as_specified(context, said, size):
    rule_book = Vocabulary(SMALL)
    rules = EvaLogitsProcessor(rule_book, OFF.change(no_repeat_ngram_size=size), [context])
    scores = rules([said], [0], torch.zeros(1, len(TOKENS)))
    expected = naive_bans(rule_book, size, context + said) - {rule_book.unknown_id}
    assert set((scores[0] == SUPPRESSED).nonzero()[:, 0].tolist()) == expected


def test_words_outside_the_vocabulary_are_left_out_with_a_note(caplog):
    with caplog.at_level(logging.WARNING):
        found = Vocabulary(SMALL, [("好", "坏"), ("好", "糟"), ("热", "冷")]).antonyms
    assert found == {ID["好"]: {ID["坏"]}, ID["坏"]: {ID["好"]}}
    assert "3 words" in caplog.text and "糟" in caplog.text


def test_reading_antonyms(tmp_path):
    file = tmp_path / "antonym.txt"
    file.write_text("('好', '坏')\n\n(\"来\", '去')\n", encoding="utf-8")
    assert read_antonyms(file) == [("好", "坏"), ("来", "去")]
    for bad in ("好 坏", "('好',)", "('好', 3)", "__import__('os')", "('a', 'b', 'c')", "7"):
        file.write_text(f"('好', '坏')\n{bad}\n", encoding="utf-8")
        with pytest.raises(RecordError, match=r"antonym\.txt:2: expected two quoted words"):
            read_antonyms(file)


def test_the_book_of_a_tokenizer(tmp_path):
    rules = tmp_path / "antonym.txt"
    rules.write_text("('好', '坏')\n", encoding="utf-8")
    found = Vocabulary(eva_tokenizer(tmp_path), read_antonyms(rules))
    assert found.texts == [SEPARATOR if text == "<sep>" else text for text in SPELLED]
    assert found.antonyms == {ID["好"]: {ID["坏"]}, ID["坏"]: {ID["好"]}}
    family = eva(0, tmp_path, {"antonyms": str(rules)}).family
    scores = family.logits_processor(ANTONYMS, [ids("了 |")])([ids("好")], [0], torch.zeros(1, len(TOKENS)))
    assert scores[0, ID["坏"]] == SUPPRESSED


def calls_of_a_step(vocabulary: int, context: int, length: int) -> int:
    """How many functions one step of the rules calls: four rows, every rule on."""
    tokens = [*TOKENS, *(chr(0x4E00 + index) for index in range(vocabulary - len(TOKENS)))]
    big = Vocabulary(TokensOnly(tokens, tokens), PAIRS)
    settings = OFF.change(repetition_penalty=1.6, no_repeat_ngram_size=4, min_new_tokens=2)
    said = torch.arange(context + length).add(30).tolist()  # nothing is said twice, so that as little is found again
    rules = EvaLogitsProcessor(big, settings, [said[:context]])
    scores = torch.zeros(4, vocabulary)
    rules([said[context:]] * 4, [0] * 4, scores)
    with counted_calls() as calls:
        rules([said[context:]] * 4, [0] * 4, scores)
    return calls.count


def test_a_step_of_the_rules_does_not_walk_the_vocabulary_or_the_context() -> None:
    """Its time beside that of the network: benchmarks/decode.py."""
    few = calls_of_a_step(vocabulary=1_000, context=16, length=20)
    assert calls_of_a_step(vocabulary=30_000, context=16, length=20) == few
    assert calls_of_a_step(vocabulary=1_000, context=512, length=20) == few
    assert few < 200
