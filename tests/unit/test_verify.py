"""Each verifier by hand; numbers by a writer of numerals of this file's own."""

import sys
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import ConfigError, UnsupportedError
from hanmo.verify import VERIFIERS, couplets, verifier
from hanmo.verify.choices import choice
from hanmo.verify.couplets import couplet
from hanmo.verify.json_schema import json_schema
from hanmo.verify.numbers import meant, number
from hanmo.verify.numerals import numeral
from hanmo.verify.texts import chinese, contains, exact, format, length, repetition
from tests.unit.verified_replies import COUPLETS

# Numbers

DIGITS = "零一二三四五六七八九"


def written(value: int) -> str:
    """A whole number in Chinese, by the rules of the textbook: four places at a time, one 零 for any gap."""
    if value < 0:
        return "负" + written(-value)
    if value == 0:
        return DIGITS[0]
    for size, name in ((10**16, "亿亿"), (10**8, "亿"), (10**4, "万")):
        if value >= size:
            high, low = divmod(value, size)
            gap = "零" if 0 < low < size // 10 else ""
            return written(high) + name + (gap + written(low) if low else "")
    text, gap = "", False
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, size)
        if digit:
            text += ("零" if gap and text else "") + DIGITS[digit] + name
        gap = digit == 0
        if not value:
            break
    return text


@given(st.integers(-(10**20) + 1, 10**20 - 1))
def test_a_whole_number_written_in_chinese_reads_back(value: int) -> None:
    assert meant(f"答案是{written(value)}。") == value
    assert meant(f"一共有{written(value)}个。") == value


@given(st.integers(1, 10**8), st.integers(0, 10**8), st.integers(0, 1000))
def test_a_fraction_written_in_chinese_reads_back(bottom: int, top: int, whole: int) -> None:
    text = f"{written(bottom)}分之{written(top)}"
    assert meant(text) == Fraction(top, bottom)
    assert meant(f"负{text}") == -Fraction(top, bottom)
    assert meant(f"答案是{written(whole)}又{text}") == whole + Fraction(top, bottom)


@given(st.integers(0, 10**12), st.text("0123456789", min_size=1, max_size=9))
def test_a_decimal_written_in_chinese_or_full_width_reads_back(whole: int, decimals: str) -> None:
    value = Fraction(f"{whole}.{decimals}")
    assert meant(f"{written(whole)}点{''.join(DIGITS[int(digit)] for digit in decimals)}") == value
    wide = str.maketrans("0123456789.", "０１２３４５６７８９．")
    assert meant(f"{whole}.{decimals}".translate(wide)) == value
    assert meant(f"{whole:,}.{decimals}元") == value
    assert meant(f"{whole}.{decimals}%") == value / 100


@given(st.integers(1, 999), st.integers(1, 999), st.integers(0, 99))
def test_a_fraction_of_latex_reads_back(top: int, bottom: int, whole: int) -> None:
    assert meant(rf"\boxed{{\frac{{{top}}}{{{bottom}}}}}") == Fraction(top, bottom)
    assert meant(rf"答案是${whole}\dfrac{{{top}}}{{{bottom}}}$") == whole + Fraction(top, bottom)


@given(st.text("一二三十百千万亿零点分之又成半%/,.-+0123456789\\frac{}^×=（）答案是不对boxed ", max_size=80))
def test_no_text_breaks_the_reader_of_numbers(text: str) -> None:
    found = meant(text)
    assert found is None or isinstance(found, Fraction)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("一万二", 12000), ("二百五", 250), ("两千零六", 2006), ("三千五百万", 35_000_000), ("一亿亿", 10**16),
        ("一万亿", 10**12), ("壹佰贰拾叁", 123), ("3万5千", 35000), ("1.5万", 15000), ("三点五万", 35000), ("十", 10),
        ("二〇二六", 2026), ("千万", None), ("万一", None), ("二三十", None), ("三四", None), ("", None), ("9" * 61, None),
    ],
)  # fmt: skip
def test_numerals(text: str, value: int | None) -> None:
    assert numeral(text) == value


def test_a_text_of_numbers_alone_costs_no_time() -> None:
    for text in ("9" * 100_000, "一" * 100_000, "万" * 100_000, "1,111" * 20_000, "10^999999999", "-" * 100_000):
        assert meant(text) is None or abs(meant(text) or 0) < 10**100


def test_numbers_are_compared_as_fractions_exactly() -> None:
    assert number("1/3", "三分之一") is True and number("0.3333333333333333", "1/3") is False
    assert number("0.1", "1/10") is True and number("50%", "50") is False
    assert number("7", "没有数") is None and number("没有数", "7") is False


# Choices


