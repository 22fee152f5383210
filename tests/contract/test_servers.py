"""The servers that contract tests rest on are real ones."""

from __future__ import annotations

import psycopg
import redis

from tests.servers import Server


def test_redis_gives_back_what_was_set(redis_server: Server) -> None:
    with redis.Redis.from_url(redis_server.url, db=15) as client:
        client.set("palate", b"\x00\xff")
        assert client.get("palate") == b"\x00\xff"
        assert client.info("server")["tcp_port"] == redis_server.port


def test_postgres_answers_in_its_own_database(postgres_server: Server) -> None:
    with psycopg.connect(postgres_server.url) as connection:
        row = connection.execute("SELECT 1, current_database(), current_user").fetchone()
    assert row == (1, "palate", "palate")
