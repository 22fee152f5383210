"""A bounded closed loop of HTTP requests against a server on this machine."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

PATH = "/get-online-features"
_JSON = {"Content-Type": "application/json"}
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Question:
    """A request's body and the answer that it must get, byte for byte."""

    body: bytes
    answer: bytes


def write_questions(folder: Path, questions: list[Question]) -> None:
    """Leave questions for a process that will `drive` them."""
    folder.mkdir(parents=True)
    for k, question in enumerate(questions):
        (folder / f"{k:03d}.body").write_bytes(question.body)
        (folder / f"{k:03d}.answer").write_bytes(question.answer)


def drive(url: str, folder: str, connections: int, requests: int, seconds: float) -> dict[str, Any]:
    """Ask over a fixed number of connections, each waiting for its answer before it asks again.

    Ends after so many requests or seconds, whichever comes first. An answer of another status or
    with other bytes than expected is an error, as is a connection that breaks.

    Returns
    -------
    dict
        ``milliseconds`` of each request, ``errors``, ``seconds`` of the whole, ``cpu_seconds`` of
        this process meanwhile, and ``parse_seconds``: CPU to turn one answer into float32.
    """
    questions = [
        Question(path.read_bytes(), path.with_suffix(".answer").read_bytes())
        for path in sorted(Path(folder).glob("*.body"))
    ]
    with ExitStack() as stack:
        pools = [
            stack.enter_context(
                urllib3.connection_from_url(url, maxsize=1, retries=False, timeout=_TIMEOUT)
            )
            for _ in range(connections)
        ]
        for pool in pools:  # connected, and not counted
            pool.request("POST", PATH, body=questions[0].body, headers=_JSON)
        threads = stack.enter_context(ThreadPoolExecutor(connections))
        began, cpu = time.perf_counter(), time.process_time()
        asking = [
            threads.submit(
                _ask, pool, questions, range(first, requests, connections), began + seconds
            )
            for first, pool in enumerate(pools)
        ]
        answers = [future.result() for future in asking]
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
    return {
        "milliseconds": [one for took, _ in answers for one in took],
        "errors": sum(errors for _, errors in answers),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "parse_seconds": _parse_seconds(questions),
    }


def _ask(
    pool: urllib3.HTTPConnectionPool, questions: list[Question], turns: range, deadline: float
) -> tuple[list[float], int]:
    """Ask one question after the other; return the milliseconds of each, and errors."""
    took, errors = [], 0
    for turn in turns:
        question = questions[turn % len(questions)]
        start = time.perf_counter()
        if start > deadline:
            break
        try:
            answer = pool.request("POST", PATH, body=question.body, headers=_JSON)
            right = answer.status == 200 and answer.data == question.answer
        except urllib3.exceptions.HTTPError:
            right = False
        took.append((time.perf_counter() - start) * 1e3)
        errors += not right
    return took, errors


def _parse_seconds(questions: list[Question]) -> float:
    start = time.process_time()
    for question in questions:
        vectors(question.answer)
    return (time.process_time() - start) / len(questions)


def vectors(answer: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the embeddings of an answer, float32 (n, d)."""
    body = json.loads(answer)
    at = body["metadata"]["feature_names"].index("embedding")
    return np.array(body["results"][at]["values"], np.float32)
