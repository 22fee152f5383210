"""Which users are asked about, and at which moments: label times, newcomers, everybody known.

A *side* is a stretch of time with the users who are asked about in it: training users from the
cut-off on, and test users after them. What is learned without labels ends where labels to fit on
begin, and these end where what is judged begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import duckdb
import pyarrow as pa

from encoder.errors import DataFault
from materialize.evaluate.split import training_users
from transforms.clean import CleanTables
from transforms.dataset import Dataset
from transforms.engine import DAY_US, arrow_table, bounded_connection, quoted

__all__ = [
    "NEWCOMER_US",
    "Population",
    "choose_rows",
    "label_rows",
    "open_events",
    "sampled_events",
    "user_hash",
]

Population = Literal["returning", "known"]
"""``returning``: label rows and newcomers; ``known``: everybody known at the cut-off."""

NEWCOMER_US = 4 * 3_600_000_000
"""A newcomer is asked about so long after the first event."""

_MAX_TIMES_PER_USER = 3
_HASHES = 2**32


@contextmanager
def open_events(
    dataset: Dataset,
    clean: CleanTables,
    *,
    memory_limit_mb: int,
    seed: int,
    horizon_days: int | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection with the data set's events and what its moments depend on.

    Views ``every_event`` and ``event`` (see ``sampled_events``; here the same): the clean events
    and ``us``, ``day``. Variables: ``cutoff``, ``horizon``, ``data_end`` (microseconds), ``seed``,
    ``max_times``, ``reach`` (the longest window, microseconds), and of the test side ``test_from``,
    ``test_at``, ``test_until``, of the training side ``training_from`` and so on: moments lie from
    ``from`` on, their horizons end by ``until``, and ``at`` is the one moment of label times
    ``cutoff``. The training side ends, and the test side begins, a horizon after the cut-off, or
    with label times ``active_days`` with the day by whose end half of the later events have
    happened, but a horizon at least after the cut-off and before the end of the data. A third side,
    ``every``, is both together.

    Parameters
    ----------
    dataset : Dataset
    clean : CleanTables
    memory_limit_mb : int
        DuckDB's memory; larger intermediate results spill to a temporary folder.
    seed : int
        Chooses the label times of users with more than three.
    horizon_days : int, optional
        Default: ``evaluation.horizon_days``.

    Raises
    ------
    DataFault
        No event before the cut-off, or no whole horizon between the cut-off and the data's end.

    Notes
    -----
    The data end with the last UTC day that has at least a tenth of the mean number of events of a
    day with events: single stragglers (a session that was left open, a wrong clock) do not count.
    """
    evaluation = dataset.evaluation
    cutoff, iso = round(evaluation.cutoff.timestamp()) * 1_000_000, evaluation.cutoff.isoformat()
    horizon = (horizon_days or evaluation.horizon_days) * DAY_US
    with bounded_connection(memory_limit_mb) as db:
        for name, value in (
            ("cutoff", cutoff),
            ("horizon", horizon),
            ("seed", seed),
            ("max_times", _MAX_TIMES_PER_USER),
            ("reach", max(dataset.windows) * DAY_US),
        ):
            db.execute(f"SET VARIABLE {name} = {value}")
        db.execute(
            "CREATE VIEW every_event AS SELECT *, epoch_us(ts) AS us, "
            f"epoch_us(ts) // {DAY_US} AS day FROM read_parquet({quoted(clean.events)})"
        )
        sampled_events(db, 1.0)
        end = _scalar(db, _DATA_END)
        db.execute(f"SET VARIABLE data_end = {end}")
        if _scalar(db, "SELECT count(*) FROM every_event WHERE us < getvariable('cutoff')") == 0:
            raise DataFault(
                f"evaluation.cutoff {iso}: no event lies before it. Choose a later instant."
            )
        if cutoff + horizon > end:
            raise DataFault(
                f"evaluation.cutoff {iso} plus evaluation.horizon_days reaches beyond the end "
                f"of the data ({_date(db)} 00:00 UTC). Choose an earlier cut-off or a shorter "
                "horizon."
            )
        judged_from = cutoff + horizon
        if evaluation.label_times == "active_days":
            judged_from = max(min(_scalar(db, _HALF), end - horizon), judged_from)
        for side, start, until in (
            ("training", cutoff, judged_from),
            ("test", judged_from, end),
            ("every", cutoff, end),
        ):
            db.execute(f"SET VARIABLE {side}_from = {start}")
            db.execute(f"SET VARIABLE {side}_at = {start}")
            db.execute(f"SET VARIABLE {side}_until = {until}")
        yield db


