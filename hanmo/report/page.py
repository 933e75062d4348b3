"""Self-contained HTML pages with tables, plots and dialogues: no scripts, no network, no other files.

A page may be opened from a disk, sent by mail or printed, on a phone or a wide screen, in light or dark. It carries
a content security policy that forbids it to load anything. All text given is escaped.

    page = Page("Fine-tuning on KdConv", subtitle="EVA 2.0 base")
    page.heading("Loss")
    page.line_plot({"train": [(0, 3.1), (100, 2.4)], "valid": [(100, 2.6)]}, x="step", y="loss")
    page.table(["", "loss", "BLEU-4"], [["before", 3.14, 1.02], ["after", 2.09, 4.69]])
    page.write("report.html")
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hanmo.files import write_text

Point = tuple[float, float]
COLOURS = 6  # --c0 … --c5 of the style sheet
LONG = 30  # characters of a cell from which on it is not squeezed; a phone scrolls instead
DOTS = 40  # lines with at most so many points show them


class Page:
    """A page that grows from top to bottom.

    Args:
        title: the page's heading and the browser's title.
        subtitle: one line under it.
        language: of the text, as in HTML's ``lang`` ("en", "zh-CN"); it decides which glyphs a browser picks.
    """

    def __init__(self, title: str, subtitle: str = "", language: str = "en"):
        self.title = title
        self.language = language
        self._body: list[str] = []
        if subtitle:
            self._add("p", escape(subtitle), "subtitle")

    def heading(self, text: str, level: int = 2) -> None:
        """A heading of level 2 or 3."""
        assert level in (2, 3), level
        self._add(f"h{level}", escape(text))

    def paragraph(self, text: str) -> None:
        self._add("p", escape(text))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", note: str = "") -> None:
        """A table; numbers are written with up to 4 digits and stand on the right, None is a dash."""
        assert all(len(row) == len(header) for row in rows), "a row of another length than the header"
        numeric = [
            bool(rows) and all(row[column] is None or _is_number(row[column]) for row in rows)
            for column in range(len(header))
        ]

        def cell(tag: str, value: Any, right: bool) -> str:
            kind = " class=number" * right or " class=long" * (isinstance(value, str) and len(value) > LONG)
            return f"<{tag}{kind}>{show(value)}</{tag}>"

        head = "".join(cell("th", name, right) for name, right in zip(header, numeric, strict=True))
        body = "".join(
            "<tr>" + "".join(cell("td", value, right) for value, right in zip(row, numeric, strict=True)) + "</tr>\n"
            for row in rows
        )
        table = f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
        self._figure(table, caption, note)

    def facts(self, facts: Mapping[str, Any], caption: str = "", note: str = "") -> None:
        """Names and their values; numbers as they are, in up to 6 digits."""
        pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_fact(value))}</dd>\n" for name, value in facts.items())
        self._figure(f"<dl>{pairs}</dl>", caption, note)

    def line_plot(
        self,
        lines: Mapping[str, Sequence[Point]],
        x: str = "",
        y: str = "",
        caption: str = "",
        note: str = "",
        from_zero: bool = False,
    ) -> None:
        """Lines by name, each a sequence of (x, y). Points that are not finite are left out.

        Args:
            x, y: names of the axes.
            from_zero: the y axis starts at 0.
        """
        finite = {name: [point for point in line if all(map(math.isfinite, point))] for name, line in lines.items()}
        if not any(finite.values()):
            self._figure("<p class=note>no values</p>", caption, note)
            return
        self._figure(_legend(list(lines)) + _plot(finite, x, y, from_zero), caption, note)

    def bar_plot(
        self, groups: Mapping[str, Mapping[str, float]], caption: str = "", note: str = "", top: float | None = None
    ) -> None:
        """Horizontal bars: ``{group: {series: value}}`` with values of 0 or more.

        Args:
            top: the value of a full bar; the largest of all values if None.
        """
        series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
        full = top or max((value for bars in groups.values() for value in bars.values()), default=0.0) or 1.0
        body = []
        for group, bars in groups.items():
            drawn = "".join(
                f"<div class=bar style='--c:{_colour(series.index(name))}'>"
                f"<i style='width:{100 * min(max(value / full, 0), 1):.2f}%'></i><span>{show(value)}</span></div>"
                for name, value in bars.items()
            )
            body.append(f"<b>{escape(group)}</b><div class=room>{drawn}</div>\n")
        self._figure(_legend(series) + f"<div class=bars>{''.join(body)}</div>", caption, note)

    def dialogue(
        self,
        turns: Sequence[str],
        reply: str,
        expected: str | None = None,
        caption: str = "",
        labels: Sequence[str] = (),
    ) -> None:
        """What was said so far, the model's reply, and, if known, the reply a person gave.

        The model's side is the right one; ``turns`` alternate and the last of them is the other side's.

        Args:
            labels: small print over the reply and over the expected one.
        """
        names = [*labels, "", ""]
        kinds = ["own" if place % 2 else "" for place in range(len(turns))][::-1]
        bubbles = [_bubble(kind, "", turn) for kind, turn in zip(kinds, turns, strict=True)]
        bubbles.append(_bubble("reply", names[0], reply))
        if expected is not None:
            bubbles.append(_bubble("expected", names[1], expected))
        self._figure("<div class=talk>" + "\n".join(bubbles) + "</div>", caption, "")

    @contextmanager
    def details(self, summary: str) -> Iterator[None]:
        """What is added inside is folded away under ``summary``."""
        self._body.append(f"<details><summary>{escape(summary)}</summary>")
        yield
        self._body.append("</details>")

    def footer(self, text: str) -> None:
        self._add("footer", escape(text))

    def html(self) -> str:
        """The whole page."""
        template = Template(files("hanmo.report").joinpath("page.html").read_text(encoding="utf-8"))
        return template.substitute(title=escape(self.title), language=escape(self.language), body="\n".join(self._body))

    def write(self, path: str | Path) -> None:
        """Write the page; a reader never sees half of it."""
        write_text(path, self.html())

    def _add(self, tag: str, inner: str, kind: str = "") -> None:
        self._body.append(f"<{tag} class={kind}>{inner}</{tag}>" if kind else f"<{tag}>{inner}</{tag}>")

    def _figure(self, inner: str, caption: str, note: str) -> None:
        caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        note = f"<p class=note>{escape(note)}</p>" if note else ""
        self._body.append(f"<figure>{caption}{inner}{note}</figure>")


def show(value: Any) -> str:
    """A value as escaped text: numbers with 4 digits, whole ones with thousands apart, None as a dash.

    >>> show(3.14159), show(12345), show(None), show("<a>")
    ('3.142', '12,345', '–', '&lt;a&gt;')
    """
    if value is None:
        return "–"
    if not _is_number(value):
        return escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return {"nan": "not a number", "inf": "∞", "-inf": "−∞"}[str(value)]
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.2e}"
    return f"{value:,.{max(min(3 - size, 4), 0)}f}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, roughly ``about`` of them, a step of 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 10, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    assert high > low, (low, high)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _plot(lines: Mapping[str, Sequence[Point]], x: str, y: str, from_zero: bool) -> str:
    """Lines as SVG that stretches with the page; axis labels are text beside it, so that they keep their size."""
    points = [point for line in lines.values() for point in line]
    left, right = _range([point[0] for point in points], pad=False)
    low, high = _range([point[1] for point in points] + [0.0] * from_zero, pad=True)
    if from_zero:
        low = 0.0

    def across(value: float) -> float:
        return 100 * (value - left) / (right - left)

    def down(value: float) -> float:
        return 100 * (high - value) / (high - low)

    shapes, labels = [], []
    for value in ticks(low, high, 5):
        shapes.append(f"<line x1=0 x2=100 y1={down(value):.2f} y2={down(value):.2f} />")
        labels.append(f"<span class=y style='top:{down(value):.2f}%'>{_tick(value)}</span>")
    for number, value in enumerate(ticks(left, right, 6)):
        minor = " minor" * (number % 2)
        labels.append(f"<span class='x{minor}' style='left:{across(value):.2f}%'>{_tick(value)}</span>")
    for number, (name, line) in enumerate(lines.items()):
        path = " ".join(f"{across(px):.2f},{down(py):.2f}" for px, py in line)
        dots = ""
        if len(line) <= DOTS:
            dots = "".join(
                f"<path d='M{across(px):.2f} {down(py):.2f}h0'>"
                f"<title>{escape(name)}: {_tick(px)}, {show(py)}</title></path>"
                for px, py in line
            )
        shapes.append(f"<g style='--c:{_colour(number)}'><polyline points='{path}' />{dots}</g>")
    if x:
        labels.append(f"<span class=xname>{escape(x)}</span>")
    if y:
        labels.append(f"<span class=yname>{escape(y)}</span>")
    label = escape(f"{', '.join(lines)}: {y} by {x}", quote=True)
    svg = f"<svg viewBox='0 0 100 100' preserveAspectRatio=none role=img aria-label='{label}'>{''.join(shapes)}</svg>"
    return f"<div class='plot{' named' if y else ''}'>{svg}{''.join(labels)}</div>"


def _range(values: Sequence[float], pad: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    margin = 0.05 * (high - low) if pad else 0.0
    return low - margin, high + margin


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    entries = (f"<span><i style='--c:{_colour(number)}'></i>{escape(name)}</span>" for number, name in enumerate(names))
    return f"<div class=legend>{''.join(entries)}</div>"


def _bubble(kind: str, label: str, text: str) -> str:
    small = f"<small>{escape(label)}</small>" if label else ""
    return f"<div class='turn {kind}'>{small}{escape(text)}</div>"


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _fact(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_fact, value)) or "none"
    return f"{value:,}" if _is_number(value) else str(value)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.6g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
