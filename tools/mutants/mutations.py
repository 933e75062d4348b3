"""Single faults of a source file, each as a replacement of a piece of its text."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
SWAPPED = {
    "min": "max",
    "minimum": "maximum",
    "amin": "amax",
    "argmin": "argmax",
    "clamp_min": "clamp_max",
    "any": "all",
    "sum": "mean",
    "logsumexp": "sum",
    "first": "last",
}
SWAPPED |= {other: one for one, other in SWAPPED.items() if one not in ("logsumexp", "sum")}
DROPPED = {"clamp", "clamp_min", "detach", "float", "double", "abs", "square", "exp", "neg", "sorted", "masked_fill"}
UNSEEN = ("device", "strict")  # of one device, and of lists that are of one length, they change nothing


@dataclass(frozen=True)
class Mutant:
    """A fault: the text from ``start`` to ``end`` (offsets in the file's UTF-8) becomes ``text``.

    Attributes:
        what: the kind of fault.
        scope: the function, with those around it.
        code_name: the outermost function.
        statement: the first line of the statement it is in, by which a fault is known when lines move.
        before: what stood there.
    """

    path: str
    line: int
    last_line: int
    start: int
    end: int
    what: str
    before: str
    text: str
    statement: str
    scope: str
    code_name: str

    @property
    def key(self) -> str:
        """The fault by its content, whatever its line."""
        return " | ".join((self.path, self.scope, self.statement, self.what, f"{self.before} -> {self.text}"))

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """All faults that this tool knows to plant in a file."""
    return list(_Walk(path, source).found())


class _Walk:
    def __init__(self, path: str, source: bytes):
        self._path, self._source = path, source
        self._lines = source.split(b"\n")
        self._offsets = [0]
        for line in self._lines:
            self._offsets.append(self._offsets[-1] + len(line) + 1)

    def found(self) -> Iterator[Mutant]:
        yield from self._definitions(ast.parse(self._source).body, "")

    def _definitions(self, body: list[ast.stmt], outside: str) -> Iterator[Mutant]:
        """Of functions alone: settings' defaults and constants of a module are documented values, not behaviour."""
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                yield from self._definitions(statement.body, f"{outside}{statement.name}.")
            elif isinstance(statement, ast.FunctionDef):
                self._code_name = f"{outside}{statement.name}"
                yield from self._statements(statement.body, self._code_name)

    def _statements(self, body: list[ast.stmt], scope: str) -> Iterator[Mutant]:
        for statement in body:
            if isinstance(statement, ast.FunctionDef):
                yield from self._statements(statement.body, f"{scope}.{statement.name}")
                continue
            left_alone = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.ClassDef)
            if isinstance(statement, left_alone) or _is_text(statement):
                continue
            yield from self._deleted(statement, scope)
            for name, value in ast.iter_fields(statement):
                if name in ("body", "orelse", "finalbody", "handlers"):
                    for part in value:
                        inside = part.body if isinstance(part, ast.ExceptHandler) else [part]
                        yield from self._statements(inside, scope)
                elif name == "items":
                    for part in value:
                        yield from self._expressions(part.context_expr, statement, scope)
                elif name not in ("annotation", "target", "targets"):
                    for part in value if isinstance(value, list) else [value]:
                        if isinstance(part, ast.AST):
                            yield from self._expressions(part, statement, scope)

    def _deleted(self, statement: ast.stmt, scope: str) -> Iterator[Mutant]:
        called = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        stored = isinstance(statement, ast.Assign) and not isinstance(statement.targets[0], (ast.Name, ast.Tuple))
        if called or stored or isinstance(statement, (ast.AugAssign, ast.Continue, ast.Break)):
            yield self._mutant(statement, "statement deleted", "pass", statement, scope)
        if isinstance(statement, ast.Return) and statement.value is not None:
            value = statement.value
            if isinstance(value, ast.Tuple) and len(value.elts) > 1:
                turned = ast.Tuple([value.elts[1], value.elts[0], *value.elts[2:]], ast.Load())
                yield self._mutant(value, "return changed", ast.unparse(turned), statement, scope)
            elif not isinstance(value, (ast.Constant, ast.Compare, ast.BoolOp)):
                yield self._mutant(value, "return changed", "None", statement, scope)
        if isinstance(statement, (ast.If, ast.While)) and not isinstance(statement.test, (ast.Compare, ast.UnaryOp)):
            yield self._mutant(
                statement.test, "condition turned", f"not ({ast.unparse(statement.test)})", statement, scope
            )

    def _expressions(self, root: ast.AST, statement: ast.stmt, scope: str) -> Iterator[Mutant]:
        if isinstance(root, ast.JoinedStr) or (isinstance(root, ast.Constant) and isinstance(root.value, (str, bytes))):
            return
        for what, changed in _changed(root):
            yield self._mutant(root, what, ast.unparse(changed), statement, scope)
        for name, value in ast.iter_fields(root):
            if name in ("annotation", "slice") and isinstance(value, ast.Constant) and isinstance(value.value, str):
                continue
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.keyword) and part.arg in UNSEEN:
                    continue
                if isinstance(part, (ast.expr, ast.comprehension, ast.keyword)):
                    yield from self._expressions(part, statement, scope)

    def _mutant(self, node: ast.AST, what: str, text: str, statement: ast.stmt, scope: str) -> Mutant:
        line, column, last, end = (
            getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")
        )
        start, stop = self._offsets[line - 1] + column, self._offsets[last - 1] + end
        before = " ".join(self._source[start:stop].decode().split())
        if isinstance(node, ast.expr) and not isinstance(node, (ast.Constant, ast.Name, ast.Attribute, ast.Call)):
            text = f"({text})" if not isinstance(node, ast.Tuple) or text == "None" else text
        first = self._lines[statement.lineno - 1].decode().strip()
        return Mutant(self._path, line, last, start, stop, what, before, text, first, scope, self._code_name)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The faults of an expression itself, not of its parts."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARED[type(node.ops[0])]:
            yield "comparison", ast.Compare(node.left, [other()], node.comparators)
    elif isinstance(node, ast.BinOp):
        if type(node.op) in COMPUTED and not isinstance(node.left, ast.JoinedStr):
            yield "arithmetic", ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
        for side in ("left", "right"):
            if _is_mask(part := getattr(node, side)):
                ones = ast.parse(f"torch.ones_like({ast.unparse(part)})", mode="eval").body
                yield "mask of ones", ast.BinOp(**{**dict(ast.iter_fields(node)), side: ones})
    elif isinstance(node, ast.BoolOp):
        yield "and / or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "sign or not dropped", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        else:
            yield "constant", ast.Constant(node.value + 1)
            yield "constant", ast.Constant(node.value - 1)
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.comprehension) and node.ifs:
        return  # has no place of its own; its conditions are mutated
    elif isinstance(node, ast.Call):
        yield from _changed_call(node)


def _changed_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in SWAPPED:
        other = copy.deepcopy(node)
        if isinstance(other.func, ast.Attribute):
            other.func.attr = SWAPPED[name]
        else:
            other.func = ast.Name(SWAPPED[name], ast.Load())
        yield "function swapped", other
    if name in DROPPED and isinstance(node.func, ast.Attribute):
        yield "call dropped", node.func.value
    plain = len(node.args) > 1 and not any(isinstance(one, ast.Starred) for one in node.args[:2])
    if plain and name not in SWAPPED and ast.dump(node.args[0]) != ast.dump(node.args[1]):
        yield "arguments swapped", ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in UNSEEN:
            left = node.keywords[:place] + node.keywords[place + 1 :]
            yield "keyword dropped", ast.Call(node.func, node.args, left)
    for place, argument in enumerate(node.args):
        if _is_mask(argument):
            ones = ast.parse(f"torch.ones_like({ast.unparse(argument)})", mode="eval").body
            yield (
                "mask of ones",
                ast.Call(node.func, [*node.args[:place], ones, *node.args[place + 1 :]], node.keywords),
            )


def _is_mask(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return ("mask" in name.lower() and not name.isupper()) or name.startswith("counts_")