def user_hash(user: str) -> str:
    """Return the SQL of a user's place among all users: 32 bits, the same in every release."""
    return f"(md5_number_lower('cohort:' || {user}::VARCHAR) % {_HASHES})"


def sampled_events(db: duckdb.DuckDBPyConnection, share: float) -> None:
    """Let ``event`` be the events of a share of the users: those with the smallest hashes."""
    chosen = "" if share >= 1 else f" WHERE {user_hash('user_id')} < {round(share * _HASHES)}"
    db.execute(f"CREATE OR REPLACE VIEW event AS SELECT * FROM every_event{chosen}")


def label_rows(db: duckdb.DuckDBPyConnection, label_times: str, cutoff: str) -> None:
    """Create table ``label`` (row, user_id, us) from ``event``, ordered by user id, then time.

    All users stand at moments from the cut-off to the end of the data (side ``every``): for
    comparing vectors that were known at the same moments.

    Label times:

    - ``cutoff``: the cut-off, for every user with an event before it and one within the horizon.
    - ``active_days``: 00:00 UTC of days from the cut-off on at which the user is active, where the
      user has an earlier active day; at most three per user, chosen by a seeded hash.

    A label time is used only if its whole horizon lies within the data.

    Raises
    ------
    DataFault
        There is no label time.
    """
    db.execute(
        "CREATE TABLE label AS SELECT row_number() OVER (ORDER BY user_id, us) - 1 AS row, "
        f"user_id, us FROM ({_LABEL_ROWS[label_times].format(side='every', of='event')})"
    )
    if _scalar(db, "SELECT count(*) FROM label") == 0:
        raise DataFault(
            f"evaluation.cutoff {cutoff}, label_times {label_times!r}: no user has events both "
            f"before and after a label time (data end {_date(db)} 00:00 UTC). Choose another "
            "cut-off."
        )


def choose_rows(
    db: duckdb.DuckDBPyConnection, label_times: str, population: Population, max_rows: int
) -> pa.Table:
    """Return the rows of a cohort: user_id, us, newcomer, training; ordered by user id, then time.

    Training users stand at moments from the cut-off on, test users at moments after the last
    training horizon: nobody is on both sides, and no label to fit on is of a time that is judged.

    Parameters
    ----------
    db : connection of ``open_events``
    label_times : {"cutoff", "active_days"}
        On the test side ``cutoff`` is the one moment a horizon after the cut-off.
    population : {"returning", "known"}
    max_rows : int
        Users are taken whole, in the order of ``user_hash``, while their rows fit.

    Raises
    ------
    DataFault
        No two horizons fit between the cut-off and the data's end.

    Notes
    -----
    Leaves ``event`` at the users whose hashes are small enough to hold the sample, so that rows are
    looked for among those only: the cost of a sample of 600 million users is one pass over the
    events' user ids and times, whatever the number of users that fit into memory.
    """
    if _scalar(db, "SELECT getvariable('test_from') + getvariable('horizon')") > _scalar(
        db, "SELECT getvariable('data_end')"
    ):
        raise DataFault(
            "Two horizons, one to fit on and one to judge on, do not fit between evaluation.cutoff "
            f"and the end of the data ({_date(db)} 00:00 UTC). Choose an earlier cut-off or a "
            "shorter horizon."
        )
    users = _scalar(db, "SELECT approx_count_distinct(user_id) FROM every_event")
    share = min(1.0, _FIRST_SHARE * max_rows / max(users, 1))
    kinds = [_KNOWN] if population == "known" else [_LABEL_ROWS[label_times], _NEWCOMERS]
    while True:
        sampled_events(db, share)
        _split_users(db)
        rows = " UNION ALL ".join(_side(kinds, side) for side in ("test", "training"))
        db.execute(f"CREATE OR REPLACE TEMP TABLE candidate AS {rows}")
        # The largest share that was tried may hold fewer rows than wanted; all of them will do.
        if share >= 1 or _scalar(db, "SELECT count(*) FROM candidate") > max_rows:
            break
        share = min(1.0, share * 4)
    return arrow_table(db, _CHOSEN.format(user_hash("user_id"), max_rows))


