"""Every message that a user can see, collected from the source into one list.

    python -m tests.gates.messages             does messages.txt match the source?
    python -m tests.gates.messages --update    write messages.txt anew

A line of the list is a message and the error that it belongs to, or a next step; what is filled
in stands in braces. Functions that make errors count as errors: those whose annotation returns
one, or NoReturn. So a change of a message is one line in a review, and needs no change of a test.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from uploader import errors

__all__ = ["PUBLIC_ERRORS", "SNAPSHOT", "Messages", "main", "sources"]

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("messages.txt")
PUBLIC_ERRORS = frozenset(name for name, kind in vars(errors).items() if isinstance(kind, type))

_LEFT_OUT = frozenset({"devserver"})  # another program that lives in this repository
_NEXT_STEPS = frozenset({"next_step", "default_next_step"})
_MAX_ALTERNATIVES = 20
_FILLED_IN = re.compile(r"\{.*\}", re.DOTALL)


def sources() -> dict[str, str]:
    """The text of every module, by its path in the package."""
    package = ROOT / "uploader"
    paths = (path.relative_to(package) for path in sorted(package.rglob("*.py")))
    return {
        path.as_posix(): (package / path).read_text(encoding="utf-8")
        for path in paths
        if path.parts[0] not in _LEFT_OUT
    }


class Messages:
    """The messages of modules. Mutable: none but what `__init__` finds."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        trees = {name: ast.parse(text) for name, text in modules.items()}
        every = [node for tree in trees.values() for node in ast.walk(tree)]
        self._errors = _error_classes(every)
        self._makers = {
            node.name
            for node in every
            if isinstance(node, ast.FunctionDef) and self._is_error(node.returns)
        }
        self.lines = {name: self.lines_of(tree) for name, tree in trees.items()}

    def _is_error(self, annotation: ast.expr | None) -> bool:
        names = re.findall(r"\w+", ast.unparse(annotation)) if annotation is not None else []
        return bool(self._errors.union({"NoReturn"}).intersection(names))

    def lines_of(self, tree: ast.Module) -> list[str]:
        """The lines of one module, sorted."""
        texts = _named_texts(tree)
        return sorted({line for node in ast.walk(tree) for line in self._lines_at(node, texts)})

    def _lines_at(self, node: ast.AST, texts: Mapping[str, list[ast.expr]]) -> Iterator[str]:
        if isinstance(node, ast.Assign) and _NEXT_STEPS & set(map(_name_of, node.targets)):
            yield from (f"next step: {step}" for step in _alternatives(node.value, texts))
        if not isinstance(node, ast.Call):
            return
        name = _name_of(node.func)
        if name in self._makers | self._errors:
            given = node.args if name in self._makers else node.args[:1]
            for text in itertools.chain.from_iterable(_alternatives(arg, texts) for arg in given):
                if not _FILLED_IN.fullmatch(text):
                    yield f"{name}: {text}"
        for keyword in node.keywords:
            if keyword.arg in _NEXT_STEPS:
                steps = _alternatives(keyword.value, texts)
                yield from (f"next step: {step}" for step in steps if step != "{None}")

    def as_text(self) -> str:
        """The list as it is stored."""
        blocks = [(name, lines) for name, lines in self.lines.items() if lines]
        return "\n".join(
            f"{name}\n" + "".join(f"  {line}\n" for line in lines) for name, lines in blocks
        )


def _error_classes(nodes: Iterable[ast.AST]) -> set[str]:
    """The public errors, and whatever derives from an exception anywhere."""
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    found = {*PUBLIC_ERRORS, "ValueError", "Exception", "OSError"}
    for _ in classes:  # a class may stand before its base
        found |= {node.name for node in classes if found & set(map(_name_of, node.bases))}
    return found


def _named_texts(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """What is assigned to each name anywhere in a module."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name].append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name].append(value)
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=value):
                found[name].append(value)
    return found


def _alternatives(node: ast.expr, texts: Mapping[str, list[ast.expr]]) -> list[str]:
    """The texts that an expression may be; what is not known stands in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return [text.replace("\n", "\\n")]
        case ast.JoinedStr(values=parts):
            return ["".join(_part(part) for part in parts)]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            pairs = itertools.product(_alternatives(left, texts), _alternatives(right, texts))
            return ["".join(pair) for pair in pairs]
        case ast.IfExp(body=body, orelse=other):
            return _alternatives(body, texts) + _alternatives(other, texts)
        case ast.Name(id=name) if name in texts and len(texts[name]) <= _MAX_ALTERNATIVES:
            others = {key: value for key, value in texts.items() if key != name}
            return [text for value in texts[name] for text in _alternatives(value, others)]
    return [f"{{{ast.unparse(node)}}}"]


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", "\\n")
    return f"{{{ast.unparse(node.value)}}}" if isinstance(node, ast.FormattedValue) else ""


def _name_of(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def main(argv: list[str] | None = None) -> int:
    """Compare or update."""
    text = Messages(sources()).as_text()
    if "--update" in (sys.argv[1:] if argv is None else argv):
        SNAPSHOT.write_text(text, encoding="utf-8")
    elif text != SNAPSHOT.read_text(encoding="utf-8"):
        print("messages: the source has other messages: python -m tests.gates.messages --update")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
