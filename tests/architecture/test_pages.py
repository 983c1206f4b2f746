"""Pages link to what exists, name tests that exist, and all can be reached from the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder in ("docs", "src", "changes", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.md")
    if "results" not in path.parts
) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(page: Path) -> list[tuple[Path, str]]:
    """Relative links out of a page, as (file, anchor)."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            file, _, anchor = target.partition("#")
            found.append(((page.parent / file).resolve() if file else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_tests_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_page_of_the_documentation_can_be_reached_from_its_index() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md" and page.is_file():
            reached.add(page)
            waiting += [file for file, _ in links(page)]
    assert not [page_id(page) for page in (ROOT / "docs").rglob("*.md") if page not in reached]
    assert ROOT / "SECURITY.md" in reached


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head, `here`\n[x](gone.md) [y](#a-head-here) [z](https://example.org)\n")
    assert links(page) == [(tmp_path / "gone.md", ""), (page, "a-head-here")]
    assert anchors(page) == {"a-head-here"}
