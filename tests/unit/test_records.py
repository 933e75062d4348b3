"""Every form of record that is read, what a bad one says, and that what is written is read back."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import RecordError
from hanmo.records import (
    Dialogue,
    PromptResponse,
    Record,
    Rejects,
    ScoredAnswers,
    Text,
    iter_records,
    json_record,
    reading,
    write_records,
)
from tests.places import DATA, needs_data

FORMS: list[tuple[Any, Record]] = [
    ({"turns": ["你好", "嗨"]}, Dialogue(("你好", "嗨"))),
    ({"turns": ["你好", "嗨"], "system": "客服"}, Dialogue(("你好", "嗨"), "客服")),
    ({"id": 3, "dialog": ["a", "", "c"]}, Dialogue(("a", "", "c"))),
    (["a", "b"], Dialogue(("a", "b"))),
    (
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        Dialogue(("u", "a"), "s"),
    ),
    (
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": None},
        Dialogue(("u", "a")),
    ),
    ({"dialog": [{"role": "client", "content": "u"}, {"role": "counselor", "content": "a"}]}, Dialogue(("u", "a"))),
    ({"name": "x", "messages": [{"message": "a", "attrs": []}, {"message": "b"}]}, Dialogue(("a", "b"))),
    ({"instruction": "译", "input": "狗", "output": "dog"}, PromptResponse("译\n狗", "dog")),
    ({"instruction": "写诗", "input": "", "output": "床前"}, PromptResponse("写诗", "床前")),
    ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, Dialogue(("a", "b", "c", "d"))),
    ({"prompt": "p", "response": "r"}, PromptResponse("p", "r")),
    ({"prompt": "p", "response": "r", "prefix": "答：", "system": "s"}, PromptResponse("p", "r", "答：", "s")),
    ({"prompt": "p", "text": "t"}, PromptResponse("p", "t")),
    ({"prompt": "p", "response": "r", "label": False}, PromptResponse("p", "r", label=False)),
    ({"prompt": "p", "response": "r", "label": "sport"}, PromptResponse("p", "r")),
    ({"turns": ["a", "b"], "label": True}, Dialogue(("a", "b"), label=True)),
    (
        {"prompt": "p", "answers": [{"answer": "a", "score": 1}, {"answer": "b", "score": 2.5}], "prefix": "答："},
        ScoredAnswers("p", (("a", 1.0), ("b", 2.5)), "答："),
    ),
    ({"text": "一段\n文字"}, Text("一段\n文字")),
]  # fmt: skip


def _write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path


LINE_CASES = [
    (suffix, value, record)
    for suffix in (".jsonl", ".jsonl.gz", ".json", ".txt", ".data")
    for value, record in FORMS
    if ".jsonl" in suffix or isinstance(value, dict)  # elsewhere a line of a list is an array, or text in brackets
]


@pytest.mark.parametrize("suffix, value, record", LINE_CASES)
def test_a_record_a_line(tmp_path: Path, suffix: str, value: Any, record: Record) -> None:
    line = json.dumps(value, ensure_ascii=False)
    path = _write(tmp_path / f"data{suffix}", f"\n{line}\n{line}\n")
    records = list(iter_records(path))
    assert records == [record, record]
    assert [r.where for r in records] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_an_array_of_records(tmp_path: Path, suffix: str, indent: int | None) -> None:
    text = json.dumps([value for value, _ in FORMS], ensure_ascii=False, indent=indent)
    path = _write(tmp_path / f"data{suffix}", text)
    records = list(iter_records(path))
    assert records == [record for _, record in FORMS]
    if indent:  # every record's line is where its object begins
        starts = [n for n, line in enumerate(text.split("\n"), 1) if line in (" " * indent + "{", " " * indent + "[")]
        assert [int(r.where.rpartition(":")[2]) for r in records] == starts


def test_an_array_of_texts_is_an_array_of_bad_records(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", '["a", "b"]')
    with pytest.raises(RecordError, match=r"a\.json:1: found str, expected one of"):
        list(iter_records(path))


def test_tab_separated_dialogues(tmp_path: Path) -> None:
    lines = [
        "  你好\t 嗨 \t再见 \r\n",
        "[笑]一句\t好\n",
        "\t空\t\t中\t\n",
        "  \n",
        "一人\n",
        "{心}\u2028同一行\t是",
        "\u3000",
    ]
    path = _write(tmp_path / "train.txt", "".join(lines))
    assert list(iter_records(path)) == [
        Dialogue(("你好", " 嗨 ", "再见")),
        Dialogue(("[笑]一句", "好")),
        Dialogue(("空", "", "中")),
        Dialogue(("一人",)),
        Dialogue(("{心}\u2028同一行", "是")),
    ]
    assert [r.where for r in iter_records(path)] == [f"{path}:{n}" for n in (1, 2, 3, 5, 6)]


def test_a_text_dialogue_may_begin_with_a_bracket(tmp_path: Path) -> None:
    for first in ("[笑]你好\t嗨", "{心}\t嗨", "[", "[1]\t二"):
        path = _write(tmp_path / "a.txt", f"{first}x\n二\t三\n")
        assert list(iter_records(path)) == [Dialogue(tuple(f"{first}x".split("\t"))), Dialogue(("二", "三"))]


def test_plain_text_one_a_line_on_request(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", " 首行\t有制表符\n\n次行\u2028仍是次行\n")
    assert list(iter_records(path, plain="text")) == [Text(" 首行\t有制表符"), Text("次行\u2028仍是次行")]


def test_u2028_does_not_split_a_json_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "a\u2028b\x85c"}\n{"text": "d"}\n')
    assert list(iter_records(path)) == [Text("a\u2028b\x85c"), Text("d")]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert list(iter_records(_write(tmp_path / "a.txt", "\ufeff你好\t嗨\n"))) == [Dialogue(("你好", "嗨"))]


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.json", "a.jsonl.gz"):
        assert list(iter_records(_write(tmp_path / name, ""))) == []
    assert list(iter_records(_write(tmp_path / "b.json", "[ ]"))) == []


BAD = [
    ('{"text": 3}', "'text' must be text, found int"),
    ('{"txt": "a"}', "keys 'txt'; expected one of"),
    ("{}", "keys none; expected one of"),
    ("7", "found int, expected one of"),
    ('{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
    ('{"turns": []}', "a dialogue without turns"),
    ('{"turns": ["a", 3]}', "turn 2 is int"),
    ('{"turns": [{"role": "user"}]}', "turn 1 has no text"),
    ('{"turns": [{"role": "robot", "content": "a"}]}', "turn 1 has the role 'robot'; known: user, human"),
    (
        '{"turns": [{"role": "user", "content": "a"}, {"role": "human", "content": "b"}]}',
        "turns 1 and 2 are user and user; they must alternate",
    ),
    ('{"messages": [{"role": "user", "content": "a"}]}', "the last turn is the user's"),
    ('{"instruction": "a"}', "'output' must be text, found nothing"),
    ('{"instruction": "a", "output": "b", "history": ["c"]}', "'history' must be a list of [question, answer]"),
    ('{"prompt": "a"}', "'prompt' without 'response', 'text' or 'answers'"),
    ('{"prompt": "a", "answers": []}', "'answers' must be a list"),
    ('{"prompt": "a", "answers": [{"answer": "b"}]}', "answer 1: expected"),
    ('{"prompt": "a", "answers": [{"answer": 1, "score": 1}]}', "'answer' must be text, found int"),
]


@pytest.mark.parametrize("line, message", BAD)
def test_a_bad_record_says_where_and_why(tmp_path: Path, line: str, message: str) -> None:
    path = _write(tmp_path / "a.jsonl", f'{{"text": "x"}}\n{line}\n{{"text": "y"}}\n')
    with pytest.raises(RecordError) as error:
        list(iter_records(path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)

    rejects = Rejects()
    assert list(iter_records(path, rejects)) == [Text("x"), Text("y")]
    assert [(e.line, e.path) for e in rejects.errors] == [(2, str(path))]
    rejects.write(tmp_path / "out" / "rejects.jsonl")
    written = json.loads((tmp_path / "out" / "rejects.jsonl").read_text(encoding="utf-8"))
    assert written == {"file": str(path), "line": 2, "problem": rejects.errors[0].problem}


@pytest.mark.parametrize(
    "text, line, message",
    [
        ('[\n{"text": "a"},\n{"text": }\n]', 3, "not JSON"),
        ('[\n{"text": "a"}\n{"text": "b"}]', 3, "does not end with ]"),
        ('[\n{"text": "a"}', 2, "does not end with ]"),
        ('[{"text": "a"}]\n[{"text": "b"}]', 2, "text after the end of the array"),
    ],
)
def test_a_broken_array(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = _write(tmp_path / "a.json", text)
    with pytest.raises(RecordError) as error:
        list(iter_records(path))
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        list(iter_records(tmp_path / "none.txt"))
    (tmp_path / "a.txt").write_bytes("你好\t嗨".encode("gb18030"))
    with pytest.raises(RecordError, match="not UTF-8"):
        list(iter_records(tmp_path / "a.txt"))
    (tmp_path / "a.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(RecordError, match="damaged gzip file"):
        list(iter_records(tmp_path / "a.txt.gz"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"abc\tdef\n" * 1000)[:-9])
    with pytest.raises(RecordError, match="damaged gzip file"):
        list(iter_records(tmp_path / "b.txt.gz"))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.jsonl", ['{"text": "你好"}', '{"text": "坏"}', '{"text": "再见"}']),
        ("a.txt", ["你好", "坏", "再见"]),
        ("a.txt.gz", ["你好", "坏", "再见"]),
    ],
)
def test_bytes_that_are_not_utf8_spoil_their_line_alone(tmp_path: Path, name: str, lines: list[str]) -> None:
    content = "\n".join(lines).encode().replace("坏".encode(), "坏".encode()[:2])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rejects = Rejects()
    assert list(iter_records(tmp_path / name, rejects, "text")) == [Text("你好"), Text("再见")]
    assert [str(error).partition(" (")[0] for error in rejects.errors] == [f"{tmp_path / name}:2: not UTF-8"]
    with pytest.raises(RecordError, match=f"{name}:2: not UTF-8"):
        list(iter_records(tmp_path / name, plain="text"))


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", "{}\n{}\n{}\n"), ("a.json", "[{},\n{},\n{}]"), ("a.json.gz", "[\n{},{}\n,{}]")]
)
def test_a_cut_character_spoils_its_record_alone_and_the_advice_fits(tmp_path: Path, name: str, form: str) -> None:
    """In a file of UTF-8 nothing is to be converted; in one of GBK everything is."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("你好", "坏", "再见")]
    path, pack = tmp_path / name, gzip.compress if name.endswith(".gz") else bytes
    path.write_bytes(pack(form.format(*lines).encode().replace("坏".encode(), "坏".encode()[:2])))
    rejects = Rejects()
    assert list(iter_records(path, rejects)) == [Text("你好"), Text("再见")]
    problem = "not UTF-8 (found the bytes e5 9d); the text around is: a character was cut"
    assert [str(error).partition(";")[0] for error in rejects.errors] == [f"{path}:2: {problem.partition(';')[0]}"]
    assert rejects.errors[0].problem.startswith(problem)
    path.write_bytes(pack(form.format(*lines).encode("gb18030")))
    with pytest.raises(RecordError, match=r":[12]: not UTF-8 .*; convert it, e\.g\. iconv -f gb18030"):
        list(iter_records(path))


