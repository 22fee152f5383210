"""Circumstances of the request, from dataset.yaml to the answer, and a space that keeps them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import yaml
from feast.errors import RequestDataNotFoundInEntityRowsException

from materialize.compare import compare_views
from materialize.train import train_space
from tests.e2e.conftest import END, Raw, Story, build_story, run
from transforms.names import on_demand_view
from transforms.on_demand import spec_of

pytestmark = pytest.mark.slow

VIEW = on_demand_view(1)
DEVICE = "device.type"


@pytest.fixture(scope="module")
def asking(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    repo = tmp_path_factory.mktemp("asking") / "repo"
    return build_story(repo, raw, END, request_context=[DEVICE])


def _users(story: Story) -> list[Any]:
    from materialize.compare import sample_users

    return sample_users(story.context.settings, 1, 20)


def _read(story: Story, users: list[Any], device: str | None) -> np.ndarray[Any, Any]:
    answer = story.context.store.get_online_features(
        features=[f"{VIEW}:embedding"],
        entity_rows=[{"user_id": user, DEVICE: device} for user in users],
    )
    return np.array(answer.to_dict()["embedding"], np.float32)


def test_the_space_is_declared_with_what_its_data_set_asked_for(asking: Story) -> None:
    assert asking.space.facts["request_context"] == [DEVICE]
    spec = spec_of(asking.context.store.get_on_demand_feature_view(VIEW))
    assert spec is not None
    assert spec.request_context == (DEVICE,)
    assert spec.encoder_version == asking.space.encoder_version


def test_the_device_of_the_request_moves_the_embedding(asking: Story) -> None:
    users = _users(asking)
    unknown, phone, tv = (_read(asking, users, device) for device in (None, "phone", "never seen"))
    assert np.isfinite(phone).all()
    assert (unknown != tv).any(axis=1).all()
    assert (phone != tv).any(axis=1).all()
    with pytest.raises(RequestDataNotFoundInEntityRowsException, match=DEVICE):
        asking.context.store.get_online_features([f"{VIEW}:embedding"], [{"user_id": users[0]}])


def test_without_a_device_stored_and_fresh_vectors_agree(asking: Story) -> None:
    assert compare_views(asking.context.store, 1, _users(asking)).agrees(1e-5)


def test_a_space_keeps_its_request_when_the_data_set_changes(
    asking: Story, caplog: pytest.LogCaptureFixture
) -> None:
    before = asking.context.store.get_on_demand_feature_view(VIEW)
    path = asking.repo / "datasets" / "simulated.yaml"
    text = path.read_text(encoding="utf-8")
    changed = yaml.safe_load(text)
    changed["events"]["request_context"] = []
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    try:
        run("feast", "apply", cwd=asking.repo)
        after = asking.context.store.get_on_demand_feature_view(VIEW)
        assert spec_of(after) == spec_of(before)
        context = type(asking.context)(asking.repo)
        with caplog.at_level(logging.WARNING, "materialize.train"):
            again = train_space(context.store, context.settings, context.ledger, progress=False)
        assert again.space.number == 1
        assert f"requests of space 1 give {DEVICE}, as it was registered" in caplog.text
    finally:
        path.write_text(text, encoding="utf-8")
