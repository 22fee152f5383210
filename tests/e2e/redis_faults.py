"""A Redis that can be killed, stopped and started again, and a line to it that can be cut."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis

from tests.servers import Server, find_program, free_port

__all__ = ["Line", "RedisProcess", "wait_until"]

_SECONDS = 60.0


def wait_until(what: Callable[[], bool], seconds: float = _SECONDS) -> None:
    """Wait for a condition; a test fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


class RedisProcess:
    """A server on one port that keeps its data in an append-only file; options extend its line."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port, self._folder = free_port(), folder
        self._command = [
            str(find_program("redis-server", "valkey-server")),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "yes", "--dir", str(folder), "--logfile", str(folder / "log")),
            *options,
        ]
        self.start()

    @property
    def server(self) -> Server:
        return Server("127.0.0.1", self.port, f"redis://127.0.0.1:{self.port}")

    def start(self) -> None:
        """Start, and wait until it answers from its data."""
        self._process = subprocess.Popen(self._command)
        wait_until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(_SECONDS)

    @property
    def bytes_kept(self) -> int:
        """Size of what the append-only file has grown by since it was rewritten last."""
        return self._grown.stat().st_size

    def forget(self, size: int) -> bytes:
        """Cut the append-only file, as a power loss does where it was not synchronised.

        Returns what was cut off.
        """
        with self._grown.open("r+b") as file:
            file.seek(size)
            lost = file.read()
            file.truncate(size)
        return lost

    @property
    def _grown(self) -> Path:
        (path,) = self._folder.glob("appendonlydir/*.incr.aof")
        return path

    def stop(self) -> None:
        """Let it keep its connections and do nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Line:
    """Passes bytes on to a port of 127.0.0.1, until it is cut or held.

    As long as nothing is done to it, it is a plain way to the server.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._cut = False
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def hold(self) -> None:
        """Pass nothing on; connections stay open, and new ones are taken."""
        self._flows.clear()

    def release(self) -> None:
        """Pass on what came meanwhile, and what comes."""
        self._flows.set()

    def cut(self) -> None:
        """Reset all connections in the middle of what they carry, and those that come."""
        with self._lock:
            self._cut = True
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _reset(*pair)

    def mend(self) -> None:
        with self._lock:
            self._cut = False

    def close(self) -> None:
        self._closed = True
        self._threads[0].join(_SECONDS)
        self._listener.close()
        self.cut()
        for thread in self._threads[1:]:
            thread.join(_SECONDS)

    def _accept(self) -> None:
        while not self._closed:
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            near, _ = self._listener.accept()
            with self._lock:
                if self._cut:
                    _reset(near)
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    _reset(near)
                    continue
                self._pairs.append((near, far))
            for here, there in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pass_on, args=(here, there))
                thread.start()
                self._threads.append(thread)

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        while not self._closed:
            try:
                if not select.select([here], [], [], 0.05)[0]:
                    continue
                data = here.recv(4_096)
                while not self._flows.wait(0.05):
                    if self._closed:
                        return
                if not data:
                    _reset(here, there)
                    return
                there.sendall(data)
            except (OSError, ValueError):  # it was cut
                _reset(here, there)
                return


def _reset(*sockets: socket.socket) -> None:
    for one in sockets:
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        except OSError:
            continue  # closed already
        one.close()
