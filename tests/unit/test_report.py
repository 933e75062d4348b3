"""Pages: escaped, self-contained, well-formed, and with the values where they belong."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.report.page import Page
from hanmo.report.plots import number, ticks

HOSTILE = "<script>alert('x')</script>&\"$title"
VOID = {"meta", "line", "polyline"}


class Checker(HTMLParser):
    """Collects text, tags and attributes, and insists that every tag is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def full_page(text: str) -> Page:
    page = Page(text, subtitle=text, language="zh-CN")
    page.heading(text)
    page.paragraph(text)
    page.facts({text: text, "empty": None}, caption=text, note=text)
    page.table([text, "value"], [[text, 1.5], ["–", None]], caption=text, note=text)
    page.line_plot({text: [(0, 1), (10, 2)], "b": [(0, float("nan")), (5, 1.5)]}, x=text, y=text, caption=text)
    page.line_plot({"nothing": []})
    page.bar_plot({text: {"before": 0.0, "after": 3.0}}, caption=text)
    with page.details(text):
        page.dialogue([text], text, expected=text, labels=(text, text))
    page.footer(text)
    return page


def test_everything_is_escaped_and_every_tag_closed() -> None:
    html = full_page(HOSTILE).html()
    checked = Checker(html)
    assert not any(tag == "script" for tag, _ in checked.tags)
    assert not any(name.startswith("on") for _, attributes in checked.tags for name in attributes)
    # Once for each place that takes text, in two of them twice (title and heading; the axes' names are in a label).
    assert checked.text.count(HOSTILE) >= 20


def test_a_page_refers_to_nothing_outside_itself() -> None:
    html = full_page("文").html()
    for _, attributes in Checker(html).tags:
        assert not {"src", "href", "srcset", "data"} & set(attributes)
    assert not re.search(r"url\(|@import|https?:", html)
    assert "default-src 'none'" in html


def test_line_plot_scales_to_the_frame() -> None:
    page = Page("t")
    page.line_plot({"a": [(0, 0), (5, 5), (10, 10)]})
    points = re.findall(r"points='([^']*)'", page.html())
    # 5 % of room above and below: 0 → 95.45 from the top, 10 → 4.55.
    assert points == ["0.00,95.45 50.00,50.00 100.00,4.55"]


def test_line_plot_of_one_value_and_from_zero() -> None:
    page = Page("t")
    page.line_plot({"a": [(3, 7)]}, from_zero=True)
    assert "points='50.00,4.76'" in page.html()


def test_bars_are_a_share_of_the_longest_or_of_top() -> None:
    page = Page("t")
    page.bar_plot({"g": {"a": 1.0, "b": 4.0}})
    page.bar_plot({"g": {"a": 1.0}}, top=100)
    assert re.findall(r"width:([\d.]+)%", page.html().split("<main>")[1]) == ["25.00", "100.00", "1.00"]


def test_numbers_stand_on_the_right_and_rows_must_fit() -> None:
    page = Page("t")
    page.table(["name", "n"], [["a", 1], ["b", None]])
    assert page.html().count("class=number") == 3
    with pytest.raises(AssertionError):
        page.table(["one"], [["a", "b"]])


def test_facts_show_values_as_they_are() -> None:
    page = Page("t")
    page.facts({"a": 0.9, "b": 1e-5, "c": 30000, "d": (1, 2), "e": [], "f": None, "g": True, "h": "2024"})
    values = re.findall(r"<dd>(.*?)</dd>", page.html())
    assert values == ["0.9", "1e-05", "30,000", "1, 2", "none", "–", "True", "2024"]


def test_the_sides_of_a_dialogue_alternate_back_from_the_reply() -> None:
    page = Page("t")
    page.dialogue(["一", "二", "三"], "四", expected="五")
    assert re.findall(r"class='turn (\w*)'>(.)", page.html()) == [
        ("", "一"),
        ("own", "二"),
        ("", "三"),
        ("reply", "四"),
        ("expected", "五"),
    ]


def test_write_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "report.html"
    page = Page("第一页")
    page.write(path)
    page.paragraph("more")
    page.write(path)
    assert path.read_text(encoding="utf-8") == page.html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "–"),
        (True, "True"),
        (12345, "12,345"),
        (3.14159, "3.142"),
        (12345.6, "12,346"),
        (0.00012, "0.0001"),
        (0.00001234, "1.23e-05"),
        (float("inf"), "∞"),
        (0.0, "0"),
        ("<a>", "<a>"),
    ],
)
def test_numbers_as_text(value: object, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_lie_inside_and_are_about_as_many_as_asked(low: float, width: float, about: int) -> None:
    high = low + width
    values = ticks(low, high, about)
    slack = 1e-6 * width + 1e-9
    assert all(low - slack <= value <= high + slack for value in values)
    assert about / 2.5 - 1 <= len(values) <= about + 1
    assert values == sorted(values)
