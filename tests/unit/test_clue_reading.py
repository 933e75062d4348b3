"""CLUE's layouts read, and every kind of bad record refused with its place."""

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.evaluation.suites.clue.suite import read_candidates
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.suite import OPTION, Example, Reading, choose_tasks, data_hash
from tests.unit.clue_files import clue_folder, write_lines
from tests.unit.strange import variants

TASKS = all_tasks()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return clue_folder(tmp_path)


def test_examples_of_each_layout(data: Path) -> None:
    found = {name: read_split(task, data, "dev") for name, task in TASKS.items()}
    assert {name: len(examples) for name, examples in found.items()} == {
        "ocnli": 6, "cmnli": 3, "chid": 3, "cmrc2018": 1, "cluewsc2020": 3, "c3": 2, "afqmc": 6, "csl": 3, "iflytek": 3,
        "tnews": 3,
    }  # fmt: skip
    assert [example.gold for example in found["ocnli"][:2]] == [0, 1]
    assert found["ocnli"][2].where.endswith("dev.json:4")  # line 3 has the label "-"
    assert found["iflytek"][0].options[found["iflytek"][0].gold] == "电台" and len(found["iflytek"][0].options) == 119
    assert found["tnews"][0].options[found["tnews"][0].gold] == "旅游" and len(found["tnews"][0].options) == 15
    wsc = found["cluewsc2020"][0]
    assert (wsc.options, wsc.gold) == (("它", "火锅"), 1)
    assert TASKS["cluewsc2020"].template.fill(wsc.fields, "火锅") == "句子：火锅，火锅很好"
    chid = found["chid"][1]
    assert (chid.options[chid.gold], chid.fields["before"], chid.fields["after"]) == ("好好", "今天____吃，", "了")
    assert chid.fields["raw_before"] == "今天#idiom1#吃，"
    assert found["c3"][1].gold == 1 and len(found["c3"][1].options) == 3
    assert found["cmrc2018"][0].answers == ("很好",)  # the same answer twice counts once


def test_gzip_first_and_archive_names(data: Path) -> None:
    plain = data / "afqmc/dev.json"
    examples = read_split(TASKS["afqmc"], data, "dev")
    with gzip.open(data / "afqmc/dev.json.gz", "wb") as file:
        file.write(plain.read_bytes())
    plain.unlink()
    (data / "afqmc").rename(data / "afqmc_public")
    assert data_hash(read_split(TASKS["afqmc"], data, "dev")) == data_hash(examples)
    assert len(read_split(TASKS["afqmc"], data, "dev", first=2)) == 2


def test_answers_of_fewclue_stand_in_the_records(tmp_path: Path) -> None:
    write_lines(tmp_path / "chid/dev.json", [{"candidates": ["甲", "乙"], "content": "很#idiom#好", "answer": 1}])
    (example,) = read_split(TASKS["chid"], tmp_path, "dev")
    assert (example.gold, example.fields["after"]) == (1, "好")


def test_missing_folders_and_splits_are_named(data: Path) -> None:
    with pytest.raises(HanmoError, match="no folder for TNEWS; expected one of tnews, tnews_public"):
        read_split(TASKS["tnews"], data / "csl", "dev")
    (data / "tnews/train.json").unlink()
    with pytest.raises(HanmoError, match=r"no train split of TNEWS.*--shots 0"):
        read_split(TASKS["tnews"], data, "train")
    (data / "tnews/dev.json").write_text("\n")
    with pytest.raises(HanmoError, match="no example of TNEWS"):
        read_split(TASKS["tnews"], data, "dev")
    (data / "chid/dev_answer.json").unlink()
    (data / "chid/train_answer.json").unlink()
    with pytest.raises(HanmoError, match=r"expected dev_answer\.json"):
        read_split(TASKS["chid"], data, "dev")


