"""What readers should see at the cut-off, by the batch, and how well it predicts what follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.metrics import AucReplicates, bootstrap_auc
from encoder.resampling import Interval
from materialize.context import Context
from materialize.evaluate.job import repository_labels
from materialize.evaluate.labels import Labels
from materialize.evaluate.split import training_users

__all__ = ["Judge", "Judged", "Truth", "write_truth"]

Matrix = npt.NDArray[np.float32]

_RESAMPLES = 200


@dataclass(frozen=True)
class Truth:
    """Embeddings of all events before the cut-off, by the batch job.

    Attributes
    ----------
    users : (n,)
        Ascending.
    embedding : float32 (n, dim)
    as_of : int64 (n,)
    """

    users: npt.NDArray[Any]
    embedding: Matrix
    as_of: npt.NDArray[np.int64]

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `write_truth` wrote."""
        with np.load(path) as held:
            return cls(held["users"], held["embedding"], held["as_of"])

    def rows(self, users: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """Return where these users stand; all of them must be there."""
        at = np.minimum(np.searchsorted(self.users, users), len(self.users) - 1)
        assert (self.users[at] == users).all(), "the batch has a row of every replayed user"
        return at


def write_truth(context: Context, space: int, path: Path) -> None:
    """Encode the batch's raw rows of the cut-off, before anything is streamed."""
    from materialize.batch import open_source
    from materialize.embedding_rows import embedding_matrix, encode_rows
    from transforms.names import USER_KEY
    from transforms.runtime import load_encoder

    settings, facts = context.settings, context.ledger.space(space)
    schema = load_encoder(settings.artifacts_url, facts.encoder_version).preprocessor.schema
    end = settings.dataset.evaluation.cutoff
    users, vectors, as_of = [], [], []
    for batch in open_source(context.store, settings, schema, end=end).batches():
        rows = encode_rows(batch, facts, settings.artifacts_url)
        users.append(rows.column(USER_KEY).to_numpy(zero_copy_only=False))
        vectors.append(embedding_matrix(rows.column("embedding")))
        as_of.append(rows.column("as_of").to_numpy())
    ids = np.concatenate(users)
    order = np.argsort(ids)
    np.savez(
        path,
        users=ids[order],
        embedding=np.concatenate(vectors)[order],
        as_of=np.concatenate(as_of)[order],
    )


@dataclass(frozen=True)
class Judged:
    """AUC of a probe on test users, of what readers saw and of the batch's embeddings."""

    users: int
    seen: Interval
    batch: Interval
    difference: Interval
    """Seen minus batch, paired: the same resampled users on both sides."""


class Judge:
    """A linear probe that was fitted on the batch's embeddings, as a downstream model is.

    Labels are those of the data set's evaluation: what users consume after the cut-off. The model
    is fitted on 60% of the users, and judged on the others.
    """

    def __init__(self, context: Context, truth: Truth, seed: int) -> None:
        from encoder.heads import LinearProbe

        labels: Labels = repository_labels(context.settings)
        training = training_users(labels.user_id)
        rows = truth.rows(labels.user_id)
        x = truth.embedding[rows]
        self._seed = seed
        self._probe = LinearProbe().fit(
            x[training], labels.y[training], labels.user_id[training], seed=seed
        )
        self._mean = x[training].mean(axis=0)
        self._users, self._y = labels.user_id[~training], labels.y[~training]
        self._batch = x[~training]

    def judge(self, users: npt.NDArray[Any], seen: Matrix, *, only: bool) -> Judged:
        """Judge what readers saw of some users; of the others they saw the batch's embedding.

        Parameters
        ----------
        users : (n,)
        seen : float32 (n, dim)
            NaN rows: there was no embedding; the model then gets the mean of what it knows.
        only : bool
            On test users among ``users`` alone, instead of on all of them.
        """
        order = np.argsort(users)
        place = np.minimum(np.searchsorted(users[order], self._users), len(users) - 1)
        at = order[place]
        changed = users[at] == self._users
        x = np.where(changed[:, None], seen[at], self._batch)
        x = np.where(np.isnan(x), self._mean, x)
        kept = changed if only else np.ones(len(changed), bool)
        replicates = [
            self._replicates(features[kept], self._y[kept], self._users[kept])
            for features in (x, self._batch)
        ]
        ours, batch = replicates
        return Judged(
            int(kept.sum()),
            ours.macro_interval,
            batch.macro_interval,
            ours.minus(batch).macro_interval,
        )

    def _replicates(
        self, x: Matrix, y: npt.NDArray[np.bool_], users: npt.NDArray[Any]
    ) -> AucReplicates:
        scores = self._probe.scores(x)
        return bootstrap_auc(y, scores, users, n_resamples=_RESAMPLES, seed=self._seed)
