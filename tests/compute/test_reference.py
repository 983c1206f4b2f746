from __future__ import annotations

import re
from pathlib import Path

from leptonai.compute.cluster_file import ClusterFile
from leptonai.compute.reference import reference
from leptonai.core.files import parse_yaml

PAGE = Path(__file__).parents[2] / "docs" / "cluster-file.md"


def test_the_page_in_docs_is_the_one_the_models_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m leptonai.compute.reference > docs/cluster-file.md"
    )


def test_every_example_on_the_page_is_a_good_file() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", reference(), flags=re.DOTALL)
    assert len(examples) == 4
    for text in examples:
        parse_yaml(text, where="example", model=ClusterFile).to_cluster(available_cores=2)


def test_every_key_has_a_row_with_its_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .* \| (.+) \|$", reference(), flags=re.MULTILINE)
    assert {name for name, _ in rows} >= set(ClusterFile.model_fields) | {"count", "hang", "peak", "between"}
    assert all(meaning not in ("", "None") for _, meaning in rows)
    links = set(re.findall(r"\]\(#([\w-]+)\)", reference()))
    assert links <= {title.lower() for title in re.findall(r"^## (.+)$", reference(), flags=re.MULTILINE)}