GOOD = {"sentence1": "a", "sentence2": "b", "label": "0"}
SPAN = {"span1_text": "火", "span2_text": "它", "span2_index": 1}
BAD: list[tuple[str, Any, str]] = [
    ("afqmc", {"sentence1": "a", "label": "0"}, "field 'sentence2' is missing; expected a string"),
    ("afqmc", {**GOOD, "sentence1": 3}, "field 'sentence1' is int"),
    ("afqmc", {**GOOD, "label": "2"}, "label '2' is none of AFQMC's; expected one of 0, 1"),
    ("afqmc", {**GOOD, "label": True}, "label True"),
    ("afqmc", ["a"], "expected a JSON object"),
    ("tnews", {"label": "105", "sentence": "a"}, "label '105' is none of TNEWS's"),
    (
        "iflytek",
        {"label": "1", "label_des": "打车", "sentence": "a"},
        "label_des is '打车', but label 1 means '地图导航'",
    ),
    ("csl", {"abst": "a", "keyword": "b", "label": "0"}, "keyword is 'b'; expected a list"),
    ("cluewsc2020", {"text": "火它", "label": "true"}, "no object 'target'"),
    ("cluewsc2020", {"text": "火它", "label": "true", "target": {**SPAN, "span2_index": 0}}, "not where '它' stands"),
    ("cluewsc2020", {"text": "火它", "label": "1", "target": SPAN}, "expected 'true' or 'false'"),
    ("chid", {"content": ["#idiom1#"]}, "candidates are missing"),
    ("chid", {"candidates": ["a", "b"]}, "content is missing"),
    ("chid", {"candidates": ["a", "b"], "content": "#idiom1#", "answer": 2}, "has the answer 2; expected 0 to 1"),
]


@pytest.mark.parametrize(("name", "record", "message"), BAD)
def test_bad_records_say_where_and_what(tmp_path: Path, name: str, record: Any, message: str) -> None:
    path = write_lines(tmp_path / name / "dev.json", [record])
    with pytest.raises(RecordError) as caught:
        read_split(TASKS[name], tmp_path, "dev")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("afqmc", '{"a": ', "dev.json:1: not JSON"),
        ("c3", "{}", "expected a JSON array"),
        ("c3", "[[[]]]", "expected [lines, questions, id]"),
        (
            "c3",
            json.dumps([[["a"], [{"question": "q", "choice": ["x", "y"], "answer": "z"}], "1"]]),
            "'z' is not among",
        ),
        ("cmrc2018", "[]", "expected the SQuAD form"),
        (
            "cmrc2018",
            json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "q"}]}]}]}),
            "without answers",
        ),
    ],
)
def test_bad_documents(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "dev.json").write_text(content)
    with pytest.raises(RecordError) as caught:
        read_split(TASKS[name], tmp_path, "dev")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_file_of_strange_values_is_read_or_refused_with_a_message(name: str, data: Path) -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in (data / name).iterdir()}
    refused = 0
    for file, text in found.items():
        whole = name in ("c3", "cmrc2018") or "answer" in file
        for content in variants(json.loads(text if whole else text.splitlines()[0])):
            for other, original in found.items():
                (data / name / other).write_text(original, encoding="utf-8")
            (data / name / file).write_text(json.dumps(content), encoding="utf-8")
            try:
                examples = read_split(TASKS[name], data, "dev")
            except HanmoError:
                refused += 1
            else:
                texts = [text for one in examples for text in (*one.fields.values(), *one.options, *one.answers)]
                assert all(isinstance(text, str) for text in texts)
    assert refused


@pytest.mark.parametrize("entry", variants({"candidates": [["农业", "旅游"]], "labelled": ["问"]}))
def test_candidates_of_strange_values_are_refused_with_a_message(entry: Any, tmp_path: Path) -> None:
    example = Example({}, ("农业", "旅游"), 0, "dev.json:1", "1")
    (tmp_path / "drawn.json").write_text(json.dumps({"tnews": entry}), encoding="utf-8")
    try:
        drawn, pool = read_candidates(tmp_path / "drawn.json", TASKS["tnews"], [example])
    except HanmoError as error:
        assert str(error).startswith(f"{tmp_path / 'drawn.json'}: ")
    else:
        assert set(drawn[0]) <= {"农业", "旅游"} and all(isinstance(text, str) for text in pool)


def test_tasks_by_name() -> None:
    assert [task.name for task in choose_tasks("CLUE task", all_tasks(), ["C3", "ocnli"])] == ["ocnli", "c3"]
    assert len(choose_tasks("CLUE task", all_tasks(), [])) == 10
    with pytest.raises(ConfigError, match="did you mean tnews"):
        choose_tasks("CLUE task", all_tasks(), ["tnew"])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_table_of_tasks_is_whole(task: Any, data: Path) -> None:
    (example, *_) = read_split(task, data, "dev")
    assert task.template.text.count(OPTION) == 1
    assert task.reading in get_args(Reading)
    assert set(task.shorten) <= set(example.fields) and set(task.shorten.values()) <= {"start", "end"}
    assert set(task.published.words) in (set(), set(task.labels), {"true", "false"})
    before, after = task.template.around(example.fields)
    assert not after or task.name in ("chid", "cluewsc2020")  # the candidate comes last wherever it can
    assert task.template.fill(example.fields, "X") == f"{before}X{after}"
