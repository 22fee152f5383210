"""The closed loop counts what is asked, ends by itself, and takes nothing wrong for an answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import urllib3

from benchmarks._http_load import Question, drive, write_questions
from tests.servers import free_port

ANSWER = json.dumps(
    {
        "results": [{"values": [1]}, {"values": [[0.5, 1.5]]}],
        "metadata": {"feature_names": ["user_id", "embedding"]},
    }
).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers by what is asked: `right`, `wrong` bytes, `refused`, or no answer at all."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        if asked == b"cut":
            self.close_connection = True
            return
        answer = ANSWER if asked != b"wrong" else ANSWER.replace(b"1.5", b"1.6")
        self.send_response(500 if asked == b"refused" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _ask(url: str, folder: Path, *bodies: bytes, **limits: float) -> dict[str, object]:
    write_questions(folder / "questions", [Question(body, ANSWER) for body in bodies])
    how = {"connections": 2, "requests": 20, "seconds": 30.0} | limits
    return drive(url, str(folder / "questions"), **how)  # type: ignore[arg-type]


def test_it_ends_after_its_requests(url: str, tmp_path: Path) -> None:
    told = _ask(url, tmp_path, b"right")
    took = told["milliseconds"]
    assert isinstance(took, list)
    assert (len(took), told["errors"]) == (20, 0)
    assert np.min(took) > 0


def test_it_ends_after_its_seconds(url: str, tmp_path: Path) -> None:
    told = _ask(url, tmp_path, b"right", requests=10**9, seconds=0.2)
    assert told["errors"] == 0
    seconds = told["seconds"]
    assert isinstance(seconds, float)
    assert 0.2 <= seconds < 20


@pytest.mark.parametrize("fault", [b"wrong", b"refused", b"cut"])
def test_what_is_not_the_answer_is_an_error(url: str, tmp_path: Path, fault: bytes) -> None:
    # The first question is asked once a connection more, uncounted: it is right.
    told = _ask(url, tmp_path, b"right", b"right", b"right", fault)
    assert told["errors"] == 5


def test_a_server_that_is_not_there_ends_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(urllib3.exceptions.HTTPError):
        _ask(f"http://127.0.0.1:{free_port()}", tmp_path, b"right")
