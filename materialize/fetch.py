"""``palate data fetch``: download a public data set, verify it, and write it as Parquet."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import requests
import tenacity
from tqdm import tqdm

from encoder.errors import DataFault, TransientError

__all__ = ["KNOWN", "Archive", "fetch"]

_CONNECT_S, _READ_S = 3.0, 30.0
_ATTEMPTS = 4
_CHUNK = 1 << 16
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers that the same request may not get again."""


@dataclass(frozen=True)
class Archive:
    """A published zip file and how its tables become Parquet.

    Attributes
    ----------
    url : str
        The publisher's address.
    md5 : str
        Of the zip file, as the publisher states it. It guards against damage, not against forgery.
    size : int
        Bytes of the zip file; shown before the server says it.
    convert : callable
        Takes the open zip file, gives Parquet file name -> table.
    """

    url: str
    md5: str
    size: int
    convert: Callable[[zipfile.ZipFile], dict[str, pa.Table]]


def fetch(
    name: str,
    target_dir: str | Path,
    *,
    url: str | None = None,
    progress: bool = True,
    known: Mapping[str, Archive] | None = None,
) -> Path:
    """Download a known data set and write its tables to ``target_dir/name``.

    Safe to repeat: a complete folder is left as it is, an interrupted download goes on where it
    stopped. The folder appears under its name only when all tables are written.

    Parameters
    ----------
    name : str
        A key of ``known``.
    target_dir : str or Path
        Made when missing; what ``PALATE_DATA`` points at.
    url : str, optional
        Another address of the same file, for example a mirror; the checksum stays the same.
    progress : bool
        Show a progress bar on stderr.
    known : mapping, optional
        Default: ``KNOWN``.

    Returns
    -------
    Path
        The folder with the Parquet files.

    Raises
    ------
    ValueError
        The name is not known.
    DataFault
        The download is not the published file; it was deleted.
    TransientError
        The server could not be reached or did not answer properly, after some tries.
    """
    archives = KNOWN if known is None else known
    if name not in archives:
        raise ValueError(f"Data set {name!r} given, known are {', '.join(sorted(archives))}.")
    archive = archives[name]
    folder = Path(target_dir) / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f"{name}.zip.part")
    address = url or archive.url
    _download(address, part, archive.size, progress)
    _verify(part, archive, address)
    with _appearing(folder) as building:
        try:
            with zipfile.ZipFile(part) as zipped:
                tables = archive.convert(zipped)
        except (zipfile.BadZipFile, KeyError, ValueError, pa.ArrowInvalid) as exc:
            part.unlink()
            raise DataFault(
                f"{address} has the published checksum, but its tables cannot be read: {exc}"
            ) from exc
        for file_name, table in tables.items():
            pq.write_table(table, building / file_name, compression="zstd")
    part.unlink()
    return folder


def _download(url: str, part: Path, expected_size: int, progress: bool) -> None:
    """Complete ``part``; tries again after transient failures, each time from where it stopped."""
    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential_jitter(initial=0.2, max=5.0, jitter=0.2),
        reraise=True,
    )
    with tqdm(
        total=expected_size, unit="B", unit_scale=True, desc=part.name, disable=not progress
    ) as bar:
        retry(_download_once, url, part, bar)


def _download_once(url: str, part: Path, bar: tqdm[None]) -> None:
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(
            url, headers=headers, stream=True, timeout=(_CONNECT_S, _READ_S)
        ) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # the file is complete, or not the published one: the checksum tells
            _check_status(url, response)
            resumed = response.status_code == requests.codes.partial_content
            bar.n = have if resumed else 0  # a server without ranges sends all of it again
            bar.refresh()
            with part.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as exc:
        raise TransientError(
            f"{url} could not be read: {type(exc).__name__} after {_size(part):,} bytes. Check the "
            "network and try again (the download goes on there), or name a mirror with --url."
        ) from exc


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_status(url: str, response: requests.Response) -> None:
    if response.status_code in _BUSY:
        raise TransientError(
            f"{url} answered {response.status_code} {response.reason}. Try again later."
        )
    if not response.ok:
        raise DataFault(
            f"{url} answered {response.status_code} {response.reason}, a zip file was expected. "
            "Name another address with --url."
        )


