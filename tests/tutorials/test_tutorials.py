"""Every tutorial is walked, command by command, and shows what really comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tutorials.walk import ROOT, blocks, normalised, walk

# On a sixtieth of the images 24 epochs of the first run are long enough for the Ctrl-C to come in time.
SETTINGS = {"first-run": "--set epochs=24"}
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_tutorial_does_what_it_says(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / page.stem  # runs are named after it
    folder.mkdir()
    shown = walk(page, folder, settings=SETTINGS.get(page.stem, ""))
    assert shown
    for block, expected, found in shown:
        assert normalised(found) == normalised(expected), (
            f"line {block.line}: {block.body}gives now:\n{found}"
        )


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_program_of_a_page_is_run_or_says_why_not(page: Path) -> None:
    programs = [block for block in blocks(page) if block.language in ("sh", "python", "yaml")]
    said = ("file: ", "not run: ")
    assert programs
    unsaid = [block.line for block in programs if not block.is_run and not block.note.startswith(said)]
    assert not unsaid, f"{page.name}: lines {unsaid}"


def test_a_comparison_finds_another_word_and_overlooks_another_number() -> None:
    shown = "run  first-run-20261123-101841-9a39  0.98\n12 KiB in 3 ms\nfloat32\n"
    assert normalised(shown) == normalised("run  other-20260101-000000-0000  0.5\n3 MiB in 12 s\nbfloat16\n")
    assert normalised(shown) != normalised(shown.replace("run ", "ran "))
    assert normalised("step 1\nstep 2\n") == ["step N"]
    assert normalised(f"shard 0  {'0a' * 16}\n") == ["shard N DIGEST"]