@pytest.mark.parametrize("form", ['{{"text": "a"}}\n{{"text": "{}"}}\n{{"text": "b"}}\n', '[\n{{"text": "{}"}}]'])
def test_a_record_longer_than_any_honest_one_is_a_bad_record(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST", 1000)
    monkeypatch.setattr(reading, "CHUNK", 100)
    path, rejects = tmp_path / "a.jsonl.gz", Rejects()
    for letters in (900, 5000):
        path.write_bytes(gzip.compress(form.format("好" * letters).encode()))
        if form.startswith("{") and letters > 1000:
            assert list(iter_records(path, rejects)) == [Text("a"), Text("b")]
            assert [str(one) for one in rejects.errors] == [
                f"{path}:2: longer than 1,000 characters; expected one record a line"
            ]
        elif letters > 1000:
            with pytest.raises(RecordError, match=r":2: not JSON: Unterminated string .* at column 10"):
                list(iter_records(path))
        else:
            assert Text("好" * letters) in list(iter_records(path))


def test_a_character_cut_at_the_end_of_an_array_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('[{"text": "你好"},\n{"text": "坏'.encode()[:-1])
    with pytest.raises(RecordError, match=r"a\.json:2: not UTF-8"):
        list(iter_records(tmp_path / "a.json", Rejects()))


def test_the_best_answer_is_the_first_of_the_highest() -> None:
    scored = ScoredAnswers("p", (("a", 1), ("b", 3), ("c", 3)), "答：", "s", "x:1")
    assert scored.best() == PromptResponse("p", "b", "答：", "s")
    assert scored.best().where == "x:1"


texts = st.text(st.characters(codec="utf-8"), max_size=8)
records = st.one_of(
    st.builds(Text, texts),
    st.builds(Dialogue, st.lists(texts, min_size=1).map(tuple), texts),
    st.builds(PromptResponse, texts, texts, texts, texts),
    st.builds(
        ScoredAnswers,
        texts,
        st.lists(st.tuples(texts, st.floats(allow_nan=False, allow_infinity=False)), min_size=1).map(tuple),
        texts,
        texts,
    ),
)


@given(st.lists(records), st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, some: list[Record], name: str) -> None:
    path = tmp_path_factory.mktemp("records") / name
    assert write_records(path, some) == len(some)
    assert list(iter_records(path)) == some


turns = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n{[")).map(str.strip)


@given(st.lists(st.lists(turns.filter(bool), min_size=1).map(tuple).map(Dialogue)))
def test_tabs_are_written_and_read_back(tmp_path_factory: pytest.TempPathFactory, some: list[Record]) -> None:
    path = tmp_path_factory.mktemp("records") / "a.txt"
    assert write_records(path, some) == len(some)
    assert list(iter_records(path)) == some


@pytest.mark.parametrize(
    "record", [Dialogue(("a\tb", "c")), Dialogue(("a\nb", "c")), Dialogue(("", "c")), Dialogue(("a",), "s"), Text("a")]
)
def test_tabs_refuse_what_they_would_change(tmp_path: Path, record: Record) -> None:
    with pytest.raises(RecordError, match=r"a\.txt:1: .*jsonl"):
        write_records(tmp_path / "a.txt", [record])
    assert list(tmp_path.iterdir()) == []  # nothing half-written stays


@needs_data
@pytest.mark.parametrize(
    "pattern, kind",
    [
        ("kdconv/*/*.txt*", Dialogue),
        ("kdconv/data/*/*.json.gz", Dialogue),
        ("dialogue/**/*.txt.gz", Dialogue),
        ("dialogue/lccc_base/*.json.gz", Dialogue),
        ("instruct/*alpaca*", PromptResponse),
        ("instruct/chatlm*", PromptResponse),
        ("pretrain/*.jsonl.gz", Text),
    ],
)
def test_public_data_files(pattern: str, kind: type) -> None:
    files = sorted(DATA.glob(pattern))
    assert files
    for file in files:
        if "kb_" in file.name:
            continue
        first = [record for record, _ in zip(iter_records(file), range(50), strict=False)]
        assert first and {type(record) for record in first} == {kind}, file


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"messages": [{"role": "user", "content": "问"}, CALL]}, "turn 2 calls a tool"),
        ({"messages": [{"role": "user", "content": "问"}, {"role": "tool", "content": "好"}]}, "turn 2 calls a tool"),
        ({"tools": [{"type": "function"}], "messages": [{"role": "user", "content": "问"}]}, "'tools'"),
    ],
    ids=["a call", "a result", "tools"],
)
def test_tools_are_refused_by_name_not_lost(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        json_record(value, "a:1", waiting=True)
