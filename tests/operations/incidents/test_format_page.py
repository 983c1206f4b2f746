"""The page on the collector's files shows files that can be read."""

from __future__ import annotations

import re
from pathlib import Path

from leptonai.operations.faults.catalogue import read_site, shipped
from leptonai.operations.incidents.channels import read_ops_file

PAGE = Path(__file__).parents[3] / "docs" / "formats" / "ops-file.md"


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    ops, faults = re.findall(r"<!-- read by the tests -->\n```yaml\n(.*?)```", PAGE.read_text(), flags=re.S)
    (tmp_path / "ops.yaml").write_text(ops)
    (tmp_path / "faults.yaml").write_text(faults)
    settings = read_ops_file(tmp_path / "ops.yaml")
    assert [each.kind for each in settings.channels] == ["webhook", "slack", "email"]
    assert len(settings.quiet_hours) == 2
    catalogue = read_site(tmp_path / "faults.yaml", shipped())
    found = catalogue.match("rackfan 7/2 stopped")
    assert found is not None
    assert (found.fault.id, found.device) == ("rack_fan", "7/2")
    assert catalogue.faults["segfault"].ignored
