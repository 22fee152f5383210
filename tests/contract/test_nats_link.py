"""The connection to NATS: what it says when the server refuses, ends or does not answer it."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from encoder.errors import StoreRefused, StreamConflict, TransientError
from materialize.stream.nats_link import NatsLink
from tests import servers
from tests.e2e.redis_faults import Line, wait_until
from tests.servers import Server


def test_a_server_without_jetstream_says_how_to_start_it(tmp_path: Path) -> None:
    program, port = servers.find_program("nats-server"), servers.free_port()
    command = [str(program), "--addr", "127.0.0.1", "--port", str(port)]
    with (
        servers.running(command, tmp_path, lambda: _listens(port)),
        pytest.raises(StreamConflict, match=r"without JetStream.*nats-server --jetstream"),
    ):
        NatsLink(f"nats://127.0.0.1:{port}", "shop")


def test_a_server_that_does_not_answer_is_named() -> None:
    url = f"nats://127.0.0.1:{servers.free_port()}"
    with pytest.raises(TransientError, match=f"{url} does not answer"):
        NatsLink(url, "shop")


def test_a_wrong_password_is_refused_and_masked(tmp_path: Path) -> None:
    config = _accounts(tmp_path, "right")
    with (
        servers.nats_server(tmp_path, "--config", str(config)) as server,
        pytest.raises(StoreRefused, match=r"palate:\*\*\*@.* refuses") as refused,
    ):
        NatsLink(_as_palate(server, "s3cret"), "shop")
    assert "s3cret" not in str(refused.value)


def test_a_refusal_counts_also_when_connections_are_reset_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A server that refuses closes with the client's PING unread, so at times a reset overtakes its
    # answer. Here every connection after the first refusal is reset.
    config = _accounts(tmp_path, "right")
    with (
        servers.nats_server(tmp_path, "--config", str(config)) as server,
        closing(Line(server.port)) as line,
    ):

        def cut_once_refused() -> None:
            wait_until(lambda: "Authorization Violation" in caplog.text)
            line.cut()

        cutting = threading.Thread(target=cut_once_refused)
        cutting.start()
        with pytest.raises(StoreRefused, match=r"refuses: .*Authorization Violation"):
            NatsLink(f"nats://palate:wrong@127.0.0.1:{line.port}", "shop")
        cutting.join()
    assert "Authorization" not in caplog.records[-1].getMessage(), "a reset was the last it heard"


def test_a_missing_permission_is_refused(tmp_path: Path) -> None:
    config = _accounts(tmp_path, "right", 'permissions: {publish: ["_INBOX.>"]}')
    with (
        servers.nats_server(tmp_path, "--config", str(config)) as server,
        pytest.raises(StoreRefused, match=r"refuses: .*permissions violation for publish"),
    ):
        NatsLink(_as_palate(server, "right"), "shop")


def test_a_password_that_changes_while_connected_is_refused(tmp_path: Path) -> None:
    config, pid = _accounts(tmp_path, "right"), tmp_path / "nats.pid"
    with (
        servers.nats_server(tmp_path, "--config", str(config), "--pid", str(pid)) as server,
        closing(NatsLink(_as_palate(server, "right"), "shop")) as link,
    ):
        _accounts(tmp_path, "changed")
        os.kill(int(pid.read_text(encoding="utf-8")), signal.SIGHUP)
        wait_until(lambda: link.connection.is_closed)
        with pytest.raises(StoreRefused, match=r"authorization failed .*ended the connection"):
            link.run(link.jetstream.stream_info(link.stream))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_password_that_changes_over_a_restart_is_refused_until_it_is_back(
    tmp_path: Path,
) -> None:
    # nats-py leaves the socket of each refused reconnection to the garbage collector, which is
    # called at the end, so that it warns of them here and not in another test.
    config = _accounts(tmp_path, "right")
    with servers.nats_server(tmp_path, "--config", str(config)) as server:
        link = NatsLink(_as_palate(server, "right"), "shop")
    _accounts(tmp_path, "changed")
    with (
        servers.nats_server(tmp_path, "--config", str(config), port=server.port),
        pytest.raises(StoreRefused, match=r"refuses: .*Authorization Violation"),
    ):
        link.run(link.jetstream.stream_info(link.stream))
    _accounts(tmp_path, "right")
    with servers.nats_server(tmp_path, "--config", str(config), port=server.port):
        wait_until(lambda: link.connection.is_connected)
        assert link.run(link.jetstream.stream_info(link.stream)).config.name == link.stream
    with pytest.raises(TransientError, match="does not answer"):
        link.run(link.jetstream.stream_info(link.stream))
    link.close()
    gc.collect()


def _accounts(folder: Path, password: str, permissions: str = "") -> Path:
    config = folder / "accounts.conf"
    user = f"user: palate, password: {password}, {permissions}"
    config.write_text(f"authorization {{ users = [{{ {user} }}] }}\n", encoding="utf-8")
    return config


def _as_palate(server: Server, password: str) -> str:
    return server.url.replace("//", f"//palate:{password}@")


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
