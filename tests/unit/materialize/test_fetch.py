"""Downloads, against a real HTTP server on this machine that serves a tiny archive."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import DataFault, TransientError
from materialize.fetch import KNOWN, Archive, fetch

FLAGS_COMEDY_AND_WAR = "|".join("1" if k in (5, 17) else "0" for k in range(19))


def zip_of(members: dict[str, str]) -> bytes:
    """Return a zip file, padded so that half of it is more than a chunk of the reader."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, text in members.items():
            zipped.writestr(name, text.encode("latin-1"))
        zipped.writestr("padding", b"0" * 400_000)
    return buffer.getvalue()


ML100K = zip_of(
    {
        "ml-100k/u.data": "2\t7\t4\t880000002\n1\t7\t3\t880000009\n1\t8\t5\t880000001\n",
        "ml-100k/u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
        "ml-100k/u.item": (
            f"7|Café (1995)|01-Jan-1995||http://x|{FLAGS_COMEDY_AND_WAR}\n"
            f"8|unknown||||{'1' + '|0' * 18}\n"
        ),
    }
)
ML1M = zip_of(
    {
        "ml-1m/ratings.dat": "1::7::3::978300760\n1::8::5::978300275\n",
        "ml-1m/users.dat": "1::F::1::10::48067\n",
        "ml-1m/movies.dat": '7::Star: Wars, A "New" Hope (1977)::Action|Sci-Fi\n8::X::Drama\n',
    }
)


class Server(ThreadingHTTPServer):
    """Serves ``body``; ``script`` says what goes wrong with the first requests."""

    def __init__(self, body: bytes, script: list[str], *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.script, self.ranges = body, script, ranges
        self.seen: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.seen.append(wanted)
        fault = server.script.pop(0) if server.script else "none"
        if fault.isdigit():
            self.send_error(int(fault))
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.body):
            self.send_error(416)
            return
        body = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "break" else body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output to themselves."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(body: bytes, *script: str, ranges: bool = True) -> Server:
        server = Server(body, list(script), ranges=ranges)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def known(body: bytes, name: str = "ml100k") -> dict[str, Archive]:
    """Return the real archive's entry with the checksum of the tiny file."""
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return {name: replace(KNOWN[name], md5=md5, size=len(body))}


def get(server: Server, folder: Path, body: bytes = ML100K, name: str = "ml100k") -> Path:
    return fetch(name, folder, url=server.url, progress=False, known=known(body, name))


def test_ml100k_becomes_three_tables_sorted_and_typed(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    folder = get(serve(ML100K), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ml100k"]
    ratings = pq.read_table(folder / "ratings.parquet")
    assert ratings.to_pydict() == {
        "user_id": [1, 1, 2],
        "movie_id": [8, 7, 7],
        "rating": [5, 3, 4],
        "timestamp": [880000001, 880000009, 880000002],
    }
    assert ratings.schema.field("timestamp").type == pa.int32()
    assert pq.read_table(folder / "users.parquet").to_pylist()[1] == {
        "user_id": 2, "age": 53, "gender": "F", "occupation": "other", "zip_code": "T8H1N",
    }  # fmt: skip
    assert pq.read_table(folder / "movies.parquet").to_pylist() == [
        {
            "movie_id": 7,
            "title": "Café (1995)",
            "release_date": "01-Jan-1995",
            "genres": "Comedy|War",
        },
        {"movie_id": 8, "title": "unknown", "release_date": None, "genres": "unknown"},
    ]


def test_ml1m_becomes_three_tables(serve: Callable[..., Server], tmp_path: Path) -> None:
    folder = get(serve(ML1M), tmp_path, ML1M, "ml1m")
    assert pq.read_table(folder / "ratings.parquet")["timestamp"].to_pylist() == [
        978300275,
        978300760,
    ]
    assert pq.read_table(folder / "movies.parquet").to_pylist()[0] == {
        "movie_id": 7, "title": 'Star: Wars, A "New" Hope (1977)', "genres": "Action|Sci-Fi",
    }  # fmt: skip
    assert pq.read_table(folder / "users.parquet").to_pylist() == [
        {"user_id": 1, "gender": "F", "age": 1, "occupation": 10, "zip_code": "48067"}
    ]


def test_complete_folder_is_not_downloaded_again(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ML100K)
    first = get(server, tmp_path)
    assert get(server, tmp_path) == first
    assert len(server.seen) == 1


def test_wrong_checksum_leaves_nothing_but_the_message(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ML100K + b"!")
    with pytest.raises(DataFault, match=r"with md5 [0-9a-f]{32} were expected.*deleted"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_server_error_then_recovery_succeeds(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(ML100K, "503", "500")
    get(server, tmp_path)
    assert server.seen == [None, None, None]


def test_broken_download_goes_on_where_it_stopped(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ML100K, "break")
    folder = get(server, tmp_path)
    assert server.seen[0] is None
    assert server.seen[1] is not None
    resumed_at = int(server.seen[1].removeprefix("bytes=").rstrip("-"))
    assert 0 < resumed_at <= len(ML100K) // 2
    assert (folder / "ratings.parquet").is_file()


def test_broken_download_starts_over_on_a_server_without_ranges(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ML100K, "break", ranges=False)
    assert (get(server, tmp_path) / "ratings.parquet").is_file()


def test_partial_file_of_an_earlier_process_is_completed(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "ml100k.zip.part").write_bytes(ML100K[:1000])
    server = serve(ML100K)
    get(server, tmp_path)
    assert server.seen == ["bytes=1000-"]


def test_complete_partial_file_is_verified_and_used(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "ml100k.zip.part").write_bytes(ML100K)
    assert (get(serve(ML100K), tmp_path) / "movies.parquet").is_file()


def test_persistent_server_error_is_transient_and_names_the_answer(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with pytest.raises(TransientError, match="answered 503 Service Unavailable"):
        get(serve(ML100K, *["503"] * 9), tmp_path)


def test_missing_page_is_not_tried_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(ML100K, "404", "404")
    with pytest.raises(DataFault, match="answered 404 Not Found, a zip file was expected"):
        get(server, tmp_path)
    assert len(server.seen) == 1


def test_no_network_is_transient_and_quick(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(TransientError, match="could not be read: ConnectionError after 0 bytes"):
        fetch("ml100k", tmp_path, url=f"http://127.0.0.1:{port}/x.zip", progress=False)
    assert time.monotonic() - started < 15
    assert list(tmp_path.iterdir()) == []


def test_archive_without_the_tables_leaves_no_folder(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    body = zip_of({"ml-100k/u.data": "1\t7\t3\t880000009\n"})
    with pytest.raises(DataFault, match=r"tables cannot be read.*u\.item"):
        get(serve(body), tmp_path, body)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ml20m' given, known are ml100k, ml1m"):
        fetch("ml20m", tmp_path)
