"""All that is known of one space: what it came from, who reads it, and how it came there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from encoder.errors import ArtifactError
from materialize.ledger import Bridge, Ledger, Space, Transition
from materialize.lineage import CHAIN_FACT, SpaceDiff, chain
from materialize.removal_tally import TALLY_FACT

if TYPE_CHECKING:
    from materialize.config import RepoSettings

__all__ = ["bridge_figures", "diff_lines", "size", "space_lines", "space_record", "space_row"]

_TOLD_APART = {CHAIN_FACT, TALLY_FACT, "freed"}
"""Facts that `palate spaces show` prints under a heading of their own."""


def space_row(space: Space) -> dict[str, Any]:
    """Return a space as JSON types."""
    return {
        "space": space.number,
        "encoder_version": space.encoder_version,
        "state": space.state,
        "created_at": space.created_at.isoformat(),
        "artifact_url": space.artifact_url,
        "facts": dict(space.facts),
    }


def space_record(settings: RepoSettings, ledger: Ledger, number: int) -> dict[str, Any]:
    """Return everything that the ledger and the artifact tell of a space, as JSON types.

    Besides the fields of `space_row`: ``default`` and ``live`` (bool), ``chain`` (see
    `materialize.lineage.Chain`; None with ``no_chain``, the reason), ``runs``, ``drift`` (of each
    run that was compared with the one before, see `materialize.drift.DriftReport`, or
    ``not_measured``, the reason), ``consumers``, ``bridges`` (into and out of the space, with their
    figures) and ``transitions`` (of the space, of the default and of consumers where it is named,
    and of its bridges), oldest first.

    Raises
    ------
    LedgerConflict
        There is no such space.
    """
    space, default = ledger.space(number), ledger.default_space()
    came_from, no_chain = None, None
    try:
        came_from = chain(settings, space).to_dict()
    except ArtifactError as exc:
        no_chain = str(exc)
    bridges, runs = _bridges(ledger, number), ledger.runs(number)
    return space_row(space) | {
        "default": default is not None and default.number == number,
        "live": number in {live.number for live in ledger.live_spaces()},
        "chain": came_from,
        "no_chain": no_chain,
        "runs": [_without_drift(_plain(asdict(run))) for run in runs],
        "drift": [
            {"run_id": run.run_id, **run.counts["drift"]} for run in runs if "drift" in run.counts
        ],
        "consumers": [_plain(asdict(consumer)) for consumer in ledger.consumers(number)],
        "bridges": [_plain(asdict(bridge)) for bridge in bridges],
        "transitions": [
            _plain(asdict(change))
            for change in ledger.transitions()
            if _concerns(change, number, {bridge.version for bridge in bridges})
        ],
    }


def space_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text of `palate spaces show`."""
    marks = [word for word in ("default", "live") if record[word]]
    yield f"space {record['space']}: {', '.join([record['state'], *marks])}"
    yield f"  encoder version  {record['encoder_version']}"
    yield f"  registered       {_moment(record['created_at'])}"
    yield f"  artifact         {record['artifact_url'] or '-'}"
    for name, value in record["facts"].items():
        if name not in _TOLD_APART:
            yield f"  {name:<15}  {_text(value)}"
    yield from _chain_lines(record)
    yield from _section("runs", record["runs"], _run_line)
    yield from _section("drift", record["drift"], _drift_line)
    yield from _section("consumers", record["consumers"], _consumer_line)
    yield from _section("bridges", record["bridges"], _bridge_line)
    freed = record["facts"].get("freed")
    if freed is not None:
        told = ", ".join(f"{name} {size(n)}" for name, n in freed.items() if n)
        yield f"freed when it was retired: {told or 'nothing'}"
    yield from _section("history", record["transitions"], _transition_line)


def diff_lines(diff: SpaceDiff) -> Iterator[str]:
    """Yield the text of `palate spaces diff`."""
    anew = ", ".join(diff.anew) or "nothing"
    yield f"space {diff.first} -> space {diff.second}: made anew: {anew}"
    for change in diff.changes:
        before, after = (version or "-" for version in (change.before, change.after))
        numbers = "same numbers" if before == after else f"{before} -> {after}"
        follows = f"  (follows {', '.join(change.follows)})" if change.follows else ""
        yield f"  changed  {change.part:<32}  {numbers}{follows}"
        for name, (old, new) in change.settings.items():
            yield f"             {name}: {_text(old)} -> {_text(new)}"
    for part in diff.same:
        yield f"  same     {part}"
    for part in diff.untold:
        yield f"  unknown  {part}: settings are equal, no content hash was recorded"
    yield f"training figures{'':<20}  {f'space {diff.first}':>14}  {f'space {diff.second}':>14}"
    for name, (old, new) in diff.figures.items():
        yield f"  {name:<34}  {_text(old):>14}  {_text(new):>14}"
    for name, (old, new) in diff.libraries.items():
        yield f"library {name}: {_text(old)} -> {_text(new)}"


