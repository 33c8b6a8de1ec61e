"""MovieLens: ratings of films by the people of movielens.org.

Owner: GroupLens Research, University of Minnesota, https://grouplens.org/datasets/movielens/
Terms: research use, acknowledgement in publications, no redistribution and no commercial use without permission.
Raw format:
    `100k`                                `u.data` (tab), `u.item` (`|`, Latin-1, 19 genre flags)
    `1m`, `10m`                           `ratings.dat`, `movies.dat` (`::`; titles in Latin-1 for 1m, UTF-8 for 10m)
    `latest-small`, `20m`, `25m`, `32m`   `ratings.csv`, `movies.csv` (UTF-8)
Times are Unix seconds. Many ratings share a second, and rows are not chronological.
Published: see `_RAW` (raw counts, users and films that have ratings) and, for 1m after 5-core, 6,040 / 3,416 / 999,611.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from hf_seqrec.data.columns import GENRES, ITEM_ID, RATING, RELEASE_DATE, TIMESTAMP, TITLE, USER_ID

from .base import About, Converter, RawFile, Statistics, option
from .readers import NUMERIC_ID, RawDataError, batches, clean_text, joined, read_csv, read_records, text_schema


_RAW = {
    "100k": Statistics(943, 1_682, 100_000),
    "1m": Statistics(6_040, 3_706, 1_000_209),
    "latest-small": Statistics(610, 9_724, 100_836),
    "10m": Statistics(69_878, 10_677, 10_000_054),
    "20m": Statistics(138_493, 26_744, 20_000_263),
    "25m": Statistics(162_541, 59_047, 25_000_095),
    "32m": Statistics(200_948, 84_432, 32_000_204),
}
_FIVE_CORE = {"100k": Statistics(943, 1_349, 99_287), "1m": Statistics(6_040, 3_416, 999_611)}

_GENRES_100K = """unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|
Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western""".replace("\n", "").split("|")


@dataclass(frozen=True, kw_only=True)
class MovieLens(Converter):
    """Converter of the MovieLens editions.

    Example:
        >>> from hf_seqrec.dataset_scripts.movielens import MovieLens
        >>> MovieLens(edition="1m").published()["5-core"].users
        6040
    """

    name = "movielens"
    about = About(
        title="MovieLens",
        owner="GroupLens Research, University of Minnesota",
        homepage="https://grouplens.org/datasets/movielens/",
        obtain="Get the zip file from https://grouplens.org/datasets/movielens/ and put it into the raw folder.",
        terms="Research use only; acknowledge the data set in publications; no endorsement may be implied; no "
        "redistribution and no commercial use without separate permission.",
        license_name="movielens",
        citation="""@article{harper2015movielens,
  author = {Harper, F. Maxwell and Konstan, Joseph A.},
  title = {The MovieLens Datasets: History and Context},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5}, number = {4}, pages = {19:1--19:19}, year = {2015}, doi = {10.1145/2827872}
}""",
    )

    edition: str = option("which release", default="1m", choices=tuple(_RAW))

    @property
    def title(self) -> str:
        """Name of the edition, such as `MovieLens 1M`."""
        return f"MovieLens {self.edition.upper() if self.edition[0].isdigit() else self.edition}"

    @property
    def slug(self) -> str:
        """The owner's folder name, such as `ml-1m`."""
        return f"ml-{self.edition}"

    def raw_files(self) -> dict[str, list[RawFile]]:
        """Two files out of one zip."""
        if self.edition == "100k":
            interactions, items = "u.data", "u.item"
        else:
            ending = "dat" if self.edition in ("1m", "10m") else "csv"
            interactions, items = f"ratings.{ending}", f"movies.{ending}"
        # The 10m archive unpacks into a folder of another name.
        folder = "ml-10M100K" if self.edition == "10m" else self.slug
        url = f"https://files.grouplens.org/datasets/movielens/{self.slug}.zip"
        # The owner replaces this edition from time to time and prints no checksum for it.
        md5_url = None if self.edition == "latest-small" else f"{url}.md5"
        return {
            role: [RawFile((f"{folder}/{name}", name), f"{self.slug}.zip", url, md5_url=md5_url)]
            for role, name in {"interactions": interactions, "items": items}.items()
        }

    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the ratings."""
        (path,) = paths
        ours = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
        types = (NUMERIC_ID, NUMERIC_ID, pa.float32(), pa.int64())
        if path.suffix == ".csv":
            theirs, delimiter, header = ["userId", "movieId", "rating", "timestamp"], ",", None
        elif path.suffix == ".dat":
            # Arrow splits at one character, so that `::` gives an empty column between any two.
            theirs, delimiter = ["user", "movie", "rating", "time"], ":"
            header = ["user", "_1", "movie", "_2", "rating", "_3", "time"]
        else:
            theirs = header = ["user", "movie", "rating", "time"]
            delimiter = "\t"
        columns = dict(zip(ours, zip(theirs, types, strict=True), strict=True))
        return read_csv(path, columns, delimiter, header)

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the films."""
        (path,) = paths
        if path.suffix == ".csv":
            columns = {
                ITEM_ID: ("movieId", NUMERIC_ID),
                TITLE: ("title", pa.string()),
                GENRES: ("genres", pa.string()),
            }
            for batch in read_csv(path, columns):
                rows = zip(*(batch.column(name).to_pylist() for name in (ITEM_ID, TITLE, GENRES)), strict=True)
                cleaned = ((str(item), clean_text(title), _genres(genres)) for item, title, genres in rows)
                yield from batches(cleaned, text_schema(ITEM_ID, TITLE, GENRES))
        elif path.suffix == ".dat":
            encoding = "latin-1" if self.edition == "1m" else "utf-8"
            films = (film for _, film in read_records(path, _split_dat, encoding))
            yield from batches(films, text_schema(ITEM_ID, TITLE, GENRES))
        else:
            films = (film for _, film in read_records(path, _split_item, "latin-1"))
            yield from batches(films, text_schema(ITEM_ID, TITLE, GENRES, RELEASE_DATE))

    def published(self) -> dict[str, Statistics]:
        """The owner's raw counts, and the usual 5-core counts of the two small editions."""
        published = {"raw": _RAW[self.edition]}
        if self.edition in _FIVE_CORE:
            published["5-core"] = _FIVE_CORE[self.edition]
        return published


def _genres(text: str) -> str | None:
    return None if text == "(no genres listed)" else joined(text.split("|"))


def _split_dat(line: str) -> tuple[str | None, ...]:
    parts = line.split("::")
    if len(parts) != 3:
        raise RawDataError(f"expected MovieID::Title::Genres, got {len(parts)} field(s)")
    return parts[0], clean_text(parts[1]), _genres(parts[2])


def _split_item(line: str) -> tuple[str | None, ...]:
    parts = line.split("|")
    flags = parts[5:]
    if len(parts) != 5 + len(_GENRES_100K) or set(flags) - {"0", "1"}:
        raise RawDataError(
            f"expected 5 fields and {len(_GENRES_100K)} genre flags between `|`, got {len(parts)} fields"
        )
    genres = [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1" and genre != "unknown"]
    return parts[0], clean_text(parts[1]), joined(genres), clean_text(parts[2])
