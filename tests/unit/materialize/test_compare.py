"""Stored against on-demand: equal, different, missing, not a number."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault
from materialize.compare import Comparison, compare_views, sample_users
from materialize.embedding_rows import encode_rows, ensure_readable
from materialize.ledger import Space
from tests.repositories import TinyRepository, raw_rows, write_online
from transforms.names import USER_KEY, stored_view


def _serve(
    tiny: TinyRepository, space: Space, users: list[int], changed: dict[str, Any] | None = None
) -> None:
    """Write raw rows and embeddings online; ``changed`` is a stored column's value in row 0."""
    raw = raw_rows(users, seed=users[0])
    tiny.write_raw(raw)
    (batch,) = raw.combine_chunks().to_batches()
    rows = pa.Table.from_batches([encode_rows(batch, space, tiny.settings.artifacts_url)])
    for name, value in (changed or {}).items():
        field = rows.schema.field(name)
        values = [value, *rows.column(name).to_pylist()[1:]]
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    write_online(tiny.store, stored_view(space.number), rows.combine_chunks().to_batches())


def test_equal_views_agree_over_several_reads(tiny: TinyRepository, space: Space) -> None:
    users = list(range(5000, 5130))  # more than one read's worth
    _serve(tiny, space, users)
    found = compare_views(tiny.store, 1, users)
    assert (found.users, found.missing) == (130, 0)
    assert found.max_abs_diff <= 1e-6
    assert found.same_as_of
    assert found.same_status
    assert found.to_dict()["users"] == 130


def test_a_user_without_a_stored_row_is_missing(tiny: TinyRepository, space: Space) -> None:
    _serve(tiny, space, [5201])
    found = compare_views(tiny.store, 1, [5201, 5202])
    assert (found.users, found.missing) == (1, 1)


@pytest.mark.parametrize("value", [9.0, float("nan"), float("inf")])
def test_a_difference_is_told_whatever_comes_after_it(
    tiny: TinyRepository, space: Space, value: float
) -> None:
    _serve(tiny, space, [5301, 5302], {"embedding": [value] * 8})
    found = compare_views(tiny.store, 1, [5301, 5302])
    for largest in (found.max_abs_diff, found.max_unexplained_diff):
        assert math.isnan(largest) if math.isnan(value) else largest > 5.0
    assert not found.agrees(1e-5)


@pytest.mark.parametrize(("number", "form"), [(61, "int8"), (62, "float16")])
def test_a_compact_form_explains_its_own_rounding_and_no_more(
    tiny: TinyRepository, space: Space, number: int, form: str
) -> None:
    compact = tiny.apply_space(number, space.encoder_version, vectors=form)
    users = [5601, 5602, 5603]
    _serve(tiny, compact, users)
    found = compare_views(tiny.store, number, users)
    assert found.vectors == form
    assert found.max_abs_diff > 1e-5  # honest: that far off, by the form
    assert found.max_unexplained_diff <= 1e-6
    assert found.agrees(1e-5)
    # As far off once more, as if each vector had been rounded to half the levels.
    view = f"{stored_view(number)}:embedding"
    rows = tiny.store.get_online_features(
        features=[view], entity_rows=[{USER_KEY: user} for user in users]
    ).to_dict()
    coarse = [x + 3 * found.max_abs_diff for x in rows["embedding"][0]]
    _serve(tiny, compact, users, {"embedding": coarse})
    again = compare_views(tiny.store, number, users)
    assert again.max_unexplained_diff > found.max_abs_diff
    assert not again.agrees(1e-5)


def test_another_time_or_status_is_told(tiny: TinyRepository, space: Space) -> None:
    _serve(tiny, space, [5401, 5402], {"as_of": 1})
    found = compare_views(tiny.store, 1, [5401, 5402])
    assert (found.same_as_of, found.same_status) == (False, True)
    _serve(tiny, space, [5501, 5502], {"status": "cold"})
    found = compare_views(tiny.store, 1, [5501, 5502])
    assert (found.same_as_of, found.same_status) == (True, False)


def test_users_are_sampled_without_repetition_and_reproducibly(tiny: TinyRepository) -> None:
    folder = tiny.settings.offline_dir / stored_view(90)
    ensure_readable(folder, pa.int64())
    with pytest.raises(DataFault, match=r"Space 90 has no rows. Run `palate materialize"):
        sample_users(tiny.settings, 90, 5)
    for k in range(2):  # the same users in two runs
        table = pa.table({"user_id": pa.array(np.arange(50) + 10 * k)})
        pq.write_table(table, folder / f"run-{k}.parquet")
    users = sample_users(tiny.settings, 90, 20)
    assert users == sorted(set(users))
    assert len(users) == 20
    assert users == sample_users(tiny.settings, 90, 20)
    assert users != sample_users(tiny.settings, 90, 20, seed=1)
    assert sample_users(tiny.settings, 90, 1000) == list(range(60))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"max_unexplained_diff": 2e-5}, False),
        ({"max_unexplained_diff": float("nan")}, False),
        ({"max_abs_diff": 0.01, "vectors": "int8"}, True),
        ({"missing": 1}, False),
        ({"same_as_of": False}, False),
        ({"same_status": False}, False),
    ],
)
def test_views_agree_only_when_nothing_at_all_differs(
    changed: dict[str, Any], expected: bool
) -> None:
    found = Comparison(
        users=3,
        missing=0,
        max_abs_diff=1e-5,
        vectors="float32",
        max_unexplained_diff=1e-5,
        same_as_of=True,
        same_status=True,
    )
    assert replace(found, **changed).agrees(1e-5) is expected
