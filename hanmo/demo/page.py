"""The demo's report: one HTML page about what was trained, how well it answers, and what it cannot do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmo.demo.align import Alignment, reward, share_asking
from hanmo.demo.examine import OPENINGS, Examination, exact, f1, fitting
from hanmo.evaluation.dialogue import PUBLISHED_TABLE, title
from hanmo.files import package_yaml
from hanmo.report.page import Page
from hanmo.report.plots import Point

TEXTS: dict[str, str] = package_yaml("hanmo.demo", "page.yaml")


@dataclass(frozen=True)
class DemoResult:
    folder: str
    before: Examination
    after: Examination
    conversations: list[list[str]]  # user and trained model in turn
    beyond: list[list[str]]  # the same, for questions outside the corpus
    alignment: Alignment
    losses: list[Point]  # by step of training
    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All but the losses, for JSON."""
        return {
            "model": self.folder,
            "report": str(Path(self.folder) / "report.html"),
            "openings_fitting": sum(fitting(self.after.openings)),
            "openings": len(OPENINGS),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "conversations": self.conversations,
            "beyond": self.beyond,
            "alignment": self.alignment.as_dict(),
            "facts": self.facts,
        }


def build_page(result: DemoResult) -> Page:
    before, after = result.before, result.after
    page = Page("hanmo demo", subtitle="A small EVA, trained from scratch on this machine", language="zh-CN")
    fits, samples = fitting(after.openings), after.result.samples
    page.paragraph(
        f"{sum(fits)} of {len(OPENINGS)} openings get a fitting reply "
        f"(before training: {sum(fitting(before.openings))}). Of {len(samples)} held-out dialogues, "
        f"{exact(samples):.1f} % are answered word for word (before: {exact(before.result.samples):.1f} %)."
    )
    page.heading("Ten openings")
    page.table(
        ["opening", "reply before", "reply after", "fits", "what would fit"],
        [
            [opening.prompt, _short(earlier), reply, "✓" if good else "✗", opening.means]
            for opening, earlier, reply, good in zip(OPENINGS, before.openings, after.openings, fits, strict=True)
        ],
        note=TEXTS["openings"],
    )
    page.heading("Conversations")
    page.paragraph("The model's turns are the coloured ones.")
    _conversations(page, result.conversations)
    _results(page, before, after)
    page.heading("Training")
    page.line_plot({"training loss": result.losses}, x="step", y="loss (nats per token)", from_zero=True)
    page.facts(result.facts)
    _alignment(page, result.alignment)
    page.heading("What it cannot do")
    page.paragraph(TEXTS["limits"])
    page.paragraph("Questions that its corpus does not prepare it for, and what it says:")
    _conversations(page, result.beyond)
    _mistakes(page, after)
    page.footer("Made by hanmo demo. Talk to the model with: hanmo chat")
    return page


def _results(page: Page, before: Examination, after: Examination) -> None:
    page.heading("Results on held-out dialogues")
    page.paragraph(TEXTS["held out"])
    for reading in ("corrected", "published"):
        first, second = (getattr(examination.result, reading) for examination in (before, after))
        page.table(
            ["", *map(title, PUBLISHED_TABLE)],
            [["before", *map(first.get, PUBLISHED_TABLE)], ["after", *map(second.get, PUBLISHED_TABLE)]],
            caption=f"In the form of EVA's published table, {reading} reading",
            note=TEXTS["published table"],
        )
    page.table(
        ["topic", "dialogues", "exact before", "exact after", "F1 before", "F1 after"],
        [
            [topic, len(samples), exact(before.topics[topic]), exact(samples), f1(before.topics[topic]), f1(samples)]
            for topic, samples in after.topics.items()
        ],
        caption="By topic, in percent",
    )


def _alignment(page: Page, found: Alignment) -> None:
    page.heading("Learning from preferences")
    fits = fitting(found.openings)
    page.paragraph(TEXTS["alignment"].format(accuracy=100 * found.accuracy))
    page.table(
        ["held-out dialogues", "number", "reward before", "reward after", "ask back before, %", "ask back after, %"],
        [
            [name, len(before), reward(before), reward(after), *(100 * share_asking(one) for one in (before, after))]
            for name, (before, after) in (("talk: better to ask back", found.talk), ("facts: better not", found.facts))
        ],
        caption=f"{sum(fits)} of {len(OPENINGS)} openings get a fitting reply from the aligned model",
    )
    page.line_plot({"reward": found.curve}, x="step of DPO", y="mean reward, held-out")
    page.line_plot(
        {"accuracy": found.learned}, x="step of the reward model", y="share of training pairs right", share=True
    )
    page.table(
        ["prompt", "reply before", "reward before", "reply after", "reward after"],
        [
            [one.prompt, one.reply, one.reward, other.reply, other.reward]
            for before, after, shown in ((*found.talk, 16), (*found.facts, 6))
            for one, other in list(zip(before, after, strict=True))[:: max(1, len(before) // shown)]
        ],
        caption="Held-out dialogues, taken at equal distances",
    )
    page.table(
        ["opening", "reply of the aligned model", "fits"],
        [
            [opening.prompt, reply, "✓" if good else "✗"]
            for opening, reply, good in zip(OPENINGS, found.openings, fits, strict=True)
        ],
    )


def _conversations(page: Page, conversations: Sequence[Sequence[str]]) -> None:
    for turns in conversations:
        page.conversation(turns)


def _short(text: str, longest: int = 24) -> str:
    """The beginning of a reply: an untrained model generates up to the limit."""
    return text if len(text) <= longest else text[:longest] + "…"


def _mistakes(page: Page, after: Examination) -> None:
    rows = []
    for topic, samples in after.topics.items():
        wrong = [sample for sample in samples if sample.generation != sample.response]
        rows += [[topic, sample.context, sample.generation, sample.response] for sample in wrong[:2]]
    with page.details("Held-out dialogues that it got wrong, up to two of each topic"):
        page.table(["topic", "context", "reply", "expected"], rows)
