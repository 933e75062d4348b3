"""The words of the built-in corpus (words.yaml), and values that templates compute from them: sums, dates, couplets.

templates.yaml names such a function under ``derive``. It takes the chosen value of each slot by name and returns
further values for the answer, or None if the choice makes no sense.
"""

from typing import Any, NamedTuple

from hanmo.files import package_yaml

DIGITS = "零一二三四五六七八九"
Values = dict[str, str]


class City(NamedTuple):
    name: str
    sight: str
    food: str


class Capital(NamedTuple):
    place: str
    city: str


class Pair(NamedTuple):
    """Two words that belong together: opposites, halves of a couplet, lines of a poem."""

    one: str
    other: str


class Thing(NamedTuple):
    """A thing and a property of it: its measure word, its colour, its price unit, its effect."""

    name: str
    mark: str


def _words() -> dict[str, list[Any]]:
    groups = package_yaml("hanmo.demo.corpus", "words.yaml")
    words = {name: text.split() if isinstance(text, str) else list(text) for name, text in groups.pop("plain").items()}
    for entry in (Pair, Thing, City, Capital):
        for name, text in groups[entry.__name__].items():
            words[name] = [entry(*item.split("/")) for item in text.split()]
    return words


WORDS = _words()


def numeral(number: int) -> str:
    """0 to 999 in Chinese numerals, as spoken.

    >>> numeral(0), numeral(10), numeral(15), numeral(20), numeral(105), numeral(110)
    ('零', '十', '十五', '二十', '一百零五', '一百一十')
    """
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    unit = DIGITS[ones] if ones else ""
    if hundreds:
        return f"{DIGITS[hundreds]}百" + (f"{DIGITS[tens]}十{unit}" if tens else f"零{unit}" if ones else "")
    if tens:
        return f"{DIGITS[tens] if tens > 1 else ''}十{unit}"
    return DIGITS[ones]


def add(a: int, b: int) -> Values:
    return {"x": numeral(a), "y": numeral(b), "z": numeral(a + b)}


def subtract(a: int, b: int) -> Values | None:
    return {"x": numeral(a), "y": numeral(b), "z": numeral(a - b)} if a >= b else None


def multiply(a: int, b: int) -> Values:
    return {"x": numeral(a), "y": numeral(b), "z": numeral(a * b)}


def compare(a: int, b: int) -> Values | None:
    if a == b:
        return None
    return {"x": numeral(a), "y": numeral(b), "more": numeral(max(a, b)), "less": numeral(min(a, b))}


def neighbours(n: int) -> Values:
    return {"x": numeral(n), "next": numeral(n + 1), "last": numeral(n - 1)}


def weekday(day: str, offset: Thing) -> Values:
    return {"then": _later("weekdays", day, int(offset.mark))}


def date(month: int, day: int, offset: Thing) -> Values | None:
    then = day + int(offset.mark)
    # Month ends are left out: for them the model would also have to know the lengths of months.
    return {"m": numeral(month), "d": numeral(day), "then": numeral(then)} if 1 <= then <= 28 else None


def day_of_month(day: int, offset: Thing) -> Values | None:
    return date(1, day, offset)


def hour(hour: int, later: int) -> Values:
    return {"h": numeral(hour), "n": numeral(later), "then": numeral((hour + later - 1) % 12 + 1)}


def month(month: str, step: Thing) -> Values:
    return {"then": _later("months", month, int(step.mark))}


def season(month: str) -> Values:
    return {"season": WORDS["seasons"][(WORDS["months"].index(month) + 10) % 12 // 3]}


def zodiac_neighbours(animal: str) -> Values:
    return {"next": _later("zodiac", animal, 1), "last": _later("zodiac", animal, -1)}


def _later(cycle: str, word: str, steps: int) -> str:
    """The word a number of steps later in a cycle, e.g. of weekdays."""
    words = WORDS[cycle]
    return words[(words.index(word) + steps) % len(words)]


def couplet(**pairs: Pair) -> Values:
    return {
        "upper": "".join(pair.one for pair in pairs.values()),
        "lower": "".join(pair.other for pair in pairs.values()),
    }


def larger_animal(one: str, two: str) -> Values | None:
    if one == two:
        return None
    larger = WORDS["animals"].index(one) > WORDS["animals"].index(two)
    return {"answer": f"对，{one}比{two}大" if larger else f"不对，{one}比{two}小", "big": one if larger else two}


def different(**chosen: object) -> Values | None:
    """Nothing further; no two of the chosen values may be equal."""
    return {} if len(set(chosen.values())) == len(chosen) else None


def bill(good: Thing, price: int, count: int) -> Values:
    p, n, total = ("两" if number == 2 else numeral(number) for number in (price, count, price * count))
    return {"p": p, "n": n, "total": total}


def purchase(good: Thing, count: int) -> Values:
    return bill(good, 1, count)


def clothing(cloth: str, colour: str, size: str) -> Values:
    return {"m": {"裙子": "条", "裤子": "条", "围巾": "条", "帽子": "顶"}.get(cloth, "件")}
