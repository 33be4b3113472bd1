"""The pages say what the commands take, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import typer

from hwprune.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def options(command) -> set[str]:
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found - {"--help"}


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))
def test_the_page_of_a_command_names_exactly_its_options(name: str) -> None:
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text()
    expected = options(typer.main.get_command(app).commands[name])
    rows = {option for line in page.splitlines() if line.startswith("|") for option in re.findall(r"`(--[a-z-]+)", line)}
    assert expected <= set(re.findall(r"`(--[a-z-]+)", page))
    assert rows <= expected
    assert "## Exit codes" in page and "    hwprune " in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
