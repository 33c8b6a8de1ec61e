"""Steam: reviews of video games.

Owner: Wang-Cheng Kang and Julian McAuley, UC San Diego, https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data
Terms: published for research; no licence is stated, so no right to pass the data on is granted.
Raw format: `steam_reviews.json.gz` and `steam_games.json.gz`, one Python (not JSON) dictionary per line:
    {u'username': u'Ann', u'product_id': u'725280', u'date': u'2017-12-17', u'hours': 0.1, u'text': u'…', …}
    {u'id': u'761140', u'title': u'Lost Summoner Kitty', u'app_name': u'…', u'genres': [u'Action'], u'tags': […], …}
The user is the name shown, as in the SASRec paper; the time is a day. There are no ratings. Python literals have no
streaming reader in Arrow: each line is parsed by `ast.literal_eval`, about 5 minutes for the whole file on one core.
Published (raw): 2,567,538 users, 15,474 games, 7,793,069 reviews.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_seqrec.data.columns import BRAND, CATEGORIES, GENRES, ITEM_ID, RELEASE_DATE, TIMESTAMP, TITLE, USER_ID

from .base import About, Converter, RawFile, Statistics
from .readers import (
    ID,
    RawDataError,
    batches,
    clean_text,
    joined,
    parse_literal,
    parsed_times,
    read_records,
    text_schema,
)


_URL = "https://cseweb.ucsd.edu/~wckang/"


@dataclass(frozen=True, kw_only=True)
class Steam(Converter):
    """Converter of the Steam reviews.

    Example:
        >>> from hf_seqrec.dataset_scripts.steam import Steam
        >>> Steam().published()["raw"].interactions
        7793069
    """

    name = "steam"
    about = About(
        title="Steam reviews",
        owner="Wang-Cheng Kang and Julian McAuley, University of California San Diego",
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        obtain="Get steam_reviews.json.gz and steam_games.json.gz (version 2) from "
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data and put them into the raw folder.",
        terms="Published for research. The owner states no licence, so no right to pass the data on is granted.",
        license_name="unspecified",
        citation="""@inproceedings{kang2018self,
  author = {Kang, Wang-Cheng and McAuley, Julian},
  title = {Self-Attentive Sequential Recommendation}, booktitle = {ICDM}, year = {2018}
}""",
    )

    def raw_files(self) -> dict[str, list[RawFile]]:
        """Reviews and games."""
        return {
            role: [RawFile((f"{name}.gz", name), url=f"{_URL}{name}.gz")]
            for role, name in {"interactions": "steam_reviews.json", "items": "steam_games.json"}.items()
        }

    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the reviews."""
        (path,) = paths
        schema = pa.schema([(USER_ID, ID), (ITEM_ID, ID), (TIMESTAMP, pa.string())])
        rows = (_review(path, line, record) for line, record in read_records(path, parse_literal))
        return parsed_times(batches(rows, schema, size=500_000), "%Y-%m-%d", path)

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the games."""
        (path,) = paths
        rows = (_game(record) for _, record in read_records(path, parse_literal) if record.get("id"))
        return batches(rows, text_schema(ITEM_ID, TITLE, GENRES, CATEGORIES, BRAND, RELEASE_DATE))

    def published(self) -> dict[str, Statistics]:
        """The owner's raw counts."""
        return {"raw": Statistics(2_567_538, 15_474, 7_793_069)}

    def notes(self) -> list[str]:
        """What was done."""
        return [
            "A user is the name shown on Steam, which several accounts may share.",
            "The owner's times have day precision: ties keep the order of the owner's file.",
            "`categories` are the tags given by players; `brand` is the developer.",
        ]


def _review(path: Path, line: int, record: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("username", "product_id", "date")
    for key in keys:
        if not isinstance(record.get(key), str) or not record[key]:
            raise RawDataError(f"{path}, line {line}: {key!r} is {record.get(key)!r}; every review needs one.")
    return tuple(record[key] for key in keys)


def _game(record: dict[str, Any]) -> tuple[str | None, ...]:
    return (
        str(record["id"]),
        clean_text(record.get("title") or record.get("app_name")),
        joined(record.get("genres")),
        joined(record.get("tags")),
        clean_text(record.get("developer")),
        clean_text(record.get("release_date")),
    )
