"""Vectors of users by a trained network: each item is encoded once, whoever met it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from encoder.clue.network import ClueNetwork, user_vector
from encoder.clue.sequences import UserSequences
from encoder.clue.tokenizer import PAD

__all__ = ["encode_items", "encode_services", "encode_users"]

Float32 = npt.NDArray[np.float32]


@torch.inference_mode()
def encode_items(network: ClueNetwork, tokens: npt.NDArray[np.int32], chunk: int = 1024) -> Float32:
    """Return the vectors of items, float32 (n_items, width).

    Parameters
    ----------
    network : ClueNetwork
    tokens : int32 (n_items, max_item_tokens)
    chunk : int
        Items at once, those of like length together.
    """
    device = network.log_scale.device
    lengths = (tokens != PAD).sum(1)
    vectors = np.empty((len(tokens), network.config.width), np.float32)
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        part = np.ascontiguousarray(tokens[rows, : max(int(lengths[rows[0]]), 1)])
        vectors[rows] = network.item(torch.from_numpy(part).to(device)).float().cpu().numpy()
    return vectors


@torch.inference_mode()
def encode_services(
    network: ClueNetwork,
    sequences: UserSequences,
    users: npt.NDArray[np.int64] | None = None,
    chunk: int = 1024,
) -> Float32:
    """Return the users' vectors of each service, float32 (n_users, n_services, embedding_dim).

    Parameters
    ----------
    network : ClueNetwork
    sequences : UserSequences
    users : int64 (n_users,), optional
        Positions; default: all.
    chunk : int
        Users at once.

    Returns
    -------
    float32
        Of length 1; zeros where the user has no event in the service. `user_vector` gives the
        mean of those there are.
    """
    device, width = network.log_scale.device, network.config.max_events
    users = np.arange(len(sequences.users)) if users is None else users
    shape = (len(users), len(sequences.services), network.config.embedding_dim)
    found = np.zeros(shape, np.float32)
    items = torch.from_numpy(encode_items(network, np.asarray(sequences.tokens))).to(device)
    for k, events in enumerate(sequences.services.values()):
        newest = np.minimum(events.lengths[users], width)
        some = np.flatnonzero(newest)
        order = some[np.argsort(-newest[some], kind="stable")]
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            first = np.zeros(len(rows), np.int64)
            views, there = events.windows(users[rows], first, newest[rows], int(newest[rows[0]]))
            met = items[torch.from_numpy(views).to(device)]  # (n, length, width)
            vectors = network.service(met, torch.from_numpy(there).to(device))
            found[rows, k] = vectors.float().cpu().numpy()
    return found


def encode_users(
    network: ClueNetwork, sequences: UserSequences, users: npt.NDArray[np.int64]
) -> Float32:
    """Return the users' embeddings, float32 (n_users, embedding_dim), zeros without events.

    Parameters as of `encode_services`.
    """
    services = encode_services(network, sequences, users)  # (n_users, n_services, embedding_dim)
    found: Float32 = user_vector(torch.from_numpy(services)).numpy()
    return found
