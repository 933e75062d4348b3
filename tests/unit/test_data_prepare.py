"""Readers of published sources: layouts, compression, bad input, splits."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.prepare.from_source import prepare
from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.dialogues import unspaced
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.data.prepare.splits import Shares
from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.records import (
    Dialogue,
    PromptResponse,
    Rejects,
    ScoredAnswers,
    Text,
    iter_records,
    json_members,
    opened_text,
    reading,
)


def _records(source: str, place: Path, **switches: Any) -> list[Any]:
    return [item.record for item in SOURCES[source](place, SourceReader(**switches))]


def _json(path: Path, value: Any) -> Path:
    text = json.dumps(value, ensure_ascii=False)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("val.json", text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_couplets_in_both_forms_are_the_same(tmp_path: Path) -> None:
    firsts = ["春风", "夏雨", "秋霜", "明月松间照", "白日依山尽", "天长地久"]
    seconds = ["秋月", "冬雪", "春露", "清泉石上流", "黄河入海流", "花好月圆"]
    single, paired = tmp_path / "single", tmp_path / "paired"
    single.mkdir()
    paired.mkdir()
    (single / "a.txt").write_text("\n".join(f"{a} {b}" for a, b in zip(firsts, seconds, strict=True)), encoding="utf-8")
    for name, lines in (("in", firsts), ("out", seconds)):
        text = "\n".join(" ".join(line) + " " for line in lines) + "\n"
        (paired / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    ours, theirs = _records("couplets", single), _records("couplets", paired)
    assert ours == theirs
    assert [record.prompt for record in ours] == [f"上联：{line}" for line in firsts]
    assert ours[0].answers[0] == ("秋月", 1.0)
    assert {text for text, score in ours[0].answers if score == 0} == {"冬雪", "春露"}


def test_couplets_that_do_not_answer_each_other(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("春 风\n夏 雨\n", encoding="utf-8")
    (tmp_path / "out.txt").write_text("秋 月\n", encoding="utf-8")
    with pytest.raises(RecordError, match="lines must answer each other"):
        _records("couplets", tmp_path)
    path = tmp_path / "single" / "c.txt"
    path.parent.mkdir()
    path.write_text("春风 秋月\n春风秋月来\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"c\.txt:2: expected two halves"):
        _records("couplets", path)


def test_negatives_never_leave_their_split(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    halves = [chr(0x4E00 + n) * (2 + n % 4) for n in range(400)]
    path.write_text("\n".join(f"{a} {a[::-1]}" for a in halves), encoding="utf-8")
    shares = Shares(0.2, 0.2)
    owner = {half: shares.split(half) for half in halves}
    for item in SOURCES["couplets"](path, SourceReader(shares=shares)):
        assert {owner[text] for text, _ in item.record.answers} == {shares.split(item.key)}
    assert set(owner.values()) == {"train", "dev", "test"}


def test_classical_keeps_a_pair_without_an_empty_line_after_it(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("古文：一\n现代文：甲\n古文：二\n现代文：乙\n\n古文：三\n现代文：丙", encoding="utf-8")
    ours = {frozenset((r.prompt, r.prefix + r.answers[0][0])) for r in _records("classical", path)}
    assert ours == {frozenset((f"古文：{a}", f"现代文：{b}")) for a, b in zip("一二三", "甲乙丙", strict=True)}
    assert len(_records("classical", path, published=True)) == 1  # only one has an empty line after it


def test_classical_names_what_is_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("古文：一\n\n古文：二\n现代文：乙\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"book\.txt:1: a sentence without its translation"):
        _records("classical", path)
    rejects = Rejects()
    assert len(_records("classical", path, rejects=rejects)) == 1
    assert len(rejects) == 1


@pytest.mark.parametrize("folder", ["plain", "shi", "ci"])
def test_poetry_does_not_look_at_the_folders_above(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("opencc")
    for name, entry in (
        ("caocao/caocao.json", {"title": "观沧海", "paragraphs": ["东临碣石，以观沧海。"]}),
        ("全唐诗/poet.tang.0.json", {"author": "李白", "title": "靜夜思", "paragraphs": ["床前明月光，疑是地上霜。"]}),
        (
            "huajianji/huajianji-1-juan.json",
            {"author": "温庭筠", "title": "菩萨蛮", "paragraphs": ["小山重叠金明灭。"]},
        ),
        ("错/authors.json", {"name": "无"}),
    ):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _json(path, [entry])
    reader = SourceReader()
    prompts = [item.record.prompt for item in SOURCES["poetry"](tmp_path / folder, reader)]
    assert prompts == [
        "以曹操的风格，写一首古体诗，题为观沧海",
        "以李白的风格，写一首五言诗，题为静夜思",
        "以温庭筠的风格，写一首词，题为菩萨蛮",
    ]
    assert reader.dropped.total() == 1


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_kdconv(name: str, tmp_path: Path) -> None:
    messages = [{"message": "看过吗？"}, {"message": "看过，\t很好\n看", "attrs": [{"name": "x"}]}, {"message": "是的"}]
    path = _json(tmp_path / name, [{"name": "电影", "messages": messages}, {"name": "短", "messages": messages[:1]}])
    done = prepare("kdconv", path, tmp_path / "out.txt", SourceReader(), every_reply=True)
    assert (tmp_path / "out.txt").read_text(
        encoding="utf-8"
    ) == "看过吗？\t看过， 很好 看\n看过吗？\t看过， 很好 看\t是的\n"
    assert done.dropped == {"a dialogue without a reply": 1}


@pytest.mark.parametrize("name", ["val.json", "val.json.gz", "val.json.zip"])
def test_crosswoz(name: str, tmp_path: Path) -> None:
    value = {"7": {"messages": [{"content": "你好", "role": "usr"}, {"content": "您好", "role": "sys"}], "goal": []}}
    assert _records("crosswoz", _json(tmp_path / name, value)) == [Dialogue(("你好", "您好"))]


def test_lccc_in_every_layout(tmp_path: Path) -> None:
    dialogues = [["我 用 visual studio", "是 吗 ？"], ["1 2 3", "好"]]
    expected = [Dialogue(("我用visual studio", "是吗？")), Dialogue(("123", "好"))]
    assert _records("lccc", _json(tmp_path / "a.json", dialogues)) == expected
    assert _records("lccc", _json(tmp_path / "b.json.gz", {"train": dialogues[:1], "valid": dialogues[1:]})) == expected
    lines = tmp_path / "c.jsonl"
    lines.write_text("\n".join(map(json.dumps, dialogues)), encoding="utf-8")
    assert _records("lccc", lines) == expected


def test_unspaced_keeps_words_apart() -> None:
    assert unspaced("i phone 和 i pad 1 2 寸") == "i phone和i pad12寸"


def test_chats_are_cut_to_whole_exchanges(tmp_path: Path) -> None:
    def turns(*roles: str) -> list[dict[str, str]]:
        return [{"from": role, "value": f"{role}{n}"} for n, role in enumerate(roles)]

    cases = [
        turns("human", "gpt", "human"),
        turns("gpt", "human", "gpt"),
        turns("system", "human", "gpt"),
        turns("human"),
        turns("gpt"),
    ]
    path = _json(tmp_path / "chat.json", [{"conversations": case} for case in cases])
    reader = SourceReader()
    found = [item.record for item in SOURCES["sharegpt"](path, reader)]
    assert found == [
        Dialogue(("human0", "gpt1")),
        Dialogue(("human1", "gpt2")),
        Dialogue(("human1", "gpt2"), system="system0"),
    ]
    assert reader.dropped.total() == 2
    bad = _json(tmp_path / "bad.json", [{"conversations": turns("human", "human", "gpt")}])
    with pytest.raises(RecordError, match=r"bad\.json:1: .*alternate"):
        _records("sharegpt", bad)


def test_alpaca(tmp_path: Path) -> None:
    path = _json(
        tmp_path / "a.json",
        [{"instruction": "翻译", "input": "hello", "output": "你好"}, {"instruction": "x", "output": ""}],
    )
    assert _records("alpaca", path) == [PromptResponse("翻译\nhello", "你好")]


def test_preferences_in_every_form(tmp_path: Path) -> None:
    human = {"from": "human", "value": "问"}
    entries = [
        {
            "conversations": [human],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        {"instruction": "问", "input": "", "output": ["好", "中", "坏"], "history": [["早", "安"]]},
        {"prompt": "问", "chosen": "好", "rejected": "坏"},
        {"prompt": "问", "chosen": "好", "rejected": "好"},
    ]
    reader = SourceReader()
    found = [item.record for item in SOURCES["dpo"](_json(tmp_path / "p.json", entries), reader)]
    two = (("好", 1.0), ("坏", 0.0))
    assert found == [
        ScoredAnswers("问", two),
        ScoredAnswers("问", (("好", 2.0), ("中", 1.0), ("坏", 0.0)), history=("早", "安")),
        ScoredAnswers("问", two),
    ]
    assert reader.dropped == {"answers that are the same": 1}


def test_weibo_bad_likes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    post = {"article": "新 闻", "abstract": "摘 要", "comments": [["好", "many"]]}
    path.write_text(json.dumps(post, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"w\.json:1: comment 1: the likes are 'many'"):
        _records("weibo", path)


def test_zhidao_wants_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "z.csv"
    path.write_text("title,answer\n问,答\n", encoding="utf-8")
    with pytest.raises(RecordError, match="no column question, reply, is_best"):
        _records("zhidao", path)


def test_unknown_source_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean couplets"):
        prepare("couplet", tmp_path, tmp_path / "out", SourceReader())
    with pytest.raises(HanmoError, match="no files named"):
        _records("kdconv", tmp_path)


def test_splits_are_whole_and_stable_when_data_grows(tmp_path: Path) -> None:
    def run(count: int, name: str) -> dict[str, set[str]]:
        entries = [{"title": f"第{n}个问题是什么", "desc": "", "answer": f"答{n}"} for n in range(count)]
        path = tmp_path / f"{name}.json"
        path.write_text("\n".join(json.dumps(e, ensure_ascii=False) for e in entries), encoding="utf-8")
        done = prepare("baike", path, tmp_path / name, SourceReader(shares=Shares(0.1, 0.1)))
        return {split: {r.prompt for r in iter_records(file)} for split, file in done.files.items()}

    small, large = run(300, "small"), run(600, "large")
    assert sum(map(len, large.values())) == 600
    for split in ("train", "dev", "test"):
        assert small[split] <= large[split]
        assert small[split]
    assert 30 < len(large["dev"]) < 100


def test_one_file_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need a folder"):
        prepare("baike", tmp_path, tmp_path / "out.jsonl", SourceReader(shares=Shares(0.1, 0)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def _members(path: Path) -> list[tuple[int, str, Any]]:
    with opened_text(path) as file:
        return list(json_members(path, file))


@given(st.lists(VALUES), st.integers(1, 9), st.sampled_from([None, 1]))
def test_arrays_are_read_the_same_in_any_chunks(items: list[Any], chunk: int, indent: int | None) -> None:
    """An array that is read a few characters at a time gives what reading it whole gives."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(items, ensure_ascii=False, indent=indent), encoding="utf-8", newline="")
        assert [value for _, _, value in _members(path)] == items
        path.write_text(json.dumps({"a": items, "b": 1}, ensure_ascii=False), encoding="utf-8", newline="")
        assert [(key, value) for _, key, value in _members(path)] == [("a", items), ("b", 1)]


