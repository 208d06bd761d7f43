"""Makes the pages of the site that no file of docs/ holds, whenever MkDocs builds it.

MkDocs calls `on_files` (mkdocs.yml, "hooks"). README.md and CONTRIBUTING.md stay whole for those who read them there,
and are split here. The references come from qexp/ and conf/ themselves.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from config_reference import reference

ROOT = Path(__file__).parents[1]
# Sections that are pages of their own. What no line names is on the page of the rest of its file.
SPLIT = {
    "network.md": [("README.md", "Your network, your images")],
    "measuring.md": [("README.md", "How the numbers come about")],
    "limits.md": [("README.md", "Limits")],
    "adding.md": [("CONTRIBUTING.md", "To add ..."), ("README.md", "Add a method")],
    "glossary.md": [("CONTRIBUTING.md", "Words")],
}
REST = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
TITLES = {"To add ...": "How to add each thing"}
LINKS = {
    "](docs/": "](", "](CONTRIBUTING.md": "](contributing.md", "](README.md": "](index.md",
    "](examples/choose.ipynb": "](notebook.md",
}  # fmt: skip
OPTIONS = "::: {}\n    options: {{heading_level: 2}}\n"
# What users derive from or are given, beside the public names of the package.
BASES = (
    "qexp.data.base.ImageData", "qexp.method.base.Method", "qexp.method.base.Compressed", "qexp.engine.base.Engine",
    "qexp.measure.base.Measure", "qexp.measure.base.Context", "qexp.artifact.Artifact", "qexp.artifact.Layer",
    "qexp.artifact.EngineSpec", "qexp.types.Preprocessing", "qexp.types.DataSpec", "qexp.records.Record",
    "qexp.records.Measurement", "qexp.metrics.Metric",
)  # fmt: skip


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that MkDocs found in docs/."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """All of these pages by file name, in Markdown."""
    whole = {file: sections((ROOT / file).read_text()) for file in REST.values()}
    made = {
        page: "\n\n".join(raised(whole[file].pop(title), TITLES.get(title, title)) for file, title in parts)
        for page, parts in SPLIT.items()
    }
    made |= {page: "\n".join(whole[file].values()) for page, file in REST.items()}
    for old, new in LINKS.items():
        made = {page: text.replace(old, new) for page, text in made.items()}
    return made | {
        "options.md": reference(ROOT / "conf"), "python.md": python(), "bases.md": bases(), "command.md": command(),
        "notebook.md": notebook(),
    }  # fmt: skip


def sections(text: str) -> dict[str, str]:
    """The sections of a document by title. What stands before the first is under the empty title."""
    parts = re.split(r"^(?=## )", text, flags=re.M)
    return {part.partition("\n")[0].removeprefix("## ") if part.startswith("## ") else "": part for part in parts}


def raised(section: str, title: str) -> str:
    """A section as a page: its headings are a level higher, except in blocks of code."""
    blocks = re.split(r"(^```.*?^```$)", section.partition("\n")[2], flags=re.M | re.S)
    blocks[::2] = [re.sub(r"^#(#+ )", r"\1", block, flags=re.M) for block in blocks[::2]]
    return f"# {title}\n{''.join(blocks)}"


def python() -> str:
    """The public names of the package, which its `__all__` lists."""
    names = ast.literal_eval(value_of(ast.parse((ROOT / "qexp" / "__init__.py").read_text()), "__all__"))
    return "\n".join(["# In Python", "", *(OPTIONS.format(f"qexp.{name}") for name in names)])


def value_of(module: ast.Module, name: str) -> ast.expr:
    """What a module assigns to a name."""
    assigned = (node for node in module.body if isinstance(node, ast.Assign))
    return next(node.value for node in assigned if ast.unparse(node.targets[0]) == name)


def notebook() -> str:
    """The cells of the example notebook."""
    cells = json.loads((ROOT / "examples" / "choose.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    )


def bases() -> str:
    head = "# Base classes and nouns\n\nWhat you derive from or are given when you [add something](adding.md).\n"
    return "\n".join([head, *(OPTIONS.format(name) for name in BASES)])


def command() -> str:
    """What each program of the command says of itself. Those of Hydra's take the options of the reference."""
    tree = ast.parse((ROOT / "qexp" / "__main__.py").read_text())
    assigned = value_of(tree, "PROGRAMS")
    assert isinstance(assigned, ast.Dict)
    found = ["# The command", "", "`qexp PROGRAM` starts a program, and `qexp PROGRAM --help` explains its options."]
    for key, value in zip(assigned.keys, assigned.values, strict=True):
        assert key and isinstance(value, ast.Call)
        about, *module = (ast.literal_eval(argument) for argument in value.args)
        found += ["", f"## qexp {ast.literal_eval(key)}", "", f"{about[0].upper()}{about[1:]}."]
        if not module:
            found[-1] += " It takes the [options](options.md) as KEY=VALUE."
        else:
            file = ROOT / f"{module[0].replace('.', '/')}.py"
            found += ["", "```text", str(ast.get_docstring(ast.parse(file.read_text()))), "```"]
    return "\n".join(found)
