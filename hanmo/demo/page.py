"""The demo's report: one HTML page that tells what was trained, how well it answers, and what it cannot do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmo.demo.align import Alignment, reward, share_asking
from hanmo.demo.examine import OPENINGS, Examination, exact, f1
from hanmo.evaluation.dialogue import PUBLISHED_TABLE, title
from hanmo.report.page import Page
from hanmo.report.plots import Point

LIMITS = (
    "The released EVA models have between two hundred and two thousand times as many parameters as this one, and it has "
    "read nothing but invented dialogue for a few minutes. It knows the patterns of its corpus and nothing of the world: it cannot look anything up, "
    "reason beyond those patterns, translate, write at length or hold an opinion. What it says outside of its topics "
    "is a mixture of phrases that it knows, stated with full confidence. It answers in one way where people have many, "
    "and a question in unfamiliar words is often taken for another one. Its facts are those of the corpus and may come "
    "out wrong. It is a check that the whole path works, from text to a model that talks; it is not for use."
)


@dataclass(frozen=True)
class DemoResult:
    """The results of a run."""

    folder: str
    before: Examination
    after: Examination
    conversations: list[list[str]]  # user and trained model in turn
    beyond: list[list[str]]  # the same, of what the corpus does not prepare for
    alignment: Alignment
    losses: list[Point]  # by step of training
    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All but the losses, for JSON."""
        return {
            "model": self.folder,
            "report": str(Path(self.folder) / "report.html"),
            "openings_fitting": sum(self.after.fitting),
            "openings": len(self.after.fitting),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "conversations": self.conversations,
            "beyond": self.beyond,
            "alignment": self.alignment.as_dict(),
            "facts": self.facts,
        }


def build_page(result: DemoResult) -> Page:
    """The report of one run."""
    before, after = result.before, result.after
    page = Page("hanmo demo", subtitle="A small EVA, trained from nothing on this machine", language="zh-CN")
    fitting, held_out = sum(after.fitting), len(after.result.samples)
    page.paragraph(
        f"{fitting} of {len(OPENINGS)} openings get a fitting reply (before training: {sum(before.fitting)}). "
        f"Of {held_out} held-out dialogues, {after.exact:.1f} % are answered word for word "
        f"(before: {before.exact:.1f} %)."
    )
    page.heading("Ten openings")
    page.table(
        ["opening", "reply before", "reply after", "fits", "what would fit"],
        [
            [opening.prompt, _short(reply_before), reply_after, "✓" if fits else "✗", opening.means]
            for opening, reply_before, reply_after, fits in zip(
                OPENINGS, before.openings, after.openings, after.fitting, strict=True
            )
        ],
        note="A reply fits if a hand-written rule finds the expected word in it and nothing that contradicts it. "
        "All ten are in the training data; what was never trained on is measured below.",
    )
    page.heading("Conversations")
    _conversations(page, result.conversations)
    _results(page, before, after)
    page.heading("Training")
    page.line_plot({"training loss": result.losses}, x="step", y="loss (nats per token)", from_zero=True)
    page.facts(result.facts)
    _alignment(page, result.alignment)
    page.heading("What it cannot do")
    page.paragraph(LIMITS)
    page.paragraph("Questions that its corpus does not prepare it for, and what it says:")
    _conversations(page, result.beyond)
    _mistakes(page, after)
    page.footer("Made by hanmo demo. Talk to the model with: hanmo chat")
    return page


def _results(page: Page, before: Examination, after: Examination) -> None:
    page.heading("Results on held-out dialogues")
    page.paragraph(
        "Every dialogue below is a combination (of words, numbers, names, a way to ask …) that never occurs in "
        "training, whatever the seed. A right answer is composed, not remembered."
    )
    for reading in ("corrected", "published"):
        first, second = (getattr(examination.result, reading) for examination in (before, after))
        page.table(
            ["", *map(title, PUBLISHED_TABLE)],
            [["before", *map(first.get, PUBLISHED_TABLE)], ["after", *map(second.get, PUBLISHED_TABLE)]],
            caption=f"In the form of EVA's published table, {reading} reading",
            note="These numbers are of the demo's own dialogues and cannot be compared with published ones.",
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
    page.paragraph(
        "The second part teaches manners that the dialogues above do not have: to ask back where people do, and to add "
        "nothing to the answer of a question of fact. A reward model learned from pairs of replies which one is better: "
        f"it is right about {100 * found.accuracy:.1f} % of held-out pairs (guessing: 50 %). DPO then taught the pairs to "
        "the trained model. It never sees the reward model, which judges what came of it. The model that hanmo chat opens "
        "is the one from before; this one is in the folder aligned."
    )
    page.table(
        ["held-out dialogues", "number", "reward before", "reward after", "ask back before, %", "after, %"],
        [
            [name, len(before), reward(before), reward(after), *(100 * share_asking(one) for one in (before, after))]
            for name, (before, after) in (("talk: better to ask back", found.talk), ("facts: better not", found.facts))
        ],
        caption=f"{sum(found.fitting)} of {len(OPENINGS)} openings get a fitting reply from the aligned model",
    )
    page.line_plot({"reward": found.curve}, x="step of DPO", y="mean reward, held-out")
    page.line_plot({"accuracy": found.learned}, x="step of the reward model", y="training pairs right", from_zero=True)
    page.table(
        ["prompt", "reply before", "reward", "reply after", "reward"],
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
            [opening.prompt, reply, "✓" if fits else "✗"]
            for opening, reply, fits in zip(OPENINGS, found.openings, found.fitting, strict=True)
        ],
    )


def _conversations(page: Page, conversations: Sequence[Sequence[str]]) -> None:
    for turns in conversations:
        page.dialogue(turns[:-1], turns[-1])


def _short(text: str, longest: int = 24) -> str:
    """An untrained model talks until it is stopped: its beginning is enough."""
    return text if len(text) <= longest else text[:longest] + "…"


def _mistakes(page: Page, after: Examination) -> None:
    rows = []
    for topic, samples in after.topics.items():
        wrong = [sample for sample in samples if sample.generation != sample.response]
        rows += [[topic, sample.context, sample.generation, sample.response] for sample in wrong[:2]]
    with page.details("Held-out dialogues that it got wrong, up to two of each topic"):
        page.table(["topic", "context", "reply", "expected"], rows)
