"""The site's generated pages: every option is in the reference, and every section of README.md is on a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from config_reference import options, reference, section
from pages import REST, SPLIT, pages, sections

from qexp.__main__ import PROGRAMS
from qexp.places import CONF

ROOT = Path(__file__).parents[1]
FILES = sorted(file for file in CONF.rglob("*.yaml") if "logging" not in file.parent.name)


def leaves(node: object, path: str = "") -> Iterator[str]:
    """Paths of all keys whose values are no mappings."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_is_there_with_its_default(file: Path) -> None:
    text = file.read_text()
    found = {option.path: option.value for option in options(text)}
    for path in leaves(yaml.safe_load(text)):
        if path.partition(".")[0] not in ("defaults", "hydra"):
            # A mapping in braces is the value of its key.
            inner = next(
                (known for known in found if path == known or path.startswith(f"{known}.") and found[known]), None
            )
            assert inner, path


def test_comments_above_a_key_and_on_its_line_are_its_meaning() -> None:
    text = "# a: first\nlr: 0.1  # step size\nrest:  # of them\n  deep: null  # none: off\nlist: [1, 2]\n"
    assert [(o.path, o.value, o.about) for o in options(text)] == [
        ("lr", "0.1", "step size. a: first"), ("rest", "", "of them"), ("rest.deep", "null", "none: off"),
        ("list", "[1, 2]", ""),
    ]  # fmt: skip


def test_choices_of_groups_are_options_too() -> None:
    assert "| `engine@fp32_engines` | `auto` | speedup&#95;vs&#95;best&#95;fp32 compares" in section(
        CONF / "_job.yaml", ""
    )


def test_all_groups_are_in_the_reference(tmp_path: Path) -> None:
    page = reference(CONF)
    assert page.count("\n### ") == len(FILES)
    (tmp_path / "conf" / "new").mkdir(parents=True)
    (tmp_path / "conf" / "new" / "one.yaml").write_text("key: 1  # what it is\n")
    assert "## New\n\n### `new=one`\n\n| option" in reference(tmp_path / "conf")


def test_each_section_is_on_one_page(made: dict[str, str]) -> None:
    for page, source in REST.items():
        for title, text in sections((ROOT / source).read_text()).items():
            line = next(line for line in text.splitlines()[1:] if len(line) > 60 and "](" not in line)
            assert sum(line in other for other in made.values()) == 1, f"{source}: {title} ({page})"


def test_a_page_begins_with_its_title_and_leads_to_other_pages(made: dict[str, str]) -> None:
    for name in SPLIT:
        assert re.match(r"# \S", made[name])
    assert "](docs/" not in "".join(made.values()) and "](methods.md" in made["index.md"] + made["network.md"]


def test_each_program_explains_itself(made: dict[str, str]) -> None:
    assert re.findall(r"^## qexp (\w+)$", made["command.md"], re.M) == [*PROGRAMS]
    assert "KEY=VALUE" in made["command.md"]


def test_the_pages_of_the_site_are_all_there(made: dict[str, str]) -> None:
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert named == {*made} | {file.name for file in (ROOT / "docs").glob("*.md")}
