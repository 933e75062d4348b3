"""Classical poetry from the files of chinese-poetry: write a work of an author, a kind and a title."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hanmo.data.prepare.sources.reader import Pools, SourceReader, SourceRecord, matching_files
from hanmo.errors import HanmoError, RecordError
from hanmo.files import data_of, package_yaml
from hanmo.records import ScoredAnswers, opened_text


@dataclass(frozen=True)
class Kind:
    path: str  # pattern of the last folder and the file's name; a folder above may be named "ci"
    genre: str  # "诗": poems of lines of five or of seven characters
    author: str | None = None  # of all works; None where each names its own
    title: Sequence[str] = ("title",)  # keys of the parts of a title, joined by "-"
    text: str = "paragraphs"  # key of the lines
    measure: str = "首"
    traditional: bool = False  # text in traditional characters, which is converted
    books: bool = False  # of the Four Books, whose quotation marks are replaced


KINDS = [Kind(**kind) for kind in package_yaml("hanmo.data.prepare.sources", "poetry.yaml")]
_FORGOTTEN = "huajianji/"  # as published, no branch handles these files, and each work repeats the one before


@dataclass(frozen=True)
class Work:
    author: str
    genre: str
    title: str
    text: str
    measure: str
    where: str

    @property
    def prompt(self) -> str:
        return f"以{self.author}的风格，写一{self.measure}{self.genre}，题为{self.title}"


def poetry(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """Works, held in memory, with wrong answers: another title (0), another author (-1), another genre (-2)."""
    works = list(_works(place, reader))
    by_author, by_genre = Pools(), Pools()
    titled: dict[tuple[str, str], set[str]] = {}  # texts by author and title
    for work in works:
        split = reader.shares.split(work.prompt)
        by_author.add((split, work.genre), work.author, work.text)
        by_genre.add(split, work.genre, work.text)
        titled.setdefault((work.author, work.title), set()).add(work.text)
    for work in works:
        split, rng = reader.shares.split(work.prompt), Random(f"{reader.seed}:{work.prompt}:{work.text}")
        realm, same_title = (split, work.genre), titled[work.author, work.title]
        answers = [(work.text, 1.0)]
        answers += ((text, 0.0) for text in by_author.draw(rng, realm, work.author, 1, same_title))
        answers += ((text, -1.0) for text in by_author.draw_others(rng, realm, work.author, 1, same_title))
        answers += ((text, -2.0) for text in by_genre.draw_others(rng, split, work.genre, 1, same_title))
        yield SourceRecord(ScoredAnswers(reader.prompt(work.prompt), tuple(answers), where=work.where), work.prompt)


def _works(place: Path, reader: SourceReader) -> Iterator[Work]:
    try:
        import opencc
    except ImportError:
        needed = "poetry in traditional characters needs the package opencc: pip install 'hanmo[data]'"
        raise HanmoError(needed) from None
    convert, seen = opencc.OpenCC("t2s").convert, set[str]()
    last: Work | None = None
    by_kind: list[tuple[int, Path]] = []
    for path in matching_files(place, "*.json*"):
        name = _name(path)
        order = next((number for number, kind in enumerate(KINDS) if re.search(kind.path, name)), None)
        if order is None:
            reader.drop("a file that holds no works or whose kind is unknown")
        else:
            by_kind.append((order, path))
    for order, path in sorted(by_kind):
        kind = KINDS[order]
        for number, entry in enumerate(_entries(path), 1):
            try:
                work: Work | None = _work(entry, kind, f"{path}:{number}", convert)
            except (KeyError, TypeError) as error:
                reader.bad(path, 0, f"work {number}: {type(error).__name__}: {error}")
                continue
            if reader.published and re.search(_FORGOTTEN, _name(path)):
                work = last
            if work is None:
                continue
            last = work
            if not reader.published and (work.text in seen or not work.text):
                reader.drop("a work that has come before" if work.text else "a work without text")
                continue
            seen.add(work.text)
            yield work


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _entries(path: Path) -> list[Any]:
    with opened_text(path) as file:
        try:
            found = data_of(file.read())
        except json.JSONDecodeError as error:
            raise RecordError(path, error.lineno, f"not JSON: {error.msg}") from None
    return found if isinstance(found, list) else [found]


def _work(entry: dict[str, Any], kind: Kind, where: str, convert: Callable[[str], str]) -> Work:
    lines, author, titles = entry[kind.text], kind.author or entry["author"], [entry[key] for key in kind.title]
    if not all(isinstance(text, str) for text in (*lines, author, *titles)):
        raise TypeError("expected the author, the title and a list of lines as text")
    title, text, genre = "-".join(titles), "".join(lines), kind.genre
    if kind.traditional:
        author, title, text = convert(author), convert(title), convert(text)
    if kind.books:
        text = text.replace("「", "“").replace("」", "”")
    if genre == "诗":
        genre = "五言诗" if lines and len(lines[0]) == 12 else "七言诗"
    return Work(author, genre, title, text, kind.measure, where)
