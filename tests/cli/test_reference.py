from __future__ import annotations

from pathlib import Path

from leptonai.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_in_docs_is_the_one_the_commands_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m leptonai.cli.reference > docs/commands.md"
    )


def test_every_command_and_option_is_on_the_page() -> None:
    page = reference()
    for words in (
        "## lepton train",
        "## lepton runs compare",
        "## lepton data get",
        "`--set KEY=VALUE`",
        "`--port",
    ):
        assert words in page
    assert "[bold]" not in page
