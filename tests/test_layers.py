"""Which file may import which package, and that the engine never prints.

The direction of the project's own imports is held by import-linter (pyproject.toml); this is about everybody else's, which
stay replaceable, and late to load, only where one or two files know them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ALLOWED = {
    "lmdb": ["repo/index_environment.py"],
    "pyfuse3": ["fs/"],
    "trio": ["fs/"],
    "click": ["cli/"],
    "rich": ["cli/"],
    "cryptography": ["repo/format/"],
    "blake3": ["repo/format/", "repo/backup/chunker.py"],
    "zstandard": ["repo/format/"],
    "platformdirs": ["repo/repository.py", "repo/creation.py", "fs/background.py", "cli/"],
}


@cache
def sources() -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"), str(path)))
        for layer in ("fs", "repo", "cli")
        for path in sorted((ROOT / layer).rglob("*.py"))
    ]


def imported(tree: ast.Module) -> Iterator[str]:
    """Top-level names of every import, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_are_imported_where_they_belong(package: str) -> None:
    elsewhere = [
        path
        for path, tree in sources()
        if package in imported(tree) and not path.startswith(tuple(ALLOWED[package]))
    ]
    assert not elsewhere, f"{package} belongs to {', '.join(ALLOWED[package])}"


def test_the_engine_and_the_mount_never_print() -> None:
    printing = [
        f"{path}:{node.lineno}"
        for path, tree in sources()
        if not path.startswith("cli/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "input")
    ]
    assert not printing


def test_the_check_itself_sees_imports() -> None:
    tree = ast.parse("import a.b\nfrom c.d import e\ndef f():\n    import g as h\n")
    assert list(imported(tree)) == ["a", "c", "g"]
