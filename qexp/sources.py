"""Finds the code that takes part in a result, by following imports, and digests it.

Nothing is imported for that: modules are found by their files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# Modules that compute no result: a change of them, or another version, keeps all keys.
INDIFFERENT = (
    "filelock", "rich",  # locks and progress bars
    "hydra", "omegaconf",  # the values and classes that they make of a config are digested themselves
    "qexp.cli", "qexp.errors", "qexp.worker",  # the command line and its messages
    "qexp.metrics", "qexp.progress", "qexp.report", "qexp.tracking",  # only show results
    "qexp.keys", "qexp.sources",
)  # fmt: skip
OWN = __name__.partition(".")[0]  # counts by its source even if it is installed
SUFFIXES = (".py", *EXTENSION_SUFFIXES)
PARSING = threading.Lock()  # CPython 3.11 confuses the depths of two threads that parse at once, and raises SystemError
ABSENT = "absent"  # version of a library that is imported but not installed


def code_digests(names: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
    """Digest the named code and everything that it imports when it runs, directly or indirectly.

    The standard library does not count, because `key` counts the version of Python, and neither does INDIFFERENT.

    Args:
        names: Dotted names of modules, packages or classes, as `key` takes them.
        without: Dotted names of modules and packages that do not count, as `key` takes them.

    Returns:
        The digest of the source of each module, and the name and version of each library. A library that is imported
        but missing counts as `absent`.

    Raises:
        ModuleNotFoundError: One of `names` cannot be found.
    """
    return _followed(names, (*INDIFFERENT, *without))


def _followed(names: Iterable[str], left_out: Iterable[str]) -> dict[str, str]:
    """What `code_digests` gives, for code of which `left_out` does not count."""
    found = dict[str, str]()
    waiting = [each for name in sorted(names) for each in _roots(name)]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or any(f"{name}.".startswith(f"{other}.") for other in left_out):
            continue
        if version := _installed(top):
            found[top] = version
            continue
        modules = _modules(name)
        if not modules:
            found[top] = ABSENT
        for module in modules:
            if module not in found:
                source = _source(module)
                found[module] = source.digest
                waiting += source.imports
    return found


def own_sources(names: Iterable[str]) -> dict[str, Path]:
    """The files of the named code and of all that it imports when it runs, but for libraries.

    Args:
        names: Dotted names of modules, packages or classes, as `key` takes them.

    Returns:
        The file of each module by its dotted name.

    Raises:
        ModuleNotFoundError: One of `names` cannot be found.
    """
    found = {name: place.file for name in _followed(names, ()) if (place := _find(name)) and place.file}
    return {name: file for name, file in found.items() if not _installed(name.partition(".")[0])}


def _roots(name: str) -> list[str]:
    """The name itself and, if it is a package, all its modules.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or _installed(top):
        return [name]
    if not _modules(name):
        raise ModuleNotFoundError(
            f"{name} takes part in a result, but no module of that name is found from {os.getcwd()}."
        )
    found, package = [name], _find(name)
    for folder in package.folders if package else ():
        inside = (file.relative_to(folder).with_suffix("").parts for file in sorted(folder.rglob("*.py")))
        found += [".".join([name, *parts]).removesuffix(".__init__") for parts in inside]
    return found


def _modules(name: str) -> list[str]:
    """The modules with a file that are imported on the way to `name`, such as `a` and `a.b` for `a.b.Class`."""
    parts = name.split(".")
    prefixes = (".".join(parts[: end + 1]) for end in range(len(parts)))
    return [prefix for prefix in prefixes if (module := _find(prefix)) and module.file]


