"""Normalises texts for comparison: width, case, white space and punctuation are ignored.

By Unicode's categories, letters, marks, numbers and symbols (S*: + × ÷ < = ° $, emoji) are kept; separators, control and
format characters and punctuation (P*) are removed. Signs and operators that count as punctuation are kept at these places:

- a hyphen before a digit or a Latin letter that begins a number or a word (-5℃, -.5, -x); a hyphen between letters of
  which one is Latin (x-y), two between Latin letters or digits (5-(-3)); one or two dashes between digits (3–5);
- ``.`` before a digit or a Latin letter (.5, .NET, Node.js), so English sentences that end in other marks differ;
- ``.`` ``,`` ``:`` ``、`` ``·`` between digits (3.5, 1,000, 3:2, 3、5, 9·11) or before a negative one (3:(-2)), ``、`` as ``,``;
  ``%`` ``‰`` ``′`` ``/`` after a digit (50%, 6/天);
- ``* / \\ & @ _`` between letters or digits of which one is Latin or a digit (a*b, km/h, R&D); ``#`` after a Latin
  letter (C#); ``!`` before ``=``.

White space, brackets and quotation marks are removed first: (-3) * 2 becomes -3*2.
"""

import re
import unicodedata
from hashlib import blake2b

_LATIN = "0-9a-zß-öø-ɏ"  # and digits
_OTHER = r"[^\W_]"  # a letter or a digit of any script
_HYPHEN = r"\-‐‑–−"
_EMOJI = "\u2190-\u2bff\U0001f000-\U0001fbff"
_TAGS = "\U000e0020-\U000e007f"  # spell the region of a flag
_DOTS = "·・•"  # of a number, as in 9·11
_POINTS = f".,:、{_DOTS}"
# the characters beside these decide
_CONTEXTUAL = _POINTS + r"%‰‱′/*\\&@_#!—―〜\u200d" + _TAGS + _HYPHEN.replace("−", "")


def _between_latin(sign: str) -> str:
    """``sign`` between letters or digits, one of which is Latin or a digit."""
    return f"(?<=[{_LATIN}]){sign}(?={_OTHER})|(?<={_OTHER}){sign}(?=[{_LATIN}])"


_SIGNS = re.compile(
    rf"(?=[{_CONTEXTUAL}−])(?:(?P<minus>(?<=[{_LATIN}])[{_HYPHEN}]{{2}}(?=[{_LATIN}]))|"
    rf"(?P<hyphen>(?<![{_HYPHEN}—])[{_HYPHEN}](?=\.?(?:\d|[{_LATIN}]))|(?<=\d)[—―〜]{{1,2}}(?=\d)|"
    + _between_latin(f"[{_HYPHEN}]")
    + rf")|(?P<kept>(?<=\d)[{_POINTS}]{{1,3}}(?=[{_HYPHEN}]?\.?\d)|(?<!\.)\.(?=\d|[{_LATIN}])|"
    rf"(?<=\d)(?:[%‰‱/]|′+)|(?<=[a-z])#+|!(?==)|"
    + "|".join(map(_between_latin, (r"[*/\\&]{1,2}", "[@_]")))
    + f"|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}])|(?<=[\U0001f3f4{_TAGS}])[{_TAGS}])|[{_CONTEXTUAL}])"
)
_ONE_OF_EACH = str.maketrans("、・•", ",··")
_CONTEXTUAL_SIGN = re.compile(f"[{_CONTEXTUAL}]")


class _Removed(dict[int, int | None]):
    """For ``str.translate``: maps characters that are removed everywhere to None and any other to itself."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        category = unicodedata.category(character)
        selector = 0xFE00 <= code < 0xFE10 or 0xE0100 <= code < 0xE01F0  # how a character is drawn
        removed = category[0] in "PZ" or category in ("Cc", "Cf", "Cs") or selector
        self[code] = None if removed and not _CONTEXTUAL_SIGN.match(character) else code
        return self[code]


_removed = _Removed()


def normalised(text: str) -> str:
    """The text as it is compared; a text of punctuation alone loses only its white space.

    >>> normalised("你好，ＡＢＣ！ 再见"), normalised("(−3) × 2 = －6。"), normalised("C#"), normalised("3.50 元")
    ('你好abc再见', '-3×2=-6', 'c#', '3.50元')
    """
    while (once := _once(text)) != text:  # removals bring other characters side by side
        text = once
    return text


def text_hash(text: str) -> int:
    """64 bits of the normalised text: texts with the same hash count as the same text."""
    return int.from_bytes(blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _once(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGNS.sub(_sign, plain.translate(_removed)) or "".join(
        c for c in plain if unicodedata.category(c)[0] not in "ZC"
    )


def _sign(found: re.Match[str]) -> str:
    return "--" if found["minus"] else "-" if found["hyphen"] else (found["kept"] or "").translate(_ONE_OF_EACH)
