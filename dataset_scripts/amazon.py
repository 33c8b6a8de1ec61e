"""Amazon reviews, editions 2014, 2018 and 2023, one category at a time.

Owner: Julian McAuley's group, UC San Diego.
    2014: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html
    2018: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/
    2023: https://amazon-reviews-2023.github.io/
Terms: published for research; no licence is stated, so no right to pass the data on is granted.
Raw format, by `source`:
    `5-core`    2014 and 2018: reviews of the owner's 5-core as JSON lines (`reviews_C_5.json.gz`, `C_5.json.gz`);
                2023: `benchmark/5core/last_out/C.{train,valid,test}.csv`
    `ratings`   csv without texts: `ratings_C.csv` (user, item, rating, time), `C.csv` (item, user, rating, time),
                `benchmark/0core/rating_only/C.csv` (with a header)
    `reviews`   all reviews as JSON lines: `reviews_C.json.gz`, `C.json.gz`, `raw/review_categories/C.jsonl`
Metadata: `meta_C.json.gz` (2014: Python literals instead of JSON), `raw/meta_categories/meta_C.jsonl`.
Times are Unix seconds at day precision (2014, 2018) or milliseconds (2023). The item is `asin`, in 2023 `parent_asin`.
Published: 5-core counts, see `_FIVE_CORE_2014` and `_FIVE_CORE_2023`; Beauty 2014 is 22,363 / 12,101 / 198,502.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_seqrec.data.columns import BRAND, CATEGORIES, DESCRIPTION, ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

from .base import About, Converter, RawFile, Statistics, option
from .readers import (
    DESCRIPTION_LIMIT,
    ID,
    RawDataError,
    batches,
    clean_text,
    divided,
    joined,
    parse_literal,
    read_csv,
    read_json_lines,
    read_records,
    text_schema,
)


_FIVE_CORE_2014 = {
    "Amazon_Instant_Video": Statistics(5_130, 1_685, 37_126),
    "Beauty": Statistics(22_363, 12_101, 198_502),
    "Books": Statistics(603_668, 367_982, 8_898_041),
    "CDs_and_Vinyl": Statistics(75_258, 64_443, 1_097_592),
    "Cell_Phones_and_Accessories": Statistics(27_879, 10_429, 194_439),
    "Clothing_Shoes_and_Jewelry": Statistics(39_387, 23_033, 278_677),
    "Electronics": Statistics(192_403, 63_001, 1_689_188),
    "Home_and_Kitchen": Statistics(66_519, 28_237, 551_682),
    "Movies_and_TV": Statistics(123_960, 50_052, 1_697_533),
    "Musical_Instruments": Statistics(1_429, 900, 10_261),
    "Sports_and_Outdoors": Statistics(35_598, 18_357, 296_337),
    "Toys_and_Games": Statistics(19_412, 11_924, 167_597),
    "Video_Games": Statistics(24_303, 10_672, 231_780),
}

# As printed on https://amazon-reviews-2023.github.io/data_processing/5core.html: most figures are rounded there.
_FIVE_CORE_2023 = {
    "All_Beauty": Statistics(253, 356, "2.5K"),
    "Arts_Crafts_and_Sewing": Statistics("197.3K", "90.0K", "1.8M"),
    "Automotive": Statistics("632.1K", "267.3K", "6.1M"),
    "Baby_Products": Statistics("150.8K", "36.0K", "1.2M"),
    "Beauty_and_Personal_Care": Statistics("729.6K", "207.6K", "6.6M"),
    "Books": Statistics("776.4K", "495.1K", "9.5M"),
    "CDs_and_Vinyl": Statistics("123.9K", "89.4K", "1.6M"),
    "Cell_Phones_and_Accessories": Statistics("381.0K", "111.5K", "2.8M"),
    "Clothing_Shoes_and_Jewelry": Statistics("2.5M", "715.0K", "23.1M"),
    "Electronics": Statistics("1.6M", "368.2K", "15.5M"),
    "Gift_Cards": Statistics(377, 129, "2.4K"),
    "Grocery_and_Gourmet_Food": Statistics("404.8K", "132.9K", "3.9M"),
    "Health_and_Household": Statistics("796.1K", "184.3K", "7.2M"),
    "Home_and_Kitchen": Statistics("2.9M", "763.6K", "28.2M"),
    "Industrial_and_Scientific": Statistics("51.0K", "25.8K", "412.9K"),
    "Kindle_Store": Statistics("892.2K", "466.6K", "16.1M"),
    "Magazine_Subscriptions": Statistics(30, 21, 176),
    "Movies_and_TV": Statistics("657.2K", "197.9K", "7.4M"),
    "Musical_Instruments": Statistics("57.4K", "24.6K", "511.8K"),
    "Office_Products": Statistics("223.3K", "77.6K", "1.8M"),
    "Patio_Lawn_and_Garden": Statistics("416.6K", "133.4K", "3.4M"),
    "Pet_Supplies": Statistics("594.8K", "114.6K", "5.3M"),
    "Software": Statistics("146.4K", "17.6K", "1.3M"),
    "Sports_and_Outdoors": Statistics("409.8K", "156.2K", "3.5M"),
    "Tools_and_Home_Improvement": Statistics("842.0K", "274.7K", "7.9M"),
    "Toys_and_Games": Statistics("432.3K", "162.0K", "3.9M"),
    "Video_Games": Statistics("94.8K", "25.6K", "814.6K"),
}

_CITATIONS = {
    "2014": """@inproceedings{mcauley2015image,
  author = {McAuley, Julian and Targett, Christopher and Shi, Qinfeng and van den Hengel, Anton},
  title = {Image-based Recommendations on Styles and Substitutes}, booktitle = {SIGIR}, year = {2015}
}
@inproceedings{he2016ups,
  author = {He, Ruining and McAuley, Julian},
  title = {Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class Collaborative Filtering},
  booktitle = {WWW}, year = {2016}
}""",
    "2018": """@inproceedings{ni2019justifying,
  author = {Ni, Jianmo and Li, Jiacheng and McAuley, Julian},
  title = {Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects},
  booktitle = {EMNLP}, year = {2019}
}""",
    "2023": """@article{hou2024bridging,
  author = {Hou, Yupeng and Li, Jiacheng and He, Zhankui and Yan, An and Chen, Xiusi and McAuley, Julian},
  title = {Bridging Language and Items for Retrieval and Recommendation}, journal = {arXiv:2403.03952}, year = {2024}
}""",
}

_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/"
_HUB = "McAuley-Lab/Amazon-Reviews-2023"


@dataclass(frozen=True, kw_only=True)
class Amazon(Converter):
    """Converter of the Amazon review editions.

    Example:
        >>> from hf_seqrec.dataset_scripts.amazon import Amazon
        >>> beauty = Amazon(edition="2014", category="Beauty")
        >>> [raw.names[0] for raw in beauty.raw_files()["interactions"]]
        ['reviews_Beauty_5.json.gz']
    """

    name = "amazon"
    about = About(
        title="Amazon reviews",
        owner="Julian McAuley's group, University of California San Diego",
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets.html",
        obtain="Get the files of your category from https://cseweb.ucsd.edu/~jmcauley/datasets.html#amazon_reviews "
        "(2023: https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023) and put them into the raw folder.",
        terms="Published for research. The owner states no licence, so no right to pass the data on is granted.",
        license_name="unspecified",
    )

    edition: str = option("which edition", default="2014", choices=("2014", "2018", "2023"))
    category: str = option("the owner's category name, such as Beauty or Video_Games", default="Beauty")
    source: str = option(
        "the owner's 5-core, the ratings without texts, or all reviews",
        default="5-core",
        choices=("5-core", "ratings", "reviews"),
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.category or not all(letter.isalnum() or letter in "_&" for letter in self.category):
            raise ValueError(f"category {self.category!r} is no category name: write it as in the owner's file names.")

    @property
    def title(self) -> str:
        """Name of the category and edition."""
        return f"Amazon {self.category.replace('_', ' ')} {self.edition}"

    @property
    def slug(self) -> str:
        """Such as `amazon-beauty-2014`."""
        return f"amazon-{self.category.lower().replace('_', '-')}-{self.edition}"

    @property
    def citation(self) -> str:
        """The papers of the edition."""
        return _CITATIONS[self.edition]

    def raw_files(self) -> dict[str, list[RawFile]]:
        """Reviews or ratings, and the metadata of the category."""
        category = self.category
        if self.edition == "2023":
            interactions = {
                "5-core": [f"benchmark/5core/last_out/{category}.{part}.csv" for part in ("train", "valid", "test")],
                "ratings": [f"benchmark/0core/rating_only/{category}.csv"],
                "reviews": [f"raw/review_categories/{category}.jsonl"],
            }[self.source]
            return {
                "interactions": [_on_hub(name) for name in interactions],
                "items": [_on_hub(f"raw/meta_categories/meta_{category}.jsonl")],
            }
        if self.edition == "2018":
            # The complete reviews are behind the owner's form.
            reviews, folder = {
                "5-core": (f"{category}_5.json.gz", "categoryFilesSmall/"),
                "ratings": (f"{category}.csv", "categoryFilesSmall/"),
                "reviews": (f"{category}.json.gz", None),
            }[self.source]
            url = None if folder is None else _UCSD + folder + reviews
            meta = f"meta_{category}.json.gz"
            return {"interactions": [_direct(reviews, url)], "items": [_direct(meta, f"{_UCSD}metaFiles2/{meta}")]}
        reviews = {
            "5-core": f"reviews_{category}_5.json.gz",
            "ratings": f"ratings_{category}.csv",
            "reviews": f"reviews_{category}.json.gz",
        }[self.source]
        return {
            "interactions": [_direct(reviews, _SNAP + reviews)],
            "items": [_direct(f"meta_{category}.json.gz", f"{_SNAP}meta_{category}.json.gz")],
        }

    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams reviews or ratings."""
        for path in paths:
            if self.edition == "2023":
                yield from divided(self._read_2023(path), units_per_second=1_000)
            elif self.source == "ratings":
                # The two editions differ in the order of the first two columns.
                header = ["user", "item"] if self.edition == "2014" else ["item", "user"]
                yield from read_csv(
                    path, _columns("user", "item", "rating", "time"), header=[*header, "rating", "time"]
                )
            else:
                yield from read_json_lines(path, _columns("reviewerID", "asin", "overall", "unixReviewTime"))

    def _read_2023(self, path: Path) -> Iterator[pa.RecordBatch]:
        columns = _columns("user_id", "parent_asin", "rating", "timestamp")
        return read_json_lines(path, columns) if self.source == "reviews" else read_csv(path, columns)

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the metadata."""
        (path,) = paths
        parse = parse_literal if self.edition == "2014" else json.loads
        schema = text_schema(ITEM_ID, TITLE, DESCRIPTION, CATEGORIES, BRAND)
        return batches((self._item(path, line, record) for line, record in read_records(path, parse)), schema)

    def _item(self, path: Path, line: int, record: dict[str, Any]) -> tuple[str | None, ...]:
        id_key, categories_key = {
            "2014": ("asin", "categories"),
            "2018": ("asin", "category"),
            "2023": ("parent_asin", "categories"),
        }[self.edition]
        try:
            # 2014 nests the categories one level deeper, and has one description instead of a list of paragraphs.
            return (
                record[id_key],
                clean_text(record.get("title")),
                clean_text(" ".join(_flat(record.get("description"))), DESCRIPTION_LIMIT),
                joined(_flat(record.get(categories_key))),
                clean_text(record.get("store") if self.edition == "2023" else record.get("brand")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RawDataError(
                f"{path}, line {line}: not an item of the {self.edition} edition ({error!r})."
            ) from error

    def published(self) -> dict[str, Statistics]:
        """5-core counts; they are also the raw counts when the owner's 5-core is the source."""
        known = {"2014": _FIVE_CORE_2014, "2023": _FIVE_CORE_2023}.get(self.edition, {})
        statistics = known.get(self.category)
        if statistics is None:
            return {}
        if self.source == "5-core":
            return {"raw": statistics, "5-core": statistics}
        # The owner's 2023 5-core also drops repeated reviews of the same item, so that it is no reference here.
        return {"5-core": statistics} if self.edition == "2014" else {}

    def notes(self) -> list[str]:
        """What was done to this edition."""
        notes = [
            "Titles and descriptions: HTML entities decoded, white space joined; descriptions cut at "
            f"{DESCRIPTION_LIMIT:,} characters."
        ]
        if self.edition == "2023":
            notes.append("Times were milliseconds and are rounded down to seconds. An item is a `parent_asin`.")
            if self.source == "5-core":
                notes.append(
                    "Training, validation and test parts of the owner's leave-last-out split are joined again."
                )
        else:
            notes.append("The owner's times have day precision: ties keep the order of the owner's file.")
        return notes


def _columns(user: str, item: str, rating: str, time: str) -> dict[str, tuple[str, pa.DataType]]:
    return {USER_ID: (user, ID), ITEM_ID: (item, ID), RATING: (rating, pa.float32()), TIMESTAMP: (time, pa.int64())}


def _direct(name: str, url: str | None) -> RawFile:
    return RawFile(_plain_or_gzip(name), url=url)


def _on_hub(path: str) -> RawFile:
    return RawFile((*_plain_or_gzip(path), *_plain_or_gzip(Path(path).name)), hub=(_HUB, path))


def _plain_or_gzip(name: str) -> tuple[str, str]:
    return (name, name.removesuffix(".gz")) if name.endswith(".gz") else (name, f"{name}.gz")


def _flat(value: Any) -> list[str]:
    """Strings inside nested lists, in order."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [text for part in value for text in _flat(part)]
