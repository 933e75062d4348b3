"""Self-contained HTML pages with tables, plots and dialogues: no scripts, no network, no other files.

A page carries a content security policy that forbids it to load anything. All text is escaped.

    page = Page("Fine-tuning on KdConv", subtitle="EVA 2.0 base")
    page.line_plot({"train": [(0, 3.1), (100, 2.4)], "valid": [(100, 2.6)]}, x="step", y="loss")
    page.write("report.html")
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from hanmo.files import json_text, write_text
from hanmo.report import plots
from hanmo.report.plots import Point

COLOURS = 6  # --c0 … --c5 of the style sheet


class Page:
    """A page built from top to bottom; ``language``, HTML's ``lang``, determines the glyphs that a browser picks."""

    def __init__(self, title: str, subtitle: str = "", language: str = "en"):
        self.title = title
        self.language = language
        self._blocks: list[tuple[str, dict[str, Any]]] = []  # names and arguments of macros in blocks.html
        if subtitle:
            self._add("paragraph", text=subtitle, kind="subtitle")

    def heading(self, text: str) -> None:
        self._add("heading", text=text)

    def paragraph(self, text: str) -> None:
        self._add("paragraph", text=text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", note: str = "") -> None:
        """A table; numbers have up to 4 digits and are right-aligned, None is a dash."""
        assert all(len(row) == len(header) for row in rows), "a row of another length than the header"
        numeric = [
            bool(rows) and all(row[column] is None or plots.is_number(row[column]) for row in rows)
            for column in range(len(header))
        ]
        self._add("table", header=header, rows=rows, numeric=numeric, caption=caption, note=note)

    def facts(self, facts: Mapping[str, Any], caption: str = "", note: str = "") -> None:
        """Names and their values; numbers in up to 6 digits."""
        self._add("facts", facts=facts, caption=caption, note=note)

    def line_plot(
        self,
        lines: Mapping[str, Sequence[Point]],
        x: str = "",
        y: str = "",
        caption: str = "",
        from_zero: bool = False,
        share: bool = False,
    ) -> None:
        """Lines by name, each a sequence of (x, y), without what is not finite; ``x``, ``y``: names of the axes.

        ``from_zero``, ``share``: the vertical axis shows 0, or 0 and 1, whatever the values.
        """
        self._add("line_plot", plot=plots.plot(lines, from_zero, share), x=x, y=y, caption=caption)

    def bar_plot(self, groups: Mapping[str, Mapping[str, float]], caption: str = "", top: float | None = None) -> None:
        """Horizontal bars: ``{group: {series: value}}`` with values from 0 to ``top``, by default the largest of all."""
        series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
        full = top or max((value for bars in groups.values() for value in bars.values()), default=0.0) or 1.0
        self._add("bar_plot", groups=groups, series=series, full=full, caption=caption)

    def dialogue(
        self, turns: Sequence[str], reply: str, expected: str | None = None, labels: tuple[str, str] = ("", "")
    ) -> None:
        """The turns so far, the model's reply and, if known, a person's reply; ``labels``: small print over the two.

        The model's side is the right one; ``turns`` alternate and the last of them is the other side's. None of them was
        written by the model.
        """
        sides = ["own" if place % 2 else "" for place in range(len(turns))][::-1]
        bubbles = [(side, "", turn) for side, turn in zip(sides, turns, strict=True)] + [("reply", labels[0], reply)]
        if expected is not None:
            bubbles.append(("expected", labels[1], expected))
        self._add("dialogue", turns=bubbles)

    def conversation(self, turns: Sequence[str]) -> None:
        """A person and the model in turn, the person first; all turns of the model have its colour."""
        self._add("dialogue", turns=[("reply" if place % 2 else "", "", turn) for place, turn in enumerate(turns)])

    def code(self, text: str) -> None:
        """Text with its line breaks and indentation."""
        self._add("paragraph", text=text, kind="code")

    @contextmanager
    def details(self, summary: str) -> Iterator[None]:
        """Fold away the blocks that are added inside under ``summary``."""
        self._add("open_details", summary=summary)
        yield
        self._add("close_details")

    def footer(self, text: str) -> None:
        self._add("footer", text=text)

    def html(self) -> str:
        return render("hanmo.report", "page.html", title=self.title, language=self.language, blocks=self._blocks)

    def write(self, path: str | Path) -> None:
        write_text(path, self.html())

    def _add(self, macro: str, **values: Any) -> None:
        self._blocks.append((macro, values))


def render(package: str, name: str, **values: Any) -> str:
    """The template ``name`` in the folder of ``package``, with all values escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies |= {"json.dumps_function": json_text, "json.dumps_kwargs": {}}
    environment.filters |= {"number": plots.number, "fact": plots.fact, "tick": plots.tick}
    environment.filters["width"] = lambda text: sum(1 + (east_asian_width(char) in "WF") for char in text)
    environment.filters["colour"] = lambda number: f"var(--c{number % COLOURS})"
    return environment.get_template(name).render(**values)