def _split_users(db: duckdb.DuckDBPyConnection) -> None:
    """Create views ``test_event`` and ``training_event``: the events of either side's users."""
    users = arrow_table(db, "SELECT DISTINCT user_id FROM event")["user_id"]
    training = training_users(users.to_numpy())
    db.register("given_split", pa.table({"user_id": users, "training": training}))
    db.execute("CREATE OR REPLACE TEMP TABLE split AS SELECT * FROM given_split")
    db.unregister("given_split")
    for side, chosen in (("test", "NOT training"), ("training", "training")):
        db.execute(
            f"CREATE OR REPLACE TEMP VIEW {side}_event AS SELECT event.* FROM event "
            f"SEMI JOIN (FROM split WHERE {chosen}) USING (user_id)"
        )


def _side(kinds: list[str], side: str) -> str:
    """Return the SQL of a side's rows."""
    words = {"side": side, "of": f"{side}_event"}
    return _SIDE.format(rows=" UNION ALL ".join(kind.format(**words) for kind in kinds), **words)


def _scalar(db: duckdb.DuckDBPyConnection, query: str) -> int:
    ((answer,),) = db.execute(query).fetchall()
    return int(answer)


def _date(db: duckdb.DuckDBPyConnection) -> str:
    ((day,),) = db.execute("SELECT make_timestamp(getvariable('data_end'))::DATE").fetchall()
    return str(day)


_FIRST_SHARE = 8
"""Users looked at for each row wanted, before more are."""

_DATA_END = """
WITH daily AS (SELECT day, count(*) AS n FROM every_event GROUP BY day)
SELECT (max(day) + 1) * 86400000000 FROM daily WHERE n >= 0.1 * (SELECT avg(n) FROM daily)
"""

_HALF = """
WITH daily AS (
    SELECT day, count(*) AS n FROM every_event
    WHERE us >= getvariable('cutoff') AND us < getvariable('data_end') GROUP BY day
), running AS (SELECT day, sum(n) OVER (ORDER BY day) AS done, sum(n) OVER () AS whole FROM daily)
SELECT (min(day) + 1) * 86400000000 FROM running WHERE 2 * done >= whole
"""

_LABEL_ROWS = {
    "cutoff": """
SELECT user_id, getvariable('{side}_at') AS us
FROM {of} GROUP BY user_id
HAVING min(us) < getvariable('{side}_at') AND bool_or(
    us > getvariable('{side}_at') AND us < getvariable('{side}_at') + getvariable('horizon'))
""",
    "active_days": """
SELECT user_id, day * 86400000000 AS us FROM (
    SELECT user_id, day, row_number() OVER (
        PARTITION BY user_id ORDER BY md5(concat_ws(':', user_id, day, getvariable('seed')))
    ) AS choice
    FROM (SELECT DISTINCT user_id, day FROM {of})
    JOIN (SELECT user_id, min(day) AS first_day FROM {of} GROUP BY user_id) USING (user_id)
    WHERE day > first_day
      AND day * 86400000000 >= getvariable('{side}_from')
      AND day * 86400000000 + getvariable('horizon') <= getvariable('{side}_until')
) WHERE choice <= getvariable('max_times')
""",
}
"""By ``label_times``; of a side."""

_NEWCOMERS = f"""
SELECT user_id, joined AS us
FROM {{of}} JOIN (
    SELECT user_id, min(us) + {NEWCOMER_US} AS joined FROM {{of}}
    GROUP BY user_id HAVING min(us) >= getvariable('{{side}}_from')
) USING (user_id)
WHERE us > joined AND us < joined + getvariable('horizon')
  AND joined + getvariable('horizon') <= getvariable('{{side}}_until')
GROUP BY user_id, joined
"""

_KNOWN = """
SELECT user_id, getvariable('{side}_at') AS us FROM {of}
WHERE us < getvariable('{side}_at') AND us >= getvariable('{side}_at') - getvariable('reach')
GROUP BY user_id
"""

_SIDE = f"""
SELECT DISTINCT user_id, us,
    first_us >= getvariable('{{side}}_from') AND us = first_us + {NEWCOMER_US} AS newcomer,
    '{{side}}' = 'training' AS training
FROM ({{rows}})
JOIN (SELECT user_id, min(us) AS first_us FROM {{of}} GROUP BY user_id) USING (user_id)
"""

_CHOSEN = """
WITH per_user AS (
    SELECT user_id, {0} AS place, count(*) AS n FROM candidate GROUP BY user_id
), running AS (
    SELECT user_id, sum(n) OVER (ORDER BY place, user_id) AS total FROM per_user
)
SELECT user_id, us, newcomer, training FROM candidate
SEMI JOIN (SELECT user_id FROM running WHERE total <= {1}) USING (user_id)
ORDER BY user_id, us
"""