@dataclass(frozen=True)
class _Place:
    """Where a module lies.

    Attributes:
        file: File of its source or compiled code, or None for a folder without `__init__.py`.
        folders: Folders of its submodules. Empty if it is not a package.
    """

    file: Path | None
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What a module computes and what it needs.

    Attributes:
        digest: Digest of its syntax tree, without comments, docstrings and formatting.
        imports: Dotted names of the modules that it imports, or of what it imports from them.
    """

    digest: str
    imports: tuple[str, ...]


# The results of what follows are cached as long as the process lives, because it goes on running the code that it has
# imported, even if the files change.


@cache
def _find(name: str) -> _Place | None:
    """Find where a module lies by looking for its file, without importing anything."""
    parent, _, last = name.rpartition(".")
    if parent:
        above = _find(parent)
        places = above.folders if above else ()
    else:
        places = tuple(Path(place or ".") for place in dict.fromkeys([*sys.path, os.getcwd()]))
    without_file = []
    for place in places:
        folder = place / last
        for suffix in SUFFIXES:
            if (file := folder / f"__init__{suffix}").is_file():
                return _Place(file, (folder,))
            if (file := place / f"{last}{suffix}").is_file():
                return _Place(file)
        if folder.is_dir():
            without_file.append(folder)
    if without_file:
        return _Place(None, tuple(without_file))
    if not parent and (told := _told_by_finders(name)):
        return told
    imported = getattr(sys.modules.get(name), "__file__", None)  # a script, for one, is not found by its path
    return _Place(Path(imported)) if imported else None


def _told_by_finders(top: str) -> _Place | None:
    """Where a top-level module lies that no folder of sys.path has, as of a package that was installed to be edited."""
    with suppress(ImportError, ValueError):  # of a module without a spec, such as `__main__`
        spec = importlib.util.find_spec(top)
        if spec and spec.has_location and spec.origin:
            return _Place(Path(spec.origin), tuple(map(Path, spec.submodule_search_locations or ())))
    return None


@cache
def _installed(top: str) -> str | None:
    """Names and versions of the distributions that installed a top-level module, or None if none did."""
    place = _find(top)
    if top == OWN or place is None:
        return None
    site = (place.folders or (place.file or Path(),))[0].parent
    owners = [name for name, record in _records(site) if f"\n{top}/" in record or f"\n{top}." in record]
    return " ".join(owners) or None


@cache
def _records(site: Path) -> list[tuple[str, str]]:
    """Name and version of each distribution in a folder of sys.path, with the list of its files."""
    folders = sorted(site.glob("*.dist-info"))
    return [(f.stem, "\n" + (f / "RECORD").read_text()) for f in folders if (f / "RECORD").is_file()]


@cache
def _source(name: str) -> _Source:
    place = _find(name)
    assert place and place.file
    content, package = place.file.read_bytes(), name if place.folders else name.rpartition(".")[0]
    if place.file.suffix != ".py":
        return _Source(hashlib.sha256(content).hexdigest(), ())
    digest, statements = _parsed(content)
    return _Source(digest, tuple(sorted({each for statement in statements for each in _imported(statement, package)})))


@cache
def _parsed(content: bytes) -> tuple[str, list[ast.stmt]]:
    """The digest of a Python source, and its statements that import something."""
    statements: list[ast.stmt] = []
    with PARSING:
        tree = ast.parse(content)
    outline = repr(_outline(tree, statements))
    return hashlib.sha256(outline.encode()).hexdigest(), statements


def _outline(node: Any, imports: list[ast.stmt]) -> Any:
    """A syntax tree as nested tuples and lists, without docstrings.

    Args:
        node: The tree.
        imports: List to which the statements that import something are appended.
    """
    if isinstance(node, list):
        return [_outline(item, imports) for item in node if not _is_text(item)]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        imports.append(node)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", "")):
        return ["If", _outline(node.body, []), _outline(node.orelse, imports)]
    return (type(node).__name__, *[_outline(getattr(node, field, None), imports) for field in node._fields])


def _is_text(node: Any) -> bool:
    """Whether the node is a statement that consists of a string alone, as docstrings do."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(statement: ast.stmt, package: str) -> Iterator[str]:
    """Dotted names that a statement in a module of `package` imports."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        above = package.split(".")[: 1 - statement.level or None] if statement.level else []
        module = ".".join([*above, *([statement.module] if statement.module else [])])
        yield from (f"{module}.{alias.name}" for alias in statement.names)
