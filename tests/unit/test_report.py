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


def ticks_of(page: Page, axis: str) -> list[str]:
    """The labels of an axis, from left to right or from top to bottom."""
    found = re.findall(rf"<span class='?{axis}(?: minor)?'? style='\w+:([\d.]+)%'>([^<]*)<", page.html())
    return [label for _, label in sorted(found, key=lambda entry: float(entry[0]))]


def test_steps_and_counts_have_whole_ticks() -> None:
    page = Page("t")
    page.line_plot({"a": [(0, 0), (1, 2), (2, 1)]})  # without regard to kind: 0, 0.5, 1, 1.5, 2
    assert ticks_of(page, "x") == ["0", "1", "2"] and ticks_of(page, "y") == ["2", "1", "0"]
    page = Page("t")
    page.line_plot({"a": [(3, 7)]})
    assert ticks_of(page, "x") == ["3"] and ticks_of(page, "y") == ["7"]
    page = Page("t")
    page.line_plot({"a": [(0, 0.0), (1, 2.0)]})  # measured, not counted
    assert "0.5" in ticks_of(page, "y")


def test_an_axis_of_shares_is_from_0_to_1() -> None:
    page = Page("t")
    page.line_plot({"a": [(0, 0.9), (10, 1.0)]}, share=True)
    assert ticks_of(page, "y") == ["1", "0.5", "0"]
    # 5 % of room above and below: 0.9 is (1.05 - 0.9) / 1.1 from the top.
    assert "points='0.00,13.64 100.00,4.55'" in page.html()


def test_the_axis_of_a_constant_fits_it() -> None:
    page = Page("t")
    page.line_plot({"beta": [(0, 0.05), (10, 0.05)]})
    assert {"0.03", "0.05", "0.07"} <= set(ticks_of(page, "y")) and "0" not in ticks_of(page, "y")


def test_ticks_of_values_that_are_nearly_the_same_are_short() -> None:
    page = Page("t")
    page.line_plot({"beta": [(0, 0.05), (10, 0.050004)]})
    assert ticks_of(page, "y") == ["0.0505", "0.05", "0.0495"]  # 1 % on either side


def test_a_plot_from_zero_shows_what_is_below() -> None:
    page = Page("t")
    page.line_plot({"a": [(0, -1.0), (10, 1.0)]}, from_zero=True)
    assert "points='0.00,95.45 100.00,4.55'" in page.html()


def test_lines_that_coincide_are_all_seen() -> None:
    """Each is drawn over those before it: they are broken, and the points below are larger."""
    page = Page("t")
    page.line_plot({name: [(0, 1.0), (1, 1.0)] for name in "abc"})
    html = page.html()
    assert re.findall(r"<g style='--c:var\(--c(\d)\);--size:(\d+)'", html) == [("0", "13"), ("1", "10"), ("2", "7")]
    for place, line, key in ((2, "8 6", "dashed"), (3, "2 4", "dotted")):
        assert f".plot g:nth-of-type(3n+{place}) polyline {{ stroke-dasharray: {line}; }}" in html
        assert f".lines span:nth-of-type(3n+{place}) i {{ border-top-style: {key}; }}" in html
    assert ".plot path { stroke: var(--c); stroke-width: var(--size);" in html and "class='legend lines'" in html


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


def test_every_turn_of_the_model_in_a_conversation_has_its_colour() -> None:
    page = Page("t")
    page.conversation(["一", "二", "三", "四"])
    assert re.findall(r"class='turn (\w*)'>(.)", page.html()) == [
        ("", "一"),
        ("reply", "二"),
        ("", "三"),
        ("reply", "四"),
    ]
    assert ".turn.reply { align-self: flex-end; background: var(--c0); color: var(--card);" in page.html()


def test_no_column_is_cut_off() -> None:
    """Wide texts wrap; on a narrow screen a row of many cells is a card, whose cells carry the names of their columns."""
    page = Page("t")
    page.table(["a", "b's", "c", "d"], [["汉" * 8, "汉" * 9, "x" * 16, 1.5]])
    page.table(["a", "b", "c"], [[1, 2, 3]])
    page.table(["right", *"0123456789"], [["1", *range(10)]])
    html = page.html()
    kinds = re.findall(r"<td( class=\w+)? data-name='([^']*)'>", html)
    assert kinds[:4] == [("", "a"), (" class=long", "b&#39;s"), ("", "c"), (" class=number", "d")]
    assert re.findall(r"<table( class='[^']*')?>", html) == [" class='cards'", "", " class='cards dense'"]
    style = html[: html.index("</style>")]
    assert re.search(r"\n\.long \{[^}]*white-space: normal; overflow-wrap: anywhere", style)
    assert re.search(r"\.dense th, \.dense td \{[^}]*overflow-wrap: anywhere", style)
    narrow = style[style.index("@media (max-width: 860px)") :]
    for rule in (
        r"\.cards thead \{ display: none",
        r"\.cards tr \{ display: flex; flex-wrap: wrap",
        r"\.cards td \{ display: block; min-width: 0;[^}]*white-space: normal; overflow-wrap: anywhere",
        r"\.cards td::before \{ content: attr\(data-name\)",
    ):
        assert re.search(rule, narrow), rule


def test_code_keeps_its_lines() -> None:
    page = Page("t")
    page.code("a:\n  b: <c>\n")
    assert "<p class=code>a:\n  b: &lt;c&gt;\n</p>" in page.html() and ".code { white-space: pre-wrap;" in page.html()


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
    assert all(value.is_integer() for value in ticks(low, high, about, whole=True))
    slack = 1e-6 * width + 1e-9
    assert all(low - slack <= value <= high + slack for value in values)
    assert about / 2.5 - 1 <= len(values) <= about + 1
    assert values == sorted(values)
