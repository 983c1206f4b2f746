from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from leptonai.core.errors import InputError
from leptonai.core.fields import ByteSize
from leptonai.core.files import FileModel, Problem, parse_yaml, read_yaml
from leptonai.core.yaml_lines import load_lines


class Part(FileModel):
    name: str
    size: ByteSize | None = None
    colour: Literal["red", "green"] = "red"


class Whole(FileModel):
    title: str = "untitled"
    count: int = Field(default=1, ge=1)
    parts: tuple[Part, ...] = ()

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        if raw.get("title") == raw.get("count"):
            yield Problem(at=("title",), message="title equals count", hint="change one")


def problems_of(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, where="f.yaml", model=Whole)
    return str(caught.value)


def test_a_good_file_becomes_its_model() -> None:
    text = "title: yes\ncount: 2\nparts:\n  - name: '3'\n    size: 1KiB\n  - {name: b, colour: green}\n"
    whole = parse_yaml(text, where="f.yaml", model=Whole)
    assert (whole.title, whole.count) == ("yes", 2)
    assert whole.parts == (Part.model_construct(name="3", size=1024), Part(name="b", colour="green"))


def test_every_problem_is_told_at_once_with_line_and_hint() -> None:
    text = "\n".join(
        [
            "titel: x",  # 1
            "count: 0",  # 2
            "parts:",  # 3
            "  - nme: a",  # 4
            "    size: 5",  # 5
            "  - name: b",  # 6
            "    colour:",  # 7
            "      blue",  # 8
            "  - name: 7",  # 9
            "    name: c",  # 10
            "    size: 3 parsecs",  # 11
            "  - text",  # 12
            "  -",  # 13
            "    size: 1KB",  # 14
        ]
    )
    assert problems_of(text) == "\n".join(
        [
            "f.yaml: 11 problems",
            "  f.yaml:1: unknown key 'titel'",
            "    hint: did you mean 'title'?",
            "  f.yaml:2: count: expected at least 1, found 0",
            "  f.yaml:4: key 'name' is missing in parts[0]",
            "  f.yaml:4: unknown key 'nme' in parts[0]",
            "    hint: did you mean 'name'?",
            "  f.yaml:5: parts[0].size: 5 has no unit",
            "    hint: write it with a unit, such as 80GiB",
            "  f.yaml:7: parts[1].colour: unknown value 'blue'",
            "    hint: one of red, green",
            "  f.yaml:9: parts[2].name: expected text, found 7",
            "    hint: put it in quotes",
            "  f.yaml:10: key 'name' appears twice, first in line 9",
            "    hint: remove one",
            "  f.yaml:11: parts[2].size: 'parsecs' is not a unit of a size",
            "    hint: write a size with a unit, such as 80GiB; "
            "units: B, KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB",
            "  f.yaml:12: parts[3]: expected keys name, size, colour, found 'text'",
            "  f.yaml:14: key 'name' is missing in parts[4]",
        ]
    )


def test_problems_between_keys_are_told_beside_those_of_single_keys() -> None:
    found = problems_of("title: 5\ncount: 5\nextra: 1")
    assert "f.yaml:1: title equals count" in found
    assert "f.yaml:1: title: expected text, found 5" in found
    assert "f.yaml:3: unknown key 'extra'" in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f.yaml:1: the file is empty"),
        ("- a", "f.yaml:1: the file holds a list"),
        ("just words", "the file holds 'just words'"),
        ("title: &a x\nparts: *a", "f.yaml:2: not accepted as YAML: aliases are not accepted"),
        ("title: !!python/object/apply:os.system [x]", "f.yaml:1: the tag"),
        ("title: !!int seven", "'seven' cannot be read as a number"),
        ("count: " + "9" * 5000, "cannot be read as a number"),
        ("title: " + "[" * 3000, "f.yaml:1: not accepted as YAML: nested deeper than 32 levels"),
        ("title: x\n\tcount: 1", "f.yaml:2: not accepted as YAML"),
        ("title: 'x", "f.yaml:1: not accepted as YAML"),
        ("--- {}\n--- {}", "f.yaml:2: not accepted as YAML"),
        ("title: x\nhi: \x07", r"f.yaml:2: holds the forbidden character '\x07'"),
        ("{a: b}: 1", "f.yaml:1: a key must be a plain word"),
        ("count: 010", "count: expected a whole number, found '010'"),
        ("count: 1:30", "count: expected a whole number, found '1:30'"),
        ("count: true", "count: expected a whole number, found true"),
        ("count: 1.0", "count: expected a whole number, found 1.0"),
        ("title: 2020-01-01\ncount: x", "f.yaml:2: count"),
        ("<<: {title: a}", "unknown key '<<'"),
        ("title: '{x}'\nparts: '{0}'", "f.yaml:2: parts: expected a list, found '{0}'"),
        ("parts: [{name: a, size: '{0} GB'}]", "parts[0].size: '{0} GB' is not a size"),
    ],
)
def test_what_is_no_good_file_is_refused_with_its_line(text: str, said: str) -> None:
    assert said in problems_of(text)


# JSON escapes characters beyond 16 bits as two, which YAML does not join; and YAML has no keys over 1024 characters.
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=50)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_json_reads_as_the_yaml_it_is(value: Any) -> None:
    found = load_lines(json.dumps(value))
    assert not found.problems
    assert listed(found.value) == value


def listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, tuple) else value


@given(st.text(alphabet=" \n-:{}[]#&*!|>'\"%@`,?abc01\t", max_size=60))
def test_any_text_is_a_model_or_an_input_error(text: str) -> None:
    try:
        parse_yaml(text, where="f.yaml", model=Whole)
    except InputError as error:
        told = str(error)
    else:
        return
    assert told.startswith("f.yaml:")


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("title: x")
    (tmp_path / "latin.yaml").write_bytes(b"title: x\nparts: \xe9")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    said = {
        "clutser.yaml": f"there is no such file\n  hint: did you mean {tmp_path}/cluster.yaml?",
        "no/file.yaml": "there is no such file\n  hint: the directory",
        ".": "is a directory",
        "cluster.yaml/x": "cannot be read: Not a directory",
        "latin.yaml": "latin.yaml:2: is not UTF-8 text",
        "large.yaml": "is larger than 1048576 bytes",
        "nul\0.yaml": "cannot be read",
    }
    for name, words in said.items():
        with pytest.raises(InputError) as caught:
            read_yaml(tmp_path / name, Whole)
        assert words in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbftitle: x")
    assert read_yaml(tmp_path / "f.yaml", Whole).title == "x"