def test_damaged_array_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n["好", "的"],\n["坏" "了"]\n]', encoding="utf-8")
    with pytest.raises(RecordError, match=r"a\.json:3: not JSON"):
        _records("lccc", path)
    path.write_text('[\n["好", "的"]', encoding="utf-8")
    with pytest.raises(RecordError, match="expected a comma or"):
        _records("lccc", path)


def test_values_after_the_end_of_an_array_are_not_passed_over(tmp_path: Path) -> None:
    """Articles one a line, in a file that is not named .jsonl, used to end after the first."""
    path = tmp_path / "news.json"
    path.write_text('["题", "文"]\n["题", "文"]\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"news\.json:2: text after the end of the array.*\.jsonl"):
        _records("news", path, rejects=Rejects())


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_damage_in_an_array_names_line_and_column(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text": "b"}, {"text": x}]', encoding="utf-8")
    with pytest.raises(RecordError, match=r"a\.json:2: not JSON: Expecting value at column 26"):
        list(iter_records(path))


@pytest.mark.parametrize("published", [False, True])
def test_a_thread_of_different_questions_takes_that_of_its_last_reply(published: bool, tmp_path: Path) -> None:
    """As the original does, which sorts the replies of a title, the best first, and ends with the last one's prompt."""
    path = tmp_path / "z.csv"
    lines = [
        "title,question,reply,is_best",
        "甲,甲,答一,0",  # sorted behind 答二; its question is the title
        "甲,何时,答二,1",
        "乙,何地,答三,1",
        "乙,何故,答四,0",
        "丙,,答五,1",
        "丙,何人,答六,1",  # of equal ones the order of the file
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = {record.prompt: record.answers for record in _records("zhidao", path, published=published)}
    assert records == {
        "问题：甲": (("答二", 1.0), ("答一", 0.0)),
        "问题：乙 内容：何故": (("答三", 1.0), ("答四", 0.0)),
        "问题：丙 内容：何人": (("答五", 1.0), ("答六", 1.0)),
    }


@pytest.mark.parametrize(
    ("title", "prompts"),
    [
        ("", ["标题： 内容："]),
        ("短", ["标题：短 内容："]),
        ("<b> 短 </b>", ["标题：短 内容："]),  # counted as it is shown
        ("标题", ["标题：标题 内容：", "内容："]),
    ],
)
def test_news_with_a_title_of_one_character_make_one_sample(title: str, prompts: list[str], tmp_path: Path) -> None:
    path = _json(tmp_path / "n.json", [[title, "正文" * 51]])
    records = _records("news", path)
    assert [record.prompt for record in records] == prompts
    assert {record.response for record in records} == {"正文" * 51}


def test_wudao_as_released_is_texts_with_their_titles(tmp_path: Path) -> None:
    """Arrays of objects in several files; the title is the first line, and a document without content is of no use."""
    entries = [
        {
            "id": 1,
            "uniqueKey": "a",
            "titleUkey": "b",
            "dataType": "百科",
            "title": "长城",
            "content": " 长城很长。\n也很老。",
        },
        {"id": 2, "uniqueKey": "c", "titleUkey": "d", "dataType": "博客", "title": "", "content": "没有题目"},
        {"id": 3, "uniqueKey": "e", "titleUkey": "f", "dataType": "博客", "title": "只有题目", "content": " "},
    ]
    _json(tmp_path / "part-2021278643.json", entries)
    _json(tmp_path / "part-2021278644.json", [{"title": "二", "content": "第二个文件"}])
    reader = SourceReader()
    found = list(SOURCES["wudao"](tmp_path, reader))
    assert [item.record for item in found] == [
        Text("长城\n长城很长。\n也很老。"),
        Text("没有题目"),
        Text("二\n第二个文件"),
    ]
    assert reader.dropped == {"an entry without a text worth learning": 1}
    assert _records("wudao", tmp_path)[0].where.endswith("part-2021278643.json:1")
    _json(tmp_path / "part-2021278645.json", [{"title": 3, "content": "文"}])
    with pytest.raises(RecordError, match=r"part-2021278645\.json:1: 'title' must be text"):
        _records("wudao", tmp_path)