def test_a_choice_is_all_letters_that_are_meant() -> None:
    assert choice("答案：A、C", "AC") is True and choice("A", "AC") is False
    assert choice("答案是B", "答案：B") is True and choice("B", "北京") is None


# Texts


def test_exact_and_contained_answers() -> None:
    assert exact("《红楼梦》。", "红楼梦") is True and exact("红楼", "红楼梦") is False and exact("无", "。") is None
    assert exact("<think>北京？</think>上海", "上海") is True
    assert contains("答案是 ＢＥＩＪＩＮＧ 。", "beijing") is True and contains("12.5元", "12") is False
    assert contains("-3", "3") is True and contains("3.0", "0") is False and contains("无", "") is None


def test_length_counts_characters_and_no_white_space() -> None:
    assert length("一 二\n三", least=3, most=3) and not length("一二三四", most=3) and not length("一", least=2)
    with pytest.raises(ConfigError, match="least=4 and most=3"):
        length("", least=4, most=3)


def test_repetition_is_the_share_of_n_grams_that_stood_before() -> None:
    assert repetition("甲乙甲乙甲乙", size=2) == 1 - 2 / 5  # 甲乙 乙甲 甲乙 乙甲 甲乙
    assert repetition("甲乙丙丁", size=2) == repetition("甲", size=2) == 0


def test_chinese_is_the_share_of_chinese_letters() -> None:
    assert chinese("你好ab，1。") == 0.5 and chinese("𠮷祥") == 1 and chinese("123，") == 0


def test_format_takes_the_whole_reply_and_an_endless_pattern_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert format("<想>一\n二</想>三\n", pattern="<想>.*</想>.+") and not format("好<想></想>三", pattern="<想>.*")
    with pytest.raises(ConfigError, match=r"pattern '\(': no regular expression: missing \)"):
        format("", pattern="(")
    monkeypatch.setattr("hanmo.verify.texts.PATTERN_SECONDS", 0.05)
    with pytest.raises(ConfigError, match=r"takes more than 0.05 seconds; write it without repeats in repeats"):
        format("a" * 40 + "b", pattern="(a|aa)+")


# JSON

