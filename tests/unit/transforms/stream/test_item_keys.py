from __future__ import annotations

import gc

import mmh3
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from transforms.stream.item_keys import ItemKeys, item_key, item_keys, keys_of

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=20).map(
        lambda ids: pa.array(ids, pa.int64())
    ),
    st.lists(st.text(max_size=5), unique=True, max_size=20).map(
        lambda ids: pa.array(ids, pa.string())
    ),
)


def encoders(ids: pa.Array) -> ModalityEncoders:
    return ModalityEncoders(ids, (), np.ones(len(ids), bool), {"cutoff": "x"})


@given(ids=IDS, strangers=IDS)
def test_items_are_found_where_they_stand_and_ranked_as_their_ids(ids, strangers):
    keys = ItemKeys.of(encoders(ids))
    given_ids = [*ids.to_pylist(), *(s for s in strangers.to_pylist() if s not in ids.to_pylist())]
    wanted = np.array([item_key(i) for i in given_ids], np.int64)
    wanted, first = np.unique(wanted, return_index=True)
    position, rank = keys.locate(wanted)
    known = first < len(ids)
    assert position[known].tolist() == first[known].tolist()
    assert (position[~known] == -1).all()
    # Bytes order strings, as the database of the batch does.
    order = sorted(ids.to_pylist(), key=lambda i: i.encode() if isinstance(i, str) else i)
    assert rank[known].tolist() == [order.index(given_ids[k]) for k in first[known]]
    assert (rank[~known] >= len(ids)).all()
    assert len(set(rank.tolist())) == len(rank)


def test_keys_of_many_are_the_keys_of_each():
    texts = ["", "a", "ü", "a" * 100]
    assert keys_of(pa.array(texts)).tolist() == [item_key(t) for t in texts]
    assert keys_of(pa.array([3, -1], pa.int32())).tolist() == [3, -1]


def test_two_ids_of_one_key_are_refused(monkeypatch):
    monkeypatch.setattr(mmh3, "hash64", lambda text: (len(text), 0))
    with pytest.raises(DataFault, match="Items 'ab' and 'cd' have one 64-bit key"):
        ItemKeys.of(encoders(pa.array(["ab", "c", "cd"])))


def test_keys_are_made_once_and_go_with_their_encoders():
    fitted = encoders(pa.array(["a"]))
    assert item_keys(fitted) is item_keys(fitted)
    from transforms.stream import item_keys as module

    before = len(module._made)
    del fitted
    gc.collect()
    assert len(module._made) == before - 1
