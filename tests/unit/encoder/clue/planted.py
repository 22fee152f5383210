"""Users of two services whose texts share no word but the users' topics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encoder.clue.sequences import ServiceEvents, UserSequences
from encoder.clue.tokenizer import ItemTokenizer, fit_tokenizer

__all__ = ["planted"]

TOPICS = 6
_WORDS = {
    "shop": ("bolt", "cake", "drum", "fern", "gown", "hook"),
    "news": ("weld", "oven", "band", "soil", "silk", "cast"),
}


def planted(
    n_users: int = 300, *, max_tokens: int = 8, seed: int = 0, services: int = 2
) -> tuple[UserSequences, ItemTokenizer, npt.NDArray[np.int64]]:
    """Return sequences, their tokenizer and each user's topic, int64 (n_users,).

    A user meets 3 to 9 items of the own topic in each service. The first tenth of the users has
    events in ``shop`` only, the second tenth none at all.
    """
    rng = np.random.default_rng(seed)
    names = list(_WORDS)[:services]
    per_topic = 10
    texts, owner = [], []
    for name in names:
        texts += [f"{word} no {k}" for word in _WORDS[name] for k in range(per_topic)]
        owner += [name] * (TOPICS * per_topic)
    tokenizer = fit_tokenizer(texts, names, vocabulary=320, max_tokens=max_tokens)
    topic = rng.integers(0, TOPICS, n_users)
    events = {}
    for s, name in enumerate(names):
        length = rng.integers(3, 10, n_users)
        length[: n_users // 10] *= s == 0
        length[n_users // 10 : n_users // 5] = 0
        starts = np.concatenate([[0], np.cumsum(length)])
        item = rng.integers(0, per_topic, starts[-1])
        first = (s * TOPICS + np.repeat(topic, length)) * per_topic
        events[name] = ServiceEvents(starts, (first + item).astype(np.int32))
    users = tuple(f"u{k}" for k in range(n_users))
    return UserSequences(tokenizer.tokenize(texts, owner), events, users), tokenizer, topic