PERSON: dict[str, Any] = {
    "type": "object", "required": ["姓名", "年龄"], "additionalProperties": False,
    "properties": {
        "姓名": {"type": "string"}, "年龄": {"type": "integer"}, "级": {"enum": [1, "甲", None]},
        "友": {"type": "array", "items": {"type": ["string", "null"]}},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ('{"姓名": "李白", "年龄": 61}', True),
        ('{"姓名": "李白", "年龄": 61.0, "级": 1, "友": ["杜甫", null]}', True),
        ('如下：\n```json\n{"姓名": "李白", "年龄": 61}\n```', True),
        ('如下：{"姓名": "李白", "年龄": 61}', False),
        ('{"姓名": "李白"}', False),
        ('{"姓名": "李白", "年龄": "61"}', False),
        ('{"姓名": "李白", "年龄": true}', False),
        ('{"姓名": "李白", "年龄": 61.5}', False),
        ('{"姓名": "李白", "年龄": NaN}', False),
        ('{"姓名": "李白", "年龄": 61, "级": true}', False),
        ('{"姓名": "李白", "年龄": 61, "友": [1]}', False),
        ('{"姓名": "李白", "年龄": 61, "字": "太白"}', False),
        ("[]", False),
        ("{" * 100_000, False),
    ],
)
def test_json_fits_a_schema(reply: str, right: bool) -> None:
    assert json_schema(reply, schema=PERSON) is right


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"minimum": 3}, r"schema: unknown keyword 'minimum'"),
        ({"type": "text"}, r"schema.type: unknown type 'text'"),
        ({"properties": {"a": {"type": "strin"}}}, r"schema.properties.a.type: .*did you mean string"),
        ({"required": "a"}, r"schema.required: expected a list of names"),
        ({"items": []}, r"schema.items: expected a mapping of keywords, found list"),
    ],
)
def test_a_schema_with_what_would_be_ignored_is_an_error(schema: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        json_schema("{}", schema=schema)


# Couplets

READINGS = {  # by hand, from a dictionary
    "hai3": "海", "kuo4": "阔", "ping2": "凭", "yu2": "鱼", "yue4": "跃", "tian1": "天", "gao1": "高", "niao3": "鸟",
    "fei1": "飞", "chun1": "春", "feng1": "风", "yi4": "意", "ma3": "马", "ti2": "蹄", "ji2": "疾", "qiu1": "秋",
    "qing2": "情", "ying3": "影", "yan4": "雁", "ming2": "明", "song1": "松", "zhao4": "照", "qing1": "清",
    "quan2": "泉", "shi2": "石", "liu2": "流", "da4": "大", "shu4": "树", "bian1": "边", "lao3": "老", "yi2": "怡",
}  # fmt: skip
SEVERAL = {
    "任": ["ren4", "ren2"], "长": ["chang2", "zhang3"], "间": ["jian1", "jian4"], "上": ["shang4", "shang3"],
    "了": ["le5", "liao3"], "得": ["de5", "de2", "dei3"], "月": ["yue4"], "路": ["lu4"], "翔": ["xiang2"],
}  # fmt: skip


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pypinyin with the readings above."""
    readings = {character: [reading] for reading, character in READINGS.items()} | SEVERAL

    def pinyin(text: str, heteronym: bool, style: str, neutral_tone_with_five: bool) -> list[list[str]]:
        assert heteronym and style == "TONE3" and neutral_tone_with_five
        return [readings.get(text, [text])]

    couplets.tones.cache_clear()
    monkeypatch.setitem(sys.modules, "pypinyin", SimpleNamespace(Style=SimpleNamespace(TONE3="TONE3"), pinyin=pinyin))
    yield
    couplets.tones.cache_clear()


@pytest.mark.usefixtures("dictionary")
@pytest.mark.parametrize(("name", "settings", "first", "reply", "right"), COUPLETS)
def test_a_second_line_goes_with_the_first(
    name: str, settings: dict[str, Any], first: str, reply: str, right: bool
) -> None:
    assert (couplet(reply, first) == 1) is right


@pytest.mark.usefixtures("dictionary")
def test_the_score_of_a_couplet_is_the_share_of_opposed_places() -> None:
    assert couplet("明月树边老", "清流石上照") == pytest.approx(2 / 3)  # 月/流 and 边/上 are opposed, 老/照 are not
    assert couplet("大树，雁影长", "春风，马蹄疾") == 1  # the places 2 of both clauses, and the last: 长 may be zhǎng
    assert couplet("天", "海") == 1 and couplet("鸟", "海") == 0
    assert couplet("天高", "没有汉字以外：") is not None and couplet("天高", "abc") is None
    prompt = "请对出下联。上联：海阔凭鱼跃，下联："
    assert couplet("天高任鸟飞\n解析：海对天。", prompt) == 1


def test_a_couplet_without_pypinyin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    couplets.tones.cache_clear()
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'hanmo\[verify\]'"):
        verifier("couplet")


def test_the_tones_of_pypinyin() -> None:
    pytest.importorskip("pypinyin", reason="needs pypinyin (the extra verify)")
    couplets.tones.cache_clear()
    assert couplets.tones("月") == {"仄"} and couplets.tones("长") == couplets.tones("了") == {"平", "仄"}
    assert couplet("大树路边老", "明月松间照") < 1 and couplet("天高任鸟飞", "海阔凭鱼跃") == 1


# As functions of records


def test_a_verifier_reads_a_field_of_the_record() -> None:
    score = verifier("number", field="结果")
    records = [
        {"结果": "三", "response": "4"},
        {"结果": 0.25},
        {"结果": ["一半", "0.5", 3]},
        {"结果": None},
        {},
        {"结果": "无"},
    ]
    assert score([""] * 6, ["3", "1/4", "3", "3", "3", "3"], records) == [1.0, 1.0, 1.0, None, None, None]
    with pytest.raises(ConfigError, match=r"the record's '结果' is \{'a': 1\}; expected text, a number, or a list"):
        score([""], ["3"], [{"结果": {"a": 1}}])
    assert verifier("length", most=2)(["", ""], ["一二", "一二三"], [{}, {}]) == [1.0, 0.0]


@pytest.mark.usefixtures("dictionary")
def test_a_couplet_takes_the_prompt_where_the_record_has_no_field() -> None:
    records = [{}, {"prompt": "海阔凭鱼跃"}]
    assert verifier("couplet")(["海阔凭鱼跃", "对对子"], ["天高任鸟飞"] * 2, records) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("numbr", {}, "unknown verifier 'numbr': did you mean number"),
        ("number", {"pattern": "x"}, "number: unknown option 'pattern': known: field"),
        ("chinese", {"most": 1}, "chinese: has no options"),
        ("format", {}, "format: needs pattern"),
        ("format", {"pattern": "("}, "no regular expression"),
        ("json", {"schema": {"minimum": 1}}, "unknown keyword 'minimum'"),
        ("length", {"field": "text"}, "length: field: it judges the reply alone"),
        ("repetition", {"size": 0}, "size=0: must be at least 1"),
    ],
)
def test_a_wrong_name_or_option_is_an_error_at_once(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        verifier(name, **options)


def test_every_verifier_has_a_docstring_with_its_rule() -> None:
    assert all(one.function.__doc__ for one in VERIFIERS.values())
