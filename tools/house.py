"""Print the code lines of hanmo by package, and what is too large or imports in a circle.

    python -m tools.house [--strict]

A code line is neither blank nor a comment. More than LINES of them in all is an error; with --strict so is everything else
that is printed.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
LINES = 30_000  # 27,000 with serving; then the verifiers and what else alignment and evaluation of today need
FILE, FUNCTION = 350, 60  # the most lines of each, blank ones, comments and docstrings included


def code_lines(text: str) -> int:
    """The lines of a file that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


def by_package(package: Path) -> Counter[str]:
    """Code lines of each subpackage, and of the files at the top together."""
    lines: Counter[str] = Counter()
    for file in package.rglob("*.py"):
        first = file.relative_to(package).parts[0]
        lines["(top)" if first == file.name else first] += code_lines(file.read_text(encoding="utf-8"))
    return lines


def too_long(package: Path) -> Iterator[str]:
    """Files and functions with more lines than they may have."""
    for file in sorted(package.rglob("*.py")):
        text, name = file.read_text(encoding="utf-8"), file.relative_to(package.parent)
        if (count := len(text.splitlines())) > FILE:
            yield f"{name}: {count} lines, at most {FILE}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                count = node.end_lineno - node.lineno + 1
                if count > FUNCTION:
                    yield f"{name}:{node.lineno}: {node.name} has {count} lines, at most {FUNCTION}"


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches all others of the group.

    Args:
        imports: module -> the modules that it imports.
    """

    def reached(module: str) -> set[str]:
        found: set[str] = set()
        waiting = [module]
        while waiting:
            new = imports.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    reach = {module: reached(module) for module in imports}
    groups = {tuple(sorted(other for other in reach[one] if one in reach.get(other, ()))) for one in imports}
    return [list(group) for group in sorted(groups) if group]


def imports_of(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, in functions and for type checking too."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def main(arguments: list[str]) -> int:
    """Exit code 1 where the whole is too large, or with --strict where anything is."""
    package = ROOT / "hanmo"
    lines = by_package(package)
    for name, count in sorted(lines.items()):
        print(f"{name:12} {count:6,}")
    print(f"{'all':12} {lines.total():6,} code lines, at most {LINES:,}")
    found = [f"circle of imports: {' '.join(group)}" for group in circles(imports_of(package.name))]
    found += too_long(package)
    for line in found:
        print(line)
    return int(lines.total() > LINES or ("--strict" in arguments and bool(found)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
