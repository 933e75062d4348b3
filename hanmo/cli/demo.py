"""``hanmo demo``: train a small dialogue model on this machine and see what it can do."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import Json, emit, results_only
from hanmo.errors import ConfigError

OUTPUT = Path("runs/demo")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model and its report.")] = OUTPUT,
    seed: Annotated[int, typer.Option(help="Seed of corpus, initial weights and order of the data.", min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Training steps of the first part; default: about three minutes.", min=1)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps: under three minutes in all.")] = False,
    as_json: Json = False,
) -> None:
    """Train a small EVA from scratch on built-in dialogues, align it by preferences, and leave it ready to chat.

    Measured before and after each part; under 8 minutes.

    \b
    Examples:
      hanmo demo
      hanmo demo --quick
      hanmo demo --output runs/other --seed 1
      hanmo chat
      hanmo chat runs/demo/aligned
    """
    if quick and steps is not None:
        raise ConfigError("--quick sets the steps itself; give --quick or --steps, not both")
    # Threads that spin while waiting make such small steps ten times slower when anything else is running.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from hanmo.demo import align, run

    first, second = (run.QUICK_STEPS, align.QUICK_STEPS) if quick else (run.STEPS, align.STEPS)
    with results_only():
        result = run.demo(output, seed, steps or first, align_steps=second)
    emit(result.as_dict(), as_json, _show)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    openings = Table("opening", "reply", "fits", title=f"{result['openings_fitting']} of {result['openings']} openings")
    for opening in result["after"]["openings"]:
        openings.add_row(opening["prompt"], opening["reply"], "✓" if opening["fits"] else "✗")
    console.print(openings)
    table = Table("held-out dialogues", "exact %", "loss", "BLEU-4", "Dist-4", "F1", title="Before and after")
    for name in ("before", "after"):
        values = result[name]["corrected"]
        shown = [result[name]["held_out"]["exact"], *(values[metric] for metric in ("loss", "bleu-4", "dist-4", "f1"))]
        table.add_row(name, *(f"{value:.2f}" for value in shown))
    console.print(table)
    _show_alignment(console, result["alignment"])
    folder = "" if Path(result["model"]) == OUTPUT else f" {result['model']}"
    console.print(f"Took {result['facts']['seconds, all']:.0f} s. Next:\n")
    console.print(f"  hanmo chat{folder}    talk to it", soft_wrap=True)
    console.print(f"  hanmo chat {result['model']}/aligned    talk to the aligned one", soft_wrap=True)
    console.print(f"  {result['report']}    what it can do, and what it cannot", soft_wrap=True)


def _show_alignment(console: Any, found: dict[str, Any]) -> None:
    from rich.table import Column, Table

    names = ("held-out dialogue", "before", "reward", "after", "reward")
    replies = Table(*(Column(name, overflow="fold") for name in names), title="Learning from preferences")
    for name, shown in (("talk", 5), ("facts", 2)):
        before, after = found[name]
        for one, other in list(zip(before, after, strict=True))[:: max(1, len(before) // shown)]:
            replies.add_row(
                one["prompt"], one["reply"], f"{one['reward']:.1f}", other["reply"], f"{other['reward']:.1f}"
            )
    console.print(replies)
    console.print(
        f"Reward model: {100 * found['accuracy']:.0f} % of held-out pairs right. Mean reward of held-out replies: "
        f"{found['reward_before']:.2f} before DPO, {found['reward_after']:.2f} after; "
        f"{found['openings_fitting']} of {len(found['openings'])} openings still get a fitting reply."
    )
    console.print("  ".join(f"step {step}: {value:.2f}" for step, value in found["curve"]))