def _verify(part: Path, archive: Archive, url: str) -> None:
    with part.open("rb") as file:
        found = _md5(file)
    if found != archive.md5:
        size = part.stat().st_size
        part.unlink()
        raise DataFault(
            f"{url} gave {size:,} bytes with md5 {found}; {archive.size:,} bytes with md5 "
            f"{archive.md5} were expected. The download was deleted; try again or name a mirror "
            "with --url."
        )


def _md5(file: io.BufferedReader) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``folder`` at the end, or nothing after an error."""
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield building
        building.chmod(0o755)  # mkdtemp gives 0700; data sets are shared
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _read(
    zipped: zipfile.ZipFile, member: str, separator: str, columns: Mapping[str, pa.DataType]
) -> pa.Table:
    """Return a text file of the archive as a table with the given columns.

    Members are read in memory by their exact name, never extracted: a path inside the archive
    cannot lead anywhere.
    """
    # Arrow takes one character as separator, and two of these files have "::".
    text = zipped.read(member).replace(separator.encode(), b"\x1f")
    return pa_csv.read_csv(
        io.BytesIO(text),
        pa_csv.ReadOptions(column_names=list(columns), encoding="latin-1"),
        pa_csv.ParseOptions(delimiter="\x1f", quote_char=False),
        pa_csv.ConvertOptions(
            column_types=dict(columns), strings_can_be_null=True, null_values=[""]
        ),
    )


_ID, _SMALL, _TEXT = pa.int16(), pa.int8(), pa.large_string()
_RATINGS = {"user_id": _ID, "movie_id": _ID, "rating": _SMALL, "timestamp": pa.int32()}
_BY_USER_AND_TIME = [
    ("user_id", "ascending"),
    ("timestamp", "ascending"),
    ("movie_id", "ascending"),
]
_ML100K_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip


def _ml100k(zipped: zipfile.ZipFile) -> dict[str, pa.Table]:
    """Return ratings, users and movies of MovieLens 100K; genre flags joined with "|"."""
    users = {"user_id": _ID, "age": _SMALL, "gender": _TEXT, "occupation": _TEXT, "zip_code": _TEXT}
    movies = {"movie_id": _ID, "title": _TEXT, "release_date": _TEXT, "video": _TEXT, "url": _TEXT}
    item = _read(zipped, "ml-100k/u.item", "|", movies | dict.fromkeys(_ML100K_GENRES, _SMALL))
    flags = zip(*(item.column(genre).to_pylist() for genre in _ML100K_GENRES), strict=True)
    genres = [
        "|".join(sorted(g for g, on in zip(_ML100K_GENRES, row, strict=True) if on))
        for row in flags
    ]
    return {
        "ratings.parquet": _read(zipped, "ml-100k/u.data", "\t", _RATINGS).sort_by(
            _BY_USER_AND_TIME
        ),
        "users.parquet": _read(zipped, "ml-100k/u.user", "|", users),
        "movies.parquet": item.select(["movie_id", "title", "release_date"]).append_column(
            "genres", pa.array(genres, _TEXT)
        ),
    }


def _ml1m(zipped: zipfile.ZipFile) -> dict[str, pa.Table]:
    """Return ratings, users and movies of MovieLens 1M."""
    users = {
        "user_id": _ID, "gender": _TEXT, "age": _SMALL, "occupation": _SMALL, "zip_code": _TEXT,
    }  # fmt: skip
    movies = {"movie_id": _ID, "title": _TEXT, "genres": _TEXT}
    ratings = _read(zipped, "ml-1m/ratings.dat", "::", _RATINGS)
    return {
        "ratings.parquet": ratings.sort_by(_BY_USER_AND_TIME),
        "users.parquet": _read(zipped, "ml-1m/users.dat", "::", users),
        "movies.parquet": _read(zipped, "ml-1m/movies.dat", "::", movies),
    }


KNOWN: Mapping[str, Archive] = {
    "ml100k": Archive(
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "0e33842e24a9c977be4e0107933c0723",
        4_924_029,
        _ml100k,
    ),
    "ml1m": Archive(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "c4d9eecfca2ab87c1945afe126590906",
        5_917_549,
        _ml1m,
    ),
}
"""Data sets that ``fetch`` knows, by the name of their dataset.yaml. Research use only."""
