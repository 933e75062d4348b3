"""EVA's tokenizer on a vocabulary made up here: longest match, specials, saving."""

import pickle
from pathlib import Path

import pytest

from hanmo.families.eva.tokenization import EvaTokenizer

LINES = [
    "<unk>",
    "<s>",
    "",
    "▃",
    "<sep>",
    "<pad>",
    "▂",
    "<eod>",
    "今天",
    "天",
    "今",
    "好",
    "!",
    ".",
    "<",
    "sep",
    ">",
    "<s_0>",
]
IDS = {line: number for number, line in enumerate(LINES)}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(vocabulary: Path) -> EvaTokenizer:
    return EvaTokenizer(str(vocabulary))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("今天天好！", ["今天", "天", "好", "!"]),
        ("好…", ["好", ".", ".", "."]),
        (" \n", ["▂", "▃"]),
        ("\t", ["<unk>"]),
        ("好吗", ["好", "<unk>"]),
        ("<sep>", ["<", "sep", ">"]),
        ("1" * 201, ["<unk>"]),
        ("1" * 3, ["<unk>"] * 3),
    ],
)
def test_encoding(tokenizer: EvaTokenizer, text: str, tokens: list[str]) -> None:
    assert tokenizer.tokenize(text) == tokens
    assert tokenizer.encode_plain(text) == [IDS[token] for token in tokens]
    assert tokenizer.encode_batch([text, text]) == [[IDS[token] for token in tokens]] * 2


def test_the_empty_line_has_an_id_and_decodes_to_nothing(tokenizer: EvaTokenizer) -> None:
    assert tokenizer.vocab_size == len(tokenizer) == len(LINES)
    assert tokenizer.decode([IDS[""], IDS["好"], IDS["▂"], IDS["▃"], IDS["<unk>"]]) == "好 \n<unk>"
    assert tokenizer.decode([IDS["<s_0>"], IDS["好"], IDS["<sep>"]], skip_special_tokens=True) == "好"


def test_single_texts_and_pairs(tokenizer: EvaTokenizer) -> None:
    assert tokenizer("好")["input_ids"] == [IDS["好"], IDS["<sep>"]]
    assert tokenizer("好", "")["input_ids"] == [IDS["好"], IDS["<sep>"], IDS["<s_0>"]]
    padded = tokenizer(["好", "今天天"], padding=True)
    assert padded["input_ids"] == [[IDS["好"], IDS["<sep>"], IDS["<pad>"]], [IDS["今天"], IDS["天"], IDS["<sep>"]]]
    assert padded["attention_mask"] == [[1, 1, 0], [1, 1, 1]]


def test_it_saves_loads_and_pickles(tokenizer: EvaTokenizer, vocabulary: Path, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    tokenizer.encode_plain("好")
    for other in (EvaTokenizer.from_pretrained(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode("今天天<sep>") == tokenizer.encode("今天天<sep>")
        assert other.get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_without_specials_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<unk>\n<sep>\n好\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks <eod>, <pad>, <s_0>"):
        EvaTokenizer(str(tmp_path / "vocab.txt"))