def size(n_bytes: float) -> str:
    """Return a number of bytes as people read it.

    Examples
    --------
    >>> size(12), size(2_500_000)
    ('12 B', '2.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def bridge_figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of the figures that say how well a bridge maps, "-" where unmeasured."""
    told = []
    for label, path in (
        ("cosine before", ("cosine", "before")),
        ("after", ("cosine", "after")),
        ("overlap before", ("overlap", "before")),
        ("after", ("overlap", "after")),
        ("old head loses", ("probe", "loss", "bridged")),
    ):
        found: Any = figures
        for name in (*path, "value"):
            found = found.get(name) if isinstance(found, Mapping) else None
        told.append((label, "-" if found is None else f"{found:.3f}"))
    return told


def _bridges(ledger: Ledger, number: int) -> list[Bridge]:
    return [*ledger.bridges(target=number), *ledger.bridges(source=number)]


def _concerns(change: Transition, number: int, bridges: set[str]) -> bool:
    if change.subject == "space":
        return change.name == str(number)
    if change.subject == "bridge":
        return change.name in bridges
    # A consumer's pin is told as "3" or "3 through 0123456789ab".
    return str(number) in {(label or "").split(" ")[0] for label in (change.before, change.after)}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}


def _without_drift(run: dict[str, Any]) -> dict[str, Any]:
    counts = {name: count for name, count in run["counts"].items() if name != "drift"}
    return run | {"counts": counts}


def _section(title: str, rows: list[dict[str, Any]], line: Any) -> Iterator[str]:
    yield f"{title}:" if rows else f"{title}: none"
    for row in rows:
        yield f"  {line(row)}".rstrip()


def _chain_lines(record: Mapping[str, Any]) -> Iterator[str]:
    came_from = record["chain"]
    if came_from is None:
        yield f"came from: unknown: {record['no_chain']}"
        return
    yield "came from:"
    for part in came_from["parts"]:
        label = f"{part['kind']} {part['name']}".rstrip()
        yield f"  {part['version'] or '-':<12}  {label}"
        told = [f"{k} {_text(v)}" for k, v in part["settings"].items() if v is not None]
        yield from (f"  {'':<12}    {line}" for line in _wrapped(told))
    figures = [f"{k} {_text(v)}" for k, v in came_from["figures"].items() if v is not None]
    yield f"training ({_moment(came_from['trained_at'])}):"
    yield from (f"  {line}" for line in _wrapped(figures))
    yield from (f"  {line}" for line in _wrapped(f"{k} {v}" for k, v in _libraries(came_from)))


def _libraries(came_from: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted(came_from["libraries"].items())


def _wrapped(words: Any, width: int = 84) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) + 2 > width:
            yield line + ","
            line = word
        else:
            line = f"{line}, {word}" if line else word
    if line:
        yield line


def _run_line(run: Mapping[str, Any]) -> str:
    rows = f"{run['counts']['rows']:,} rows" if "rows" in run["counts"] else ""
    history = "history" if run["plan"].get("from_history") else ""
    told = (_moment(run["started_at"]), run["run_id"], run["view"], run["state"], rows, history)
    return "  ".join(word for word in told if word)


def _drift_line(drift: Mapping[str, Any]) -> str:
    named = f"{drift['run_id']} against {drift['against']}: "
    if "not_measured" in drift:
        return f"{named}not measured: {drift['not_measured']}"
    cosine, auc, gap = drift["cosine"], drift["two_sample_auc"], drift["as_of_gap_days"]
    return (
        f"{named}cosine {cosine['mean']['value']:.3f}, 5% below {cosine['p5']:.3f}, two-sample AUC "
        f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}], {gap['median']:.1f} days "
        f"apart, {drift['unchanged']:.0%} unchanged, {drift['users']:,} users"
    )


def _consumer_line(consumer: Mapping[str, Any]) -> str:
    through = f", through bridge {consumer['bridge']}" if consumer["bridge"] else ""
    moved = _moment(consumer["moved_at"])
    return f"{consumer['name']}  revision {consumer['revision']}, since {moved}{through}"


def _bridge_line(bridge: Mapping[str, Any]) -> str:
    told = [f"{name} {text}" for name, text in bridge_figures(bridge["figures"]) if text != "-"]
    named = f"{bridge['version']}  space {bridge['source']} -> {bridge['target']}, "
    return named + ", ".join([bridge["state"], *told])


def _transition_line(change: Mapping[str, Any]) -> str:
    forced = ", forced" if change["forced"] else ""
    why = f": {change['why']}" if change["why"] else ""
    return (
        f"{_moment(change['at'])}  {change['subject']} {change['name']}: "
        f"{change['before'] or '-'} -> {change['after'] or '-'}, by {change['who']}{forced}{why}"
    )


def _moment(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    return "-" if value is None else str(value)
