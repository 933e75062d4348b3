"""Numbers as Chinese texts write them, read as exact fractions: 一百二十三点五, 3.5万, 三分之二, 50%, \\frac{3}{4}."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 60  # characters of a numeral: no text may cost unbounded time
_DIGITS = {c: v for v, group in enumerate(["零〇○", "一壹", "二贰貳两兩", "三叁參", "四肆", "五伍", "六陆陸", "七柒", "八捌", "九玖"]) for c in group}  # fmt: skip
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_COUNTS = {**_UNITS, **_LARGE}
_D, _U, _L = ("".join(group) for group in (_DIGITS, _UNITS, _LARGE))
_ARABIC = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_THOUSAND = r"千(?=[克瓦卡帕伏赫焦])"  # of a unit of measure; behind Arabic digits 千米 is one as well
_COUNT = rf"(?!{_THOUSAND})[{_U}{_L}]"
_NUMERAL = rf"(?:(?:{_ARABIC})(?!千米)(?={_COUNT})|[{_D}]|{_COUNT})(?:{_COUNT}|(?<=[{_D}{_U}{_L}])[{_D}]|(?<=[{_U}{_L}])(?:{_ARABIC}))*"
_PLAIN = rf"(?:{_NUMERAL}|{_ARABIC})(?:点[{_D}]+(?![{_U}])[{_L}]*)?"
_NUMBER = re.compile(
    r"(?P<sign>(?:零下|负|(?<![A-Za-z0-9)}\]])[-+])?\s*)(?:"
    r"(?P<half>一半)"
    r"|(?P<latex>\d+\s*)?\\[dt]?frac\s*(?:\{\s*(?P<above>-?[\d.,]+)\s*\}\s*\{\s*(?P<below>-?[\d.,]+)\s*\}|(?P<top>\d)\s*(?P<bottom>\d))"
    rf"|(?:(?P<whole>{_PLAIN})\s*又\s*)?(?P<of>{_PLAIN})分之(?P<share>{_PLAIN})"
    r"|(?:(?P<mixed>\d+)(?:\s*又\s*|\s+)(?=\d+\s*[/⁄]))?(?P<over>[\d.]+)\s*[/⁄]\s*(?P<under>\d[\d.]*)(?!\s*[/⁄])"
    rf"|(?:(?P<mantissa>{_ARABIC})\s*(?:×|\*|乘以?)\s*)?10\s*\^\s*\{{?\s*(?P<power>[-+]?\d+)\s*\}}?"
    rf"|(?P<plain>{_PLAIN})(?P<behind>\s*\\?%|‰|\s?成(?![为功了员长就本果立人份交品绩语都不])[{_D}半]?)?"
    r")"
)
_WORD_BEFORE = re.compile(r"(?:[每统唯万同其之任某逐惟专单周]|星期|礼拜)$")
_WORD_BEHIND = re.compile(
    r"一(?:[定样起般些直切旦边面共下会点道并时致向律概度心步生再同味]|方面)|二者|三(?:角|明治|者|思)"
    r"|四[川周边面处季]|五[星官]|六边|七夕|十(?:分(?![钟之,。;!?\s]|$)|足|字)|[两兩][者边侧旁端]|零[钱食件售]"
)
_OBJECT = re.compile(r"(?:是|成|作为|这|那)$")  # 这是一个例子


@dataclass(frozen=True)
class Number:
    """A number of a text and where it stands."""

    value: Fraction
    start: int
    end: int


def plain_text(text: str) -> str:
    """The text with ASCII digits and marks, without exponents, commands of LaTeX, and marks of lists."""
    text = re.sub(r"(?<![０-９])，|，(?![０-９])", "；", text)  # between words it separates, in １，２３４ it groups
    text = re.sub(r"(?<=\d)([½⅓¼¾⅔])", r" \1", re.sub(r"[²³¹⁰⁴-⁹⁻]+", "", text))
    text = (
        unicodedata.normalize("NFKC", text)
        .replace("\u2212", "-")
        .replace("{,}", ",")
        .replace("廿", "二十")
        .replace("卅", "三十")
    )
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "×", text)
    text = re.sub(r"\\[,;!: ]|\\[()\[\]]|\$|\*\*|\\(?![dt]?frac)[A-Za-z]+", " ", text)
    text = re.sub(r"(?<!10)(?<!10\s)\s*[\^_]\s*(?:\{[^{}]*\}|-?\d+)", "", text)
    text = re.sub(r"第[一二三四五六七八九十]+[、步:;,]", " ", text)
    return re.sub(
        r"(?m)^[^\S\n]*(?:\d{1,2}|[一二三四五六七八九十]{1,3})[^\S\n]*(?:[、)]|\.(?!\d))(?=[^\S\n]*\S)", " ", text
    )


def numbers(text: str) -> Iterator[Number]:
    """The numbers of a text as ``plain_text`` gives it, without numerals in words (一定, 万一) and digits in names (H2O)."""
    place = 0
    while found := _NUMBER.search(text, place):
        place = max(found.end(), place + 1)
        value = None if _in_word(text, found) else _value(found)
        if value is not None:
            yield Number(value, found.start(), found.end())


def _in_word(text: str, found: re.Match[str]) -> bool:
    start = found.end("sign")
    if text[start].isascii():
        return text[start].isdigit() and re.search(r"[A-Za-z]\.?$", text[max(0, start - 2) : start]) is not None
    if len(found[0].strip()) > 1:
        return False
    before, behind = text[max(0, start - 3) : start], text[start : start + 4]
    described = text[start] == "一" and _OBJECT.search(before) and re.match("一[个种道条项]", behind)
    return bool(described or _WORD_BEFORE.search(before) or _WORD_BEHIND.match(behind))


def _value(found: re.Match[str]) -> Fraction | None:
    part = {name: text or "" for name, text in found.groupdict().items()}
    value = _unsigned(part)
    return -value if value is not None and part["sign"].strip() in ("-", "负", "零下") else value


def _unsigned(part: dict[str, str]) -> Fraction | None:
    if part["half"]:
        return Fraction(1, 2)
    if part["power"]:
        number = numeral(part["mantissa"] or "1")
        return None if number is None or len(part["power"]) > 3 else number * Fraction(10) ** int(part["power"])
    over = part["above"] or part["top"] or part["share"] or part["over"]
    if over:
        under = part["below"] or part["bottom"] or part["of"] or part["under"]
        whole = numeral((part["latex"] or part["whole"] or part["mixed"]).strip() or "0")
        numerator, denominator = numeral(over), _COUNTS.get(under) or numeral(under)
        return None if whole is None or numerator is None or not denominator else whole + numerator / denominator
    number, behind = numeral(part["plain"]), part["behind"].strip()
    if number is None or not behind:
        return number
    if behind[0] == "成":
        tenths = {**_DIGITS, "半": 5}[behind[1]] if behind[1:] else 0
        return (number + Fraction(tenths, 10)) / 10
    return number / (1000 if behind == "‰" else 100)


def numeral(text: str) -> Fraction | None:
    """The value of one numeral without a sign: 一百二十三点五, 二〇二六, 三百五, 3.5万, 1,234.5; None if it is none."""
    if len(text) > LONGEST:
        return None
    minus, text = text.startswith("-"), text.removeprefix("-").replace(",", "").rstrip(".")
    if re.fullmatch(r"\d+(\.\d+)?|\.\d+", text):
        return -Fraction(text) if minus else Fraction(text)
    head, _, tail = text.partition("点")
    digits = tail.rstrip(_L)
    value = _integer(head)
    if value is None or not all(character in _DIGITS for character in digits):
        return None
    if digits:
        value += Fraction(int("".join(str(_DIGITS[one]) for one in digits)), 10 ** len(digits))
    for unit in tail[len(digits) :]:
        value *= _COUNTS[unit]
    return value


def _integer(text: str) -> Fraction | None:
    """A numeral in Chinese without a decimal part, among whose units may be Arabic numbers (3万5千)."""
    tokens = re.findall(r"\d+(?:\.\d+)?|\D", text)
    if all(token in _DIGITS for token in tokens):
        return _by_place(tokens)
    if tokens[0] in _COUNTS and tokens[0] not in ("十", "拾"):
        return None  # 千万, 万一
    high = low = section = Fraction(0)  # 亿 and above, 万, below
    digit, unit = None, 0  # unit: the last one; 0 behind 零, so that 三百五 is 350 and 三百零五 is 305
    for token in tokens:
        if token in _UNITS:
            section, digit, unit = section + (digit or 1) * _UNITS[token], None, _UNITS[token]
        elif token in _COUNTS:
            section, digit, unit = section + (digit or 0), None, _COUNTS[token]
            if unit == 10**8:
                part = low + section  # 一亿亿零一亿: the second 亿 counts the first one, the third does not
                high, low = (high + part * unit if part else high * unit), Fraction(0)
            else:
                low = (low if section == 0 else section) * unit
            section = Fraction(0)
        elif digit:
            return None  # 二三十
        else:
            digit = Fraction(_DIGITS.get(token, token))
            unit = unit if digit else 0
    last = (digit or 0) * (unit // 10 if unit >= 100 and len(tokens[-1]) == 1 else 1)
    return high + low + section + last


def _by_place(digits: list[str]) -> Fraction | None:
    """二〇二六; but neither 三四个 nor 一两个, which are estimates."""
    if not digits or (len(digits) > 1 and not {"两", "兩"}.isdisjoint(digits)):
        return None
    if len(digits) == 2 and not any(_DIGITS[digit] == 0 for digit in digits):
        return None
    return Fraction("".join(str(_DIGITS[digit]) for digit in digits))
