"""Templates that reckon: arithmetic, comparisons, days, hours, months and seasons."""

from __future__ import annotations

from typing import Any

from hanmo.demo.corpus import words as words
from hanmo.demo.corpus.template import Template

DIGITS = "零一二三四五六七八九"


def numeral(number: int) -> str:
    """0 to 999 in Chinese numerals, as spoken.

    >>> numeral(0), numeral(10), numeral(15), numeral(20), numeral(105), numeral(110)
    ('零', '十', '十五', '二十', '一百零五', '一百一十')
    """
    if number < 10:
        return DIGITS[number]
    if number < 20:
        return "十" + (DIGITS[number % 10] if number % 10 else "")
    if number < 100:
        return DIGITS[number // 10] + "十" + (DIGITS[number % 10] if number % 10 else "")
    hundreds, rest = DIGITS[number // 100] + "百", number % 100
    if not rest:
        return hundreds
    return hundreds + (
        "零" + DIGITS[rest] if rest < 10 else DIGITS[rest // 10] + "十" + numeral(rest)[-1] * (rest % 10 > 0)
    )


def _add(a: int, b: int) -> dict[str, Any]:
    return {"x": numeral(a), "y": numeral(b), "z": numeral(a + b)}


def _subtract(a: int, b: int) -> dict[str, Any] | None:
    return {"x": numeral(a), "y": numeral(b), "z": numeral(a - b)} if a >= b else None


def _multiply(a: int, b: int) -> dict[str, Any]:
    return {"x": numeral(a), "y": numeral(b), "z": numeral(a * b)}


def _compare(a: int, b: int) -> dict[str, Any] | None:
    if a == b:
        return None
    return {"x": numeral(a), "y": numeral(b), "more": numeral(max(a, b)), "less": numeral(min(a, b))}


def _follow(n: int) -> dict[str, Any]:
    return {"x": numeral(n), "next": numeral(n + 1), "last": numeral(n - 1)}


ARITHMETIC = (
    Template(
        "arithmetic 算术",
        (
            "{x}加{y}等于几？|等于{z}。",
            "{x}加{y}等于多少？|等于{z}。",
            "{x}加{y}是多少？|是{z}。",
            "{x}加{y}？|{z}。",
            "你知道{x}加{y}等于几吗？|等于{z}。",
        ),
        {"a": range(1, 11), "b": range(1, 11)},
        _add,
        ("a", "b"),
        4,
    ),
    Template(
        "arithmetic 算术",
        ("{x}减{y}等于几？|等于{z}。", "{x}减{y}？|{z}。", "{x}减{y}是多少？|是{z}。"),
        {"a": range(1, 11), "b": range(1, 11)},
        _subtract,
        ("a", "b"),
        2.5,
    ),
    Template(
        "arithmetic 算术",
        ("{x}乘{y}等于几？|等于{z}。", "{x}乘{y}？|{z}。", "{x}乘以{y}是多少？|是{z}。"),
        {"a": range(1, 6), "b": range(1, 6)},
        _multiply,
        ("a", "b"),
    ),
    Template(
        "numbers 数的比较",
        ("{x}和{y}哪个大？|{more}大。", "{x}和{y}哪个小？|{less}小。", "{x}大还是{y}大？|{more}大。"),
        {"a": range(1, 21), "b": range(1, 21)},
        _compare,
        ("a", "b"),
        1.5,
    ),
    Template(
        "numbers 数的比较",
        (
            "{x}后面是几？|是{next}。",
            "{x}前面是几？|是{last}。",
            "比{x}多一是几？|是{next}。",
            "比{x}少一是几？|是{last}。",
        ),
        {"n": range(1, 40)},
        _follow,
    ),
)


def _weekday(day: str, offset: words.Thing) -> dict[str, Any]:
    index = (words.WEEKDAYS.index(day) + int(offset.mark)) % 7
    return {"then": words.WEEKDAYS[index]}


def _date(month: int, day: int, offset: words.Thing) -> dict[str, Any] | None:
    then = day + int(offset.mark)
    # Month ends are left out: they would ask the model for the lengths of the months as well.
    return {"m": numeral(month), "d": numeral(day), "then": numeral(then)} if 1 <= then <= 28 else None


def _hour(hour: int, later: int) -> dict[str, Any]:
    return {"h": numeral(hour), "n": numeral(later), "then": numeral((hour + later - 1) % 12 + 1)}


def _month(month: str, step: words.Thing) -> dict[str, Any]:
    return {"then": words.MONTHS[(words.MONTHS.index(month) + int(step.mark)) % 12]}


def _season(month: str) -> dict[str, Any]:
    return {"season": words.SEASONS[(words.MONTHS.index(month) + 10) % 12 // 3]}


def _zodiac(animal: str) -> dict[str, Any]:
    at = words.ZODIAC.index(animal)
    return {"next": words.ZODIAC[(at + 1) % 12], "last": words.ZODIAC[at - 1]}


DATES = (
    Template(
        "dates 日期",
        (
            "今天星期{day}，{offset.name}星期几？|星期{then}。",
            "今天是星期{day}，{offset.name}呢？|是星期{then}。",
            "今天星期{day}，{offset.name}？|星期{then}。",
        ),
        {"day": words.WEEKDAYS, "offset": words.DAY_OFFSETS},
        _weekday,
        weight=2.5,
    ),
    Template(
        "dates 日期",
        ("今天{m}月{d}号，{offset.name}几号？|{offset.name}{m}月{then}号。",),
        {"month": range(1, 13), "day": range(1, 29), "offset": words.DAY_OFFSETS},
        _date,
    ),
    Template(
        "dates 日期",
        (
            "今天是{d}号，{offset.name}几号？|{then}号。",
            "今天{d}号，{offset.name}呢？|是{then}号。",
        ),
        {"day": range(1, 29), "offset": words.DAY_OFFSETS},
        lambda day, offset: _date(1, day, offset),
    ),
    Template(
        "dates 日期",
        (
            "现在{h}点，{n}个小时以后几点？|{then}点。",
            "现在是{h}点，再过{n}个小时呢？|是{then}点。",
        ),
        {"hour": range(1, 13), "later": range(1, 4)},
        _hour,
        ("hour", "later"),
    ),
    Template(
        "dates 日期",
        ("现在是{month}月，{step.name}是几月？|是{then}月。", "{month}月的{step.name}是几月？|是{then}月。"),
        {"month": words.MONTHS, "step": (words.Thing("下个月", "1"), words.Thing("上个月", "-1"))},
        _month,
    ),
    Template(
        "seasons 时令",
        (
            "{month}月是什么季节？|是{season}。",
            "{month}月是春天还是秋天？|是{season}。",
            "现在是{month}月，是什么季节？|是{season}。",
        ),
        {"month": words.MONTHS},
        _season,
    ),
    Template(
        "seasons 时令",
        ("十二生肖里{animal}后面是什么？|是{next}。", "生肖{animal}的前面是什么？|是{last}。"),
        {"animal": words.ZODIAC},
        _zodiac,
        weight=0.5,
    ),
    Template(
        "seasons 时令",
        (
            "{opener}春天有什么？|春天有花，有小雨。",
            "{opener}夏天怎么样？|夏天很热，可以去游泳。",
            "{opener}秋天怎么样？|秋天很凉快，树叶黄了。",
            "{opener}冬天怎么样？|冬天很冷，有时候下雪。",
            "{opener}你最喜欢哪个季节？|我最喜欢春天，因为花都开了。",
        ),
        {"opener": ("", "你说，", "请问", "我想知道，", "说说看，")},
        weight=0.5,
    ),
)
