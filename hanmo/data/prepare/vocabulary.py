"""A vocabulary in EVA's format from text: special tokens at fixed ids, characters, words that jieba cuts, sentinels."""

from collections import Counter
from collections.abc import Callable, Iterable

#: ids 0 to 10; "▃" stands for a newline, "▂" for a space, and id 8 is the empty string
HEAD = ("<unk>", "<s>", "</s>", "▃", "<sep>", "<pad>", "<mask>", "<eod>", "", ",", "▂")
SENTINELS = tuple(f"<s_{i}>" for i in range(190))  # the last ids; <s_0> starts a reply
ASCII = tuple(chr(code) for code in range(33, 127))


def build(
    texts: Iterable[str], words: int, min_count: int = 1, fold: Callable[[str], str] = str, apart: str = ""
) -> list[str]:
    """The tokens by id: all characters of the texts and of ASCII, and up to ``words`` frequent words.

    ``fold``: the tokenizer's own mapping of characters, applied before cutting. ``apart``: characters that no word may
    contain, so that a model sees them one by one.
    """
    import jieba

    jieba.setLogLevel("ERROR")
    characters: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for text in texts:
        mapped = fold(text)
        characters.update(mapped)
        counts.update(word for word in jieba.cut(mapped) if len(word) > 1)
    single = [character for character in _ranked(characters) if not character.isspace()]
    frequent = [word for word in _ranked(counts) if counts[word] >= min_count]
    listed = [word for word in frequent if not set(word) & set(apart) and not any(map(str.isspace, word))]
    body = dict.fromkeys([*single, *ASCII, *listed[:words]])
    return [*HEAD, *(token for token in body if token not in HEAD), *SENTINELS]


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda token: (-counts[token], token))
