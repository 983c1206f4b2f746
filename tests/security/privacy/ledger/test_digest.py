from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leptonai.core.errors import InputError
from leptonai.security.privacy.ledger import digest as module
from leptonai.security.privacy.ledger.digest import content_digest
from leptonai.training.data.dataset import Arrays

IMAGES = np.arange(60 * 7, dtype=np.uint8).reshape(60, 7)
LABELS = np.arange(60, dtype=np.int64) % 7


@given(
    rows=arrays.arrays(
        np.int16, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-2, 2)
    ),
    seed=st.integers(0, 99),
)
def test_the_order_of_rows_does_not_matter_their_number_does(rows: np.ndarray, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(rows)
    assert content_digest([rows]) == content_digest([shuffled])
    assert content_digest([rows]) != content_digest([np.concatenate([rows, rows[:1]])])
    changed = rows.copy()
    changed[0, 0] += 7
    assert content_digest([rows]) != content_digest([changed])


def test_columns_belong_together_row_by_row() -> None:
    whole = content_digest([IMAGES, LABELS])
    assert whole == content_digest([IMAGES[::-1], LABELS[::-1]])
    assert whole != content_digest([IMAGES[::-1], LABELS])
    assert whole != content_digest([LABELS, IMAGES])
    assert whole != content_digest([IMAGES])


def test_how_rows_are_stored_does_not_matter(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content_digest([IMAGES, LABELS])
    assert whole == content_digest(Arrays(IMAGES, LABELS).columns)
    assert whole == content_digest([np.asfortranarray(IMAGES), LABELS.astype(">i8")])
    monkeypatch.setattr(module, "_CHUNK_BYTES", 64)
    assert whole == content_digest([IMAGES, LABELS])


def test_type_and_shape_are_content() -> None:
    flat = np.zeros((4, 6), np.uint8)
    found = {
        content_digest([flat]),
        content_digest([flat.reshape(4, 2, 3)]),
        content_digest([flat.view(np.int8)]),
    }
    found |= {content_digest([flat.view(np.uint16)]), content_digest([flat[:, :3], flat[:, 3:]])}
    assert len(found) == 5


def test_text_is_content_however_wide_its_column() -> None:
    names = np.array(["Ada", "Grace", ""])
    digest = content_digest([names, np.arange(3)])
    assert digest == content_digest([names.astype("U40"), np.arange(3)])
    assert digest == content_digest([names.astype(object), np.arange(3)])
    assert digest != content_digest([np.array(["Ada", "Grace", None], object), np.arange(3)])
    assert content_digest([np.array(["ab"]), np.array(["c"])]) != content_digest(
        [np.array(["a"]), np.array(["bc"])]
    )


def test_numbers_times_and_no_rows_at_all_have_digests() -> None:
    days = np.array(["2026-01-01", "NaT"], "M8[D]")
    columns = [np.array([1.5, np.nan]), days, np.array([True, False]), np.zeros((2, 0))]
    assert len(content_digest(columns)) == 64
    assert content_digest([np.zeros(0)]) != content_digest([np.zeros(0, np.int8)])


def test_what_has_no_digest_is_refused() -> None:
    for columns in ([], [IMAGES, LABELS[:-1]], [np.array([object()])]):
        with pytest.raises(InputError):
            content_digest(columns)


def test_the_digest_is_the_documented_one() -> None:
    # Budgets hang on it: a change orphans every ledger. Here as docs/formats/privacy-ledger.md tells it.
    rows = [b"\x01\x02" + (5).to_bytes(8, "little"), b"\x03\x04" + (6).to_bytes(8, "little")]
    total = sum(int.from_bytes(hashlib.sha256(row).digest(), "little") for row in rows) % 2**256
    head = b'{"columns": [["|u1", [2]], ["<i8", []]], "rows": 2}'
    whole = hashlib.sha256(b"lepton data set 1\0" + head + b"\0" + total.to_bytes(32, "little")).hexdigest()
    assert content_digest([np.array([[1, 2], [3, 4]], np.uint8), np.array([5, 6], np.int64)]) == whole
    assert whole == "8b701c1c2d90d7ff0f6efdbbf63c42af921c2ec2016767071805dc1b93d831df"
