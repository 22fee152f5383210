"""A bridge on disk and behind an fsspec URL: content addressed, checked when it is loaded."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from encoder.alignment import OrthogonalMap, orthogonal_map
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.errors import ArtifactError
from encoder.store import ArtifactStore
from tests.encoders import tiny_artifact

SOURCE, TARGET = "c0ffee123456", "d00d34aa5678"


def _bridge(seed: int = 0, widths: tuple[int, int] = (4, 4)) -> BridgeArtifact:
    rng = np.random.default_rng(seed)
    pairs = [rng.standard_normal((20, width)) for width in widths]
    return BridgeArtifact(SOURCE, TARGET, orthogonal_map(*pairs), {"spaces": [4, 3]})


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "encoders")
        return
    name = f"memory://{uuid.uuid4().hex}/encoders"
    yield name
    fs, root = fsspec.core.url_to_fs(name)
    if fs.exists(root):
        fs.rm(root, recursive=True)


@pytest.mark.parametrize("widths", [(4, 4), (4, 6), (6, 4)])
def test_what_is_saved_loads_and_maps_bit_for_bit(url: str, widths: tuple[int, int]) -> None:
    bridge = _bridge(widths=widths)
    store = BridgeStore(url)
    assert store.list() == []
    saved = store.save(bridge)
    assert saved.endswith(f"/encoders/bridges/{bridge.version}")
    assert store.list() == [bridge.version]
    assert store.save(bridge) == saved
    loaded = BridgeStore(url).load(bridge.version)
    assert (loaded.source, loaded.target, loaded.facts) == (SOURCE, TARGET, {"spaces": [4, 3]})
    vectors = np.random.default_rng(1).standard_normal((5, widths[0])).astype(np.float32)
    assert loaded.apply(vectors).tobytes() == bridge.apply(vectors).tobytes()
    assert loaded.apply(vectors).shape == (5, widths[1])


def test_bridges_lie_beside_the_encoders_and_are_none(url: str) -> None:
    BridgeStore(url).save(_bridge())
    assert ArtifactStore(url).list() == []
    artifact = tiny_artifact()
    ArtifactStore(url).save(artifact)
    assert ArtifactStore(url).list() == [artifact.encoder_version]


@given(row=st.integers(0, 3), column=st.integers(0, 3))
def test_the_version_changes_with_everything_that_changes_a_vector(row: int, column: int) -> None:
    """Any element of the matrix or the shift, or either encoder; not the facts."""
    bridge = _bridge()
    matrix, shift = bridge.map.matrix.copy(), bridge.map.shift.copy()
    matrix[row, column] = np.nextafter(matrix[row, column], np.float32(9))
    shift[column] = np.nextafter(shift[column], np.float32(9))
    others = [
        replace(bridge, map=OrthogonalMap(matrix, bridge.map.shift)),
        replace(bridge, map=OrthogonalMap(bridge.map.matrix, shift)),
        replace(bridge, source=TARGET),
        replace(bridge, target=SOURCE),
        replace(bridge, source=TARGET, target=SOURCE),
    ]
    assert len({bridge.version, *(other.version for other in others)}) == len(others) + 1
    assert replace(bridge, facts={}).version == bridge.version


def _rewrite(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def rewritten(data: bytes) -> bytes:
        fields = json.loads(data)
        change(fields)
        return json.dumps(fields).encode()

    return rewritten


def _arrays(**arrays: object) -> Callable[[bytes], bytes]:
    return lambda _: save({name: np.asarray(array) for name, array in arrays.items()})


_EYE = np.eye(4, dtype=np.float32)
_ZERO = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bridge.json", lambda data: data[:20], "cannot be read"),
        ("map.safetensors", lambda data: data[:20], "cannot be read"),
        ("bridge.json", _rewrite(lambda f: f.update(format_version=2)), "has format 2"),
        ("bridge.json", _rewrite(lambda f: f.pop("source")), "cannot be read: KeyError"),
        ("bridge.json", _rewrite(lambda f: f.update(source=TARGET)), "holds the content of bridge"),
        ("map.safetensors", _arrays(matrix=_EYE, shift=_ZERO), "holds the content of bridge"),
        ("map.safetensors", _arrays(matrix=_EYE), "cannot be read: KeyError"),
        ("map.safetensors", _arrays(matrix=2 * _EYE, shift=_ZERO), "matrix that is not orthogonal"),
        ("map.safetensors", _arrays(matrix=np.nan * _EYE, shift=_ZERO), "is not orthogonal"),
        ("map.safetensors", _arrays(matrix=_EYE, shift=np.inf + _ZERO), "shift with NaN"),
        ("map.safetensors", _arrays(matrix=_EYE, shift=_ZERO[:2]), "that do not fit"),
        ("map.safetensors", _arrays(matrix=np.eye(4), shift=_ZERO), "float32 is expected"),
    ],
)
def test_a_damaged_bridge_is_refused(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    store, bridge = BridgeStore(str(tmp_path)), _bridge()
    store.save(bridge)
    file = tmp_path / "bridges" / bridge.version / name
    file.write_bytes(change(file.read_bytes()))
    for act in (lambda: store.load(bridge.version), lambda: store.save(bridge)):
        with pytest.raises(ArtifactError, match=rf"Bridge '{bridge.version}' .*{message}"):
            act()


def test_an_unknown_bridge_names_the_stored_ones(url: str) -> None:
    store, bridge = BridgeStore(url), _bridge()
    with pytest.raises(ArtifactError, match=r"Unknown bridge 'ab12'. Stored: none\."):
        store.load("ab12")
    store.save(bridge)
    with pytest.raises(ArtifactError, match=f"Stored: '{bridge.version}'"):
        store.load("ab12")


def test_a_bridge_without_its_map_is_refused(tmp_path: Path) -> None:
    store, bridge = BridgeStore(str(tmp_path)), _bridge()
    store.save(bridge)
    (tmp_path / "bridges" / bridge.version / "map.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"lacks map\.safetensors"):
        store.load(bridge.version)
