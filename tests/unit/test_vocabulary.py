from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.prepare.vocabulary import HEAD, SENTINELS, build


def test_special_tokens_have_the_ids_of_the_format():
    tokens = build(["你好"], words=10)
    ids = {0: "<unk>", 3: "▃", 4: "<sep>", 5: "<pad>", 7: "<eod>", 8: "", 10: "▂"}
    assert {place: tokens[place] for place in ids} == ids
    assert tokens[-190:] == [f"<s_{i}>" for i in range(190)]


def test_the_most_frequent_words_come_first_and_ties_by_code_point():
    texts = ["今天，天气", "今天，天气", "今天", "明天", "昨天"]
    body = build(texts, words=3)
    words = [token for token in body if len(token) > 1 and token not in HEAD + SENTINELS]
    assert words == ["今天", "天气", "明天"]
    assert "昨天" not in body and set("昨") <= set(body)


def test_rare_words_and_words_with_characters_to_keep_apart_are_spelled():
    body = build(["四十八 苹果", "苹果"], words=10, min_count=2, apart="四十八")
    assert "苹果" in body and "四十八" not in body and {"四", "十", "八"} <= set(body)
    assert " " not in body  # a space is ▂


def test_fold_is_applied_before_anything_is_counted():
    body = build(["你好！"], words=10, fold=lambda text: text.replace("！", "!"))
    assert "!" in body and "！" not in body


@given(st.lists(st.text(alphabet="今天明气好，。 \nab一二", max_size=12), max_size=8), st.integers(0, 5))
def test_no_token_twice_and_every_character_spelled(texts, words):
    body = build(texts, words)
    assert len(set(body)) == len(body)
    assert {character for text in texts for character in text if not character.isspace()} <= set(body)
    assert sum(len(token) > 1 for token in body if token not in HEAD + SENTINELS) <= words
