"""The verifier of choices: which of the letters A to H a reply means."""

import re
import unicodedata
from collections.abc import Sequence

from hanmo.verify.texts import final

_GAP = r"[^\S\n]*"  # letters of another line are others
_LETTERS = rf"(?<![A-Za-z])([A-H](?:{_GAP}(?:[、,/]|和|及|与|或)?{_GAP}[A-H])*)(?![A-Za-z])"
_GLUE = r"(?:项|应该|应当|应|就|便|只能|只有|是|为|选项|选择|选|的|\s|[:()\[\]【】「『“\"'《<*`$])*"
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|textbf)\s*\{)?\s*([A-H](?:[\s、,]*[A-H])*)")
# From the clearest to the vaguest; of one kind the last one counts.
_KINDS = [
    re.compile(rf"(?:答案|综上所述|综上|故选|正确的?(?:选项|选择|一项)|[Aa]nswer(?:\s+is)?){_GLUE}{_LETTERS}"),
    re.compile(rf"(?:而是|选择?(?!项)|答(?=\s*:)|应该?是|应当?为|改为){_GLUE}{_LETTERS}"),
    re.compile(rf"{_LETTERS}(?:选?项)?(?:的?(?:说法|表述|内容))?[)\]】]?(?:才|最|完全|就|都)*(?:是?正确|是对|对(?!应|于|比)|符合|成立|[√✓✔])"),
    re.compile(rf"(?:所以|因此|因而|故|[是为]){_GLUE}{_LETTERS}"),
    re.compile(rf"^\W*{_LETTERS}(?=\W|$)"),
    re.compile(rf"{_LETTERS}(?!\s[a-z])"),
]  # fmt: skip
_CORRECTED = re.compile(r"不对|错了|等等|更正|纠正|改正|重新")
_REFUSED_BEFORE = re.compile(r"(?:不|非|别|排除|勿)(?:应该?|能|可|可能|会|要|再)?(?:是|选择?|为)?$|排除$|除了?$")
_REFUSED_BEHIND = re.compile(
    r"[)\]】”\"]?(?:选?项)?(?:[^,。;!?\n、A-H因而]{0,6}?)"
    r"(?:错|不对|不正确|不符|不成立|不合|不选|不是|不可能|有误|排除|不行|[×✗✘❌]|吗?\?)"
)


def choice(reply: str, answer: str) -> bool | None:
    """Whether the reply means the letter, or the letters, of the answer.

    Rule: of \\boxed{B}, 答案是B, 选B, B正确, 所以B, B at the start, and a letter alone the first kind that there is counts,
    and of it the last one that is not refused (不选A, A错误). Several letters (A、C; A或B) mean all of them. None if the
    answer has none of the letters.
    """
    wanted = chosen(answer)
    return chosen(reply) == wanted if wanted else None


def chosen(text: str) -> str:
    """The letters that a text means, each once and in order; "" for none."""
    text = unicodedata.normalize("NFKC", final(text))
    if not re.search("[A-H]|[A-Za-z]{2}", text):
        text = text.upper()
    if boxed := _BOXED.findall(text):
        return _sorted(boxed[-1])
    corrections = [found.end() for found in _CORRECTED.finditer(text)]
    if corrections and (later := _meant(text[corrections[-1] :], _KINDS[:4])):
        return later
    return _meant(text, _KINDS)


def _meant(text: str, kinds: Sequence[re.Pattern[str]]) -> str:
    """The letters of the last one of the first kind that there is, and that is not refused."""
    for kind in kinds:
        meant = [found[1] for found in kind.finditer(text) if not _refused(text, found)]
        if meant:
            return _sorted(meant[-1])
    return ""


def _refused(text: str, found: re.Match[str]) -> bool:
    before = text[max(0, found.start() - 6) : found.start(1)]
    return bool(_REFUSED_BEFORE.search(before.rstrip(" \"'“(【[")) or _REFUSED_BEHIND.match(text, found.end(1)))


def _sorted(letters: str) -> str:
    return "".join(sorted(set(re.findall("[A-H]", letters))))
