"""Plant single faults, and see whether the fast tests that execute their lines notice: ``make mutants``.

    python -m tools.mutants [--count N] [--seed N] [--minutes M] [--again] [--only PART]

A sample of faults (``mutations.py``) in losses, rows, collation, sampling and the wiring of the trainers, chosen by their
content and the seed. Each is planted in a copy of the tree, and the tests that execute its line (``coverage_by_test.py``)
run until one fails. Results are kept in build/mutants/, so that a run that was stopped goes on; ``--again`` asks anew
about those that survived. ``equivalent.txt`` names faults that change nothing that can be seen, with the reason.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from tools.mutants.mutations import Mutant, mutants_of
from tools.mutants.results import Results, equivalents
from tools.mutants.running import Shown, run
from tools.mutants.touching import Touching

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
# part -> its files; of each part as many faults are taken
PARTS: dict[str, tuple[str, ...]] = {
    "losses": ("hanmo/losses.py", "hanmo/training/schedules.py", "hanmo/training/divergence.py"),
    "rows": (
        "hanmo/rows.py",
        "hanmo/families/base.py",
        "hanmo/nn/causal.py",
        "hanmo/families/*/family.py",
        "hanmo/families/glm/pretraining.py",
    ),
    "collation": ("hanmo/data/rows/*.py",),
    "sampling": ("hanmo/generation/*.py", "hanmo/families/eva/decoding.py"),
    "trainers": (
        "hanmo/training/trainer.py",
        "hanmo/training/pairs.py",
        "hanmo/training/supervised.py",
        "hanmo/training/stages/*.py",
        "hanmo/training/rl/*.py",
        "hanmo/training/rl/rewards/*.py",
    ),
}
TELLS = ("sections", "pair_curves", "__repr__")  # functions that write pages: what they say is not what is trained


def main() -> None:
    parser = argparse.ArgumentParser(description="Plant single faults and see whether the fast tests notice.")
    parser.add_argument("--count", type=int, default=240, help="faults in all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new fault after so many minutes")
    parser.add_argument("--only", choices=PARTS, help="faults of this part alone")
    parser.add_argument("--again", action="store_true", help="ask anew about the faults that survived")
    parser.add_argument("--table", action="store_true", help="plant nothing: write the table of what is known")
    options = parser.parse_args()
    known, results = equivalents(Path(__file__).with_name("equivalent.txt")), Results(WORK)
    chosen = {part: sample(part, options.count // len(PARTS), options.seed, set(known)) for part in PARTS}
    wanted = [mutant for part, mutants in chosen.items() if options.only in (None, part) for mutant in mutants]
    if not options.table:
        touching = Touching(ROOT, WORK, [str(path.relative_to(ROOT)) for part in PARTS for path in files(part)])
        shown = []
        for mutant in wanted:
            if results.asks(mutant, options.again):
                tests = touching.tests(mutant)
                shown.append(Shown(mutant, tests, touching.seconds(tests)))
        for mutant, outcome in run(ROOT, WORK, shown, options.minutes):
            results.add(mutant, outcome)
    print(results.write_table(chosen, known))


def files(part: str) -> list[Path]:
    """Raises FileNotFoundError: a pattern finds nothing (the files were moved), so that no part is silently without faults."""
    found = {pattern: sorted(ROOT.glob(pattern)) for pattern in PARTS[part]}
    for pattern, paths in found.items():
        if not paths:
            raise FileNotFoundError(f"PARTS in {__file__} names {pattern}, which matches no file")
    return sorted(path for paths in found.values() for path in paths)


def sample(part: str, count: int, seed: int, known: set[str]) -> list[Mutant]:
    """As many faults of a part, by the hash of seed and content: another fault elsewhere does not change the choice."""
    found = (mutant for path in files(part) for mutant in mutants_of(str(path.relative_to(ROOT)), path.read_bytes()))
    unique = {mutant.key: mutant for mutant in found if not any(word in mutant.scope for word in TELLS)}

    def order(key: str) -> bytes:
        return hashlib.sha256(f"{seed} {key}".encode()).digest()

    wanted: Iterable[str] = (key for key in sorted(unique, key=order) if key not in known)
    return [unique[key] for key, _ in zip(wanted, range(count), strict=False)]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
