"""Couplets and classical-to-modern Chinese: a right answer, and wrong ones from other records."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from hanmo.data.prepare.sources.reader import Pools, SourceReader, SourceRecord, matching_files, text_lines
from hanmo.errors import RecordError
from hanmo.records import ScoredAnswers

Couplet = tuple[str, str, str]  # first line, second line, where
CLASSICAL, MODERN = "古文：", "现代文："


def couplets(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """Couplets, one a line (first half, one separator, second half), or line i of in.txt answered by line i of out.txt.

    Wrong answers: two second lines of the same length (0) and one of each of two other lengths (-1).
    """
    found = list(_couplets(place, reader))
    pools = Pools()  # second lines by split and length
    for first, second, _ in found:
        pools.add(reader.shares.split(first), len(second), second)
    for first, second, where in found:
        split, rng = reader.shares.split(first), Random(f"{reader.seed}:{first}")
        near = pools.draw(rng, split, len(second), 2, {second})
        far = pools.draw_others(rng, split, len(second), 2, {second})
        answers = ((second, 1.0), *((text, 0.0) for text in near), *((text, -1.0) for text in far))
        prompt = reader.prompt(f"上联：{first}", opening="下联：")
        yield SourceRecord(ScoredAnswers(prompt, answers, "" if reader.sep else "下联：", where=where), first)


def _couplets(place: Path, reader: SourceReader) -> Iterator[Couplet]:
    files = matching_files(place, "*.txt*")
    paired = [path for path in files if path.name in ("in.txt", "in.txt.gz")]
    for path in paired or files:
        yield from _paired(path, reader) if paired else _single(path, reader)


def _single(path: Path, reader: SourceReader) -> Iterator[Couplet]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        middle = len(line) // 2
        first, mark, second = line[:middle], line[middle], line[middle + 1 :]
        if len(first) != len(second) or mark.isalnum():
            reader.bad(path, number, "expected two halves of the same length with one separator between them")
        else:
            yield first, second, f"{path}:{number}"


def _paired(path: Path, reader: SourceReader) -> Iterator[Couplet]:
    other = next((found for name in ("out.txt", "out.txt.gz") if (found := path.with_name(name)).is_file()), None)
    if other is None:
        raise RecordError(path, 0, "no out.txt or out.txt.gz beside it, which holds the second lines")
    ours, theirs = text_lines(path), text_lines(other)
    for number, line in ours:
        answer = next(theirs, None)
        if answer is None:
            raise RecordError(other, number, f"ends before line {number} of {path.name}; lines must answer each other")
        first, second = ("".join(text.split()) for text in (line, answer[1]))
        if not first and not second:
            continue
        if not first or not second:
            reader.bad(path if second else other, number, "an empty line where the other file has one with text")
        else:
            yield first, second, f"{path}:{number}"
    if next(theirs, None) is not None:
        raise RecordError(other, 0, f"has more lines than {path.name}; lines must answer each other")


def classical(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """Files of ``古文：…`` and ``现代文：…`` lines with an empty line after each pair; translation either way.

    Wrong answers: two sentences of the wanted side from the same file (0) and one from each of two other files (-1).
    """
    found = []
    for path in matching_files(place, "*.txt*"):
        found += [(path, *_directed(old, new, reader.seed), where) for old, new, where in _bitext(path, reader)]
    pools = Pools()  # by split and side, and by file
    for path, (given, prompt), (wanted, answer), _ in found:
        split = reader.shares.split(prompt)
        pools.add((split, given), path, prompt)
        pools.add((split, wanted), path, answer)
    for path, (given, prompt), (wanted, answer), where in found:
        realm, rng = (reader.shares.split(prompt), wanted), Random(f"{reader.seed}:{prompt}:{answer}")
        near = pools.draw(rng, realm, path, 2, {answer})
        far = pools.draw_others(rng, realm, path, 2, {answer, *near})
        answers = ((answer, 1.0), *((text, 0.0) for text in near), *((text, -1.0) for text in far))
        asked = reader.prompt(f"{given}{prompt}", opening=wanted)
        yield SourceRecord(ScoredAnswers(asked, answers, "" if reader.sep else wanted, where=where), prompt)


def _directed(old: str, new: str, seed: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """The given and the wanted sentence, each after its side; the classical one determines which is which."""
    sides = (CLASSICAL, old), (MODERN, new)
    return sides if Random(f"{seed}:{old}").random() < 0.5 else (sides[1], sides[0])


def _bitext(path: Path, reader: SourceReader) -> Iterator[tuple[str, str, str]]:
    """Classical, modern, where. As published, a pair without an empty line after it is lost."""
    pair: dict[str, str] = {}
    begun = 0
    for number, line in [*text_lines(path), (0, "")] if not reader.published else text_lines(path):
        side = next((side for side in (CLASSICAL, MODERN) if line.startswith(side)), None)
        if side is None and line.strip():
            reader.bad(path, number, f"expected a line that begins with {CLASSICAL} or {MODERN}, or an empty one")
            continue
        if pair and (side is None or (side in pair and not reader.published)):
            if len(pair) == 2:
                yield pair[CLASSICAL], pair[MODERN], f"{path}:{begun}"
            else:
                reader.bad(path, begun, "a sentence without its translation")
            pair = {}
        if side is not None:
            begun = begun if pair else number
            pair[side] = line[len(side) :]
