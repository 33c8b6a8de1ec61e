"""Yelp Open Dataset: reviews of local businesses.

Owner: Yelp Inc., https://business.yelp.com/data/resources/open-dataset/
Terms: personal, educational and academic use after accepting the data set agreement; no redistribution. The owner asks for
that agreement before the download, so nothing is downloaded here.
Raw format: JSON lines inside `yelp_dataset.tar`, `yelp_academic_dataset_review.json` (`user_id`, `business_id`, `stars`,
`date` as `2018-07-07 22:09:11`, …) and `yelp_academic_dataset_business.json` (`business_id`, `name`, `city`, `state`,
`categories` between commas, …). The owner replaces the release from time to time.
Published (release of 2022, offered since): 6,990,280 reviews; users and reviewed businesses are not printed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_seqrec.data.columns import CATEGORIES, ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

from .base import About, Converter, RawFile, Statistics
from .readers import (
    ID,
    RawDataError,
    batches,
    clean_text,
    joined,
    parsed_times,
    read_json_lines,
    read_records,
    text_schema,
)


@dataclass(frozen=True, kw_only=True)
class Yelp(Converter):
    """Converter of the Yelp Open Dataset.

    Example:
        >>> from hf_seqrec.dataset_scripts.yelp import Yelp
        >>> Yelp().about.redistribution
        False
    """

    name = "yelp"
    about = About(
        title="Yelp Open Dataset",
        owner="Yelp Inc.",
        homepage="https://business.yelp.com/data/resources/open-dataset/",
        obtain="Accept the agreement at https://business.yelp.com/data/resources/open-dataset/, download the JSON archive "
        "and put yelp_dataset.tar (or its unpacked files) into the raw folder.",
        terms="Personal, educational and academic use under Yelp's data set agreement; no redistribution.",
        license_name="yelp-dataset-agreement",
        citation="@misc{yelp, author = {{Yelp Inc.}}, title = {Yelp Open Dataset}, "
        "howpublished = {https://business.yelp.com/data/resources/open-dataset/}}",
    )

    def raw_files(self) -> dict[str, list[RawFile]]:
        """Reviews and businesses out of one tar file."""
        names = {"interactions": "yelp_academic_dataset_review.json", "items": "yelp_academic_dataset_business.json"}
        return {
            role: [RawFile((name, f"yelp_dataset/{name}", f"{name}.gz"), archive="yelp_dataset.tar")]
            for role, name in names.items()
        }

    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the reviews."""
        (path,) = paths
        columns = {
            USER_ID: ("user_id", ID),
            ITEM_ID: ("business_id", ID),
            RATING: ("stars", pa.float32()),
            TIMESTAMP: ("date", pa.string()),
        }
        return parsed_times(read_json_lines(path, columns), "%Y-%m-%d %H:%M:%S", path)

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the businesses."""
        (path,) = paths
        rows = (_business(path, line, record) for line, record in read_records(path))
        return batches(rows, text_schema(ITEM_ID, TITLE, CATEGORIES, "city", "state"))

    def published(self) -> dict[str, Statistics]:
        """The owner's number of reviews."""
        return {"raw": Statistics(None, None, 6_990_280)}

    def notes(self) -> list[str]:
        """What was done."""
        return ["Times are the owner's local times of the reviews, read as UTC.", "The title is the business's name."]


def _business(path: Path, line: int, record: dict[str, Any]) -> tuple[str | None, ...]:
    try:
        categories = record.get("categories")
        return (
            record["business_id"],
            clean_text(record.get("name")),
            joined(categories.split(",") if categories else None),
            clean_text(record.get("city")),
            clean_text(record.get("state")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RawDataError(f"{path}, line {line}: not a business ({error!r}).") from error
