"""What is known of planted faults: kept as JSON while the tool runs, and as a table."""

import json
from dataclasses import asdict
from pathlib import Path

from tools.mutants.mutations import Mutant
from tools.mutants.running import Outcome


class Results:
    """The outcomes by the faults' content; a run that is stopped loses nothing."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._table = folder / "results.json", folder / "table.md"
        self._known: dict[str, dict[str, object]] = (
            json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        )

    def asks(self, mutant: Mutant, again: bool) -> bool:
        """Whether a fault is still to be planted."""
        found = self._known.get(mutant.key)
        return found is None or (again and found["outcome"] == "survived")

    def add(self, mutant: Mutant, outcome: Outcome) -> None:
        self._known[mutant.key] = {"path": mutant.path, "line": mutant.line, **asdict(outcome)}
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(self._known, ensure_ascii=False, indent=1), encoding="utf-8")
        draft.replace(self._file)

    def write_table(self, chosen: dict[str, list[Mutant]], equivalent: dict[str, str]) -> str:
        """Write the table of the chosen faults; returns the counts, as lines."""
        rows, counts = [], []
        for part, mutants in chosen.items():
            found = [(mutant, self._known[mutant.key]) for mutant in mutants if mutant.key in self._known]
            found = [(mutant, outcome) for mutant, outcome in found if outcome["outcome"] != "invalid"]
            killed = sum(outcome["outcome"] == "killed" for _, outcome in found)
            counts.append((part, len(found), killed))
            for mutant, outcome in sorted(found, key=lambda one: (one[1]["outcome"], one[0].path, one[0].line)):
                cells = (f"{mutant.path}:{mutant.line}", mutant.what, f"`{mutant.before}` → `{mutant.text}`")
                rows.append("| {} | {} | {} | {}: {} |".format(*cells, outcome["outcome"], outcome["by"]))
        whole = ("all", sum(count for _, count, _ in counts), sum(killed for *_, killed in counts))
        said = [
            f"| {part} | {count} | {killed} | {killed / max(count, 1):.0%} |"
            for part, count, killed in [*counts, whole]
        ]
        head = ["| part | faults | killed | share |", "| --- | --- | --- | --- |", *said]
        body = ["| place | kind | fault | outcome |", "| --- | --- | --- | --- |", *rows]
        tail = [f"- {key}: {reason}" for key, reason in equivalent.items()]
        page = ["# Planted faults", "", *head, "", *body, "", "Faults that change nothing:", "", *tail, ""]
        self._table.write_text("\n".join(page), encoding="utf-8")
        return "\n".join([*head, f"The table: {self._table}"])


def equivalents(file: Path) -> dict[str, str]:
    """Faults that change nothing that can be seen, by content, with the reason: a line each, the reason indented below."""
    found: dict[str, str] = {}
    key = ""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            found[key] = f"{found[key]} {line.strip()}".strip()
        else:
            key = line.strip()
            found[key] = ""
    return found
