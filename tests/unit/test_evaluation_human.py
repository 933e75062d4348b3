"""Blind sheets: nothing in them says whose an answer is, and what comes back is counted by hand."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.errors import HanmoError, RecordError
from hanmo.evaluation.human import KEY, RATINGS, krippendorff, prepare, score, text_of

ANSWERS = {
    "ours": {"天气？": "很好", "吃什么？": "火锅</script>"},
    "person": {"天气？": "不错", "吃什么？": "面条"},
}


def fill(sheet: Path, ratings: dict[str, int]) -> None:
    """Give each answer its rating, the overall one twice as much."""
    rows = list(csv.DictReader(io.StringIO(sheet.read_bytes().decode("utf-8-sig"), newline="")))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    for row in rows:
        value = ratings[row["answer"]]
        row |= {name: str(value * 2 if name == "overall" else value) for name in RATINGS}
        writer.writerow(row)
    sheet.write_bytes(text.getvalue().encode())


def test_sheets_are_blind_shuffled_and_whole(tmp_path: Path) -> None:
    written = prepare(ANSWERS, tmp_path, raters=3)
    assert [path.name for path in written] == [f"rater{n}.{kind}" for n in (1, 2, 3) for kind in ("csv", "html")]
    orders = []
    for path in written:
        text = path.read_text(encoding="utf-8-sig")
        assert "ours" not in text and "person" not in text
        assert all(answer.split("<")[0] in text for answers in ANSWERS.values() for answer in answers.values())
        if path.suffix == ".csv":
            orders.append([row["item"] for row in csv.DictReader(io.StringIO(text, newline=""))])
    assert len(set(map(tuple, orders))) > 1 and all(sorted(order) == sorted(orders[0]) for order in orders)
    page = written[1].read_text(encoding="utf-8")
    assert page.count("</script>") == 1  # an answer cannot end the script
    with pytest.raises(HanmoError, match="may be with raters already"):
        prepare(ANSWERS, tmp_path)


def test_a_page_says_what_to_do_and_what_the_scales_mean_in_chinese_and_english(tmp_path: Path) -> None:
    page = prepare(ANSWERS, tmp_path, raters=1)[1].read_text(encoding="utf-8")
    assert "<title>回答评分 Rating of answers: rater1</title>" in page and "<h1>回答评分 Rating of answers" in page
    assert re.search(r'<section lang="zh-CN">\s*<p>请给每个回答打四个分数', page)
    assert re.search(r'<section lang="en">\s*<p>Please give every answer four ratings', page)
    scales = re.findall(r"<dt>(\S+) (\w+)</dt><dd>1 = (.+)<br>(\d+) = (.+)</dd>", page)
    assert [(english.lower(), int(top)) for _, english, _, top, _ in scales] == list(RATINGS.items())
    for chinese, _, lowest, _, highest in scales:
        assert all(re.match(r"[\u4e00-\u9fff]+", text) for text in (chinese, lowest, highest))
        assert all(re.search(r" [a-z ]+$", text) for text in (lowest, highest))
    for words in ("问题 Question", "回答 Answer", "保存 Save CSV"):
        assert words in page


def test_a_browser_keeps_the_ratings_of_each_study_apart(tmp_path: Path) -> None:
    """Two studies of one size have the same items in the same order; what is kept goes by what is rated."""
    pages = []
    for name, reply in (("first", "很好"), ("second", "不好")):
        answers = {"ours": {"天气？": reply}, "person": {"天气？": "不错"}}
        pages.append(prepare(answers, tmp_path / name, raters=1)[1].read_text(encoding="utf-8"))
    one, two = (re.findall(r'"study": "([0-9a-f]{16})"', page) for page in pages)
    assert len(one) == len(two) == 1 and one != two
    assert all('const place = "hanmo-" + data.name + "-" + data.study;' in page for page in pages)


def test_means_by_hand(tmp_path: Path) -> None:
    prepare(ANSWERS, tmp_path, raters=2)
    fill(tmp_path / "rater1.csv", {"很好": 1, "火锅</script>": 3, "不错": 5, "面条": 4})
    fill(tmp_path / "rater2.csv", {"很好": 3, "火锅</script>": 3, "不错": 5, "面条": 4})
    result = score([tmp_path / "rater1.csv", tmp_path / "rater2.csv"], tmp_path / KEY)
    assert result.systems["ours"]["fluency"].mean == 2.5 and result.systems["ours"]["overall"].mean == 5.0
    assert result.systems["person"]["relevance"].mean == 4.5
    assert (result.answers, result.raters) == (4, ["rater1", "rater2"])
    assert result.agreement["fluency"] == pytest.approx(krippendorff([[1, 3], [3, 3], [5, 5], [4, 4]]))


def test_krippendorff_by_hand() -> None:
    # Observed: 2 ordered pairs off by 1, of 4 values: 2 / 4. Expected: pairs of 1, 1, 1, 2: 6 of 12 off by 1.
    assert krippendorff([[1, 1], [1, 2]]) == pytest.approx(1 - (2 / 4) / (6 / 12))
    assert krippendorff([[1], [2]]) is None and krippendorff([[3, 3]]) is None


def test_bad_sheets_say_where(tmp_path: Path) -> None:
    prepare(ANSWERS, tmp_path, raters=1)
    sheet = tmp_path / "rater1.csv"
    with pytest.raises(HanmoError, match="no rating in"):
        score([sheet], tmp_path / KEY)
    fill(sheet, {"很好": 6, "火锅</script>": 6, "不错": 6, "面条": 6})
    with pytest.raises(RecordError, match=r"rater1.csv:2: fluency is '6'; expected a number from 1 to 5"):
        score([sheet], tmp_path / KEY)
    sheet.write_text("item,fluency\n", encoding="utf-8")
    with pytest.raises(RecordError, match="no column informativeness, relevance, overall"):
        score([sheet], tmp_path / KEY)
    with pytest.raises(HanmoError, match=r"expected the key\.json"):
        score([sheet], tmp_path / "none")
    with pytest.raises(HanmoError, match="do not answer the same questions"):
        prepare({"a": {"x": "1"}, "b": {"y": "1"}}, tmp_path / "other")


def test_command_line(tmp_path: Path) -> None:
    arguments = []
    for name, answers in ANSWERS.items():
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"prompt": asked, "response": said}, ensure_ascii=False) for asked, said in answers.items()]
        path.write_text("\n".join(lines), encoding="utf-8")
        arguments.append(f"{name}={path}")
    runner = CliRunner()
    folder = tmp_path / "sheets"
    result = runner.invoke(app, ["eval", "human-prepare", *arguments, "--output", str(folder), "--raters", "1"])
    assert result.exit_code == 0, result.output
    fill(folder / "rater1.csv", {"很好": 1, "火锅</script>": 3, "不错": 5, "面条": 4})
    result = runner.invoke(app, ["eval", "human-score", str(folder / "rater1.csv")])
    assert result.exit_code == 0 and "2.00" in result.output and "4.50" in result.output


FORMULAS = ["=1+1", "+86 10", "-5℃", "@某人", "\t=1", "\r=1", "＝1", "'=1", "''-x"]
PLAIN = ["很好", "'引号'", "1-2", "", "a=b", " =1"]


@pytest.mark.parametrize("text", FORMULAS + PLAIN)
def test_no_cell_of_a_sheet_is_a_formula_and_every_text_comes_back(text: str, tmp_path: Path) -> None:
    """A spreadsheet computes what begins with = + - @, a tab or a line break, also in full width."""
    sheet, _ = prepare({"ours": {f"问{text}": text}, "person": {f"问{text}": "答"}}, tmp_path, raters=1)
    rows = list(csv.DictReader(io.StringIO(sheet.read_bytes().decode("utf-8-sig"), newline="")))
    cells = [row["answer"] for row in rows if row["answer"] != "答"] or ["答"]
    assert cells[0].startswith("'") if text in FORMULAS else cells[0] == text
    assert text_of(cells[0]) == text
    fill(sheet, {cells[0]: 4, "答": 2})
    assert score([sheet], tmp_path / KEY).systems["ours"]["overall"].mean == 8


def test_the_sheet_that_the_page_saves_has_no_formula_either(tmp_path: Path) -> None:
    """The page is told the same pattern, and uses it for every cell."""
    page = prepare({"ours": {"问": "=1"}, "person": {"问": "答"}}, tmp_path, raters=1)[1].read_text(encoding="utf-8")
    data, _ = json.JSONDecoder().raw_decode(page, page.index('{"name"'))
    for text in FORMULAS + PLAIN:
        assert bool(re.search(data["formula"], text)) == (text in FORMULAS)
    assert "const safe = text => formula.test(text)" in page and "safe(String(text))" in page
