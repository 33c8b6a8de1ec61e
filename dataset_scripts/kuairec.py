"""KuaiRec: views of short videos on Kuaishou.

Owner: Chongming Gao and others, USTC and Kuaishou, https://kuairec.com/
Terms: CC BY-SA 4.0.
Raw format: `KuaiRec.zip` with `big_matrix.csv` (user_id, video_id, play_duration, video_duration, time, date, timestamp in
seconds with decimals, watch_ratio) and `kuairec_caption_category.csv` (video_id, manual_cover_text, caption, topic_tag and
three levels of categories, in Chinese; some captions break the csv format).
There is no "like" signal: the owner suggests to call a view positive from some `watch_ratio` on, for example 2.
Published (raw, version 2): 7,176 users, 10,728 videos, 12,530,806 views.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hf_seqrec.data.columns import CATEGORIES, DESCRIPTION, ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

from .base import About, Converter, RawFile, Statistics, option
from .readers import DESCRIPTION_LIMIT, NUMERIC_ID, RawDataError, batches, clean_text, joined, read_csv, text_schema


_LEVELS = ("first_level_category_name", "second_level_category_name", "third_level_category_name")


@dataclass(frozen=True, kw_only=True)
class KuaiRec(Converter):
    """Converter of KuaiRec's big matrix.

    Example:
        >>> from hf_seqrec.dataset_scripts.kuairec import KuaiRec
        >>> KuaiRec(min_watch_ratio=2.0).published()
        {}
    """

    name = "kuairec"
    about = About(
        title="KuaiRec",
        owner="Chongming Gao et al., University of Science and Technology of China and Kuaishou",
        homepage="https://kuairec.com/",
        obtain="Get KuaiRec.zip from https://zenodo.org/records/18164998 and put it into the raw folder.",
        terms="Creative Commons Attribution-ShareAlike 4.0: pass on with attribution under the same licence.",
        redistribution=True,
        license="cc-by-sa-4.0",
        license_name="cc-by-sa-4.0",
        language="zh",
        citation="""@inproceedings{gao2022kuairec,
  author = {Gao, Chongming and Li, Shijun and Lei, Wenqiang and Chen, Jiawei and Li, Biao and Jiang, Peng and
            He, Xiangnan and Mao, Jiaxin and Chua, Tat-Seng},
  title = {KuaiRec: A Fully-observed Dataset and Insights for Evaluating Recommender Systems},
  booktitle = {CIKM}, year = {2022}, pages = {540--550}, doi = {10.1145/3511808.3557220}
}""",
    )

    min_watch_ratio: float | None = option(
        "keep only views watched at least this share of the video (the owner suggests 2.0)", default=None, type=float
    )

    def raw_files(self) -> dict[str, list[RawFile]]:
        """Views and captions out of one zip file."""
        names = {"interactions": "big_matrix.csv", "items": "kuairec_caption_category.csv"}
        return {
            role: [
                RawFile(
                    (f"KuaiRec 2.0/data/{name}", f"KuaiRec/data/{name}", f"data/{name}", name),
                    archive="KuaiRec.zip",
                    url="https://zenodo.org/records/18164998/files/KuaiRec.zip",
                    md5="261550d472c48eff4990fb13c0e5bcf7",
                )
            ]
            for role, name in names.items()
        }

    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the views; `rating` is the watch ratio."""
        (path,) = paths
        columns = {
            USER_ID: ("user_id", NUMERIC_ID),
            ITEM_ID: ("video_id", NUMERIC_ID),
            RATING: ("watch_ratio", pa.float32()),
            TIMESTAMP: ("timestamp", pa.float64()),
        }
        for batch in read_csv(path, columns):
            place = batch.schema.get_field_index(TIMESTAMP)
            batch = batch.set_column(place, TIMESTAMP, pc.floor(batch.column(place)).cast(pa.int64()))
            if self.min_watch_ratio is not None:
                batch = batch.filter(
                    pc.greater_equal(batch.column(RATING), pa.scalar(self.min_watch_ratio, pa.float32()))
                )
            yield batch

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the captions."""
        (path,) = paths
        return batches(_captions(path), text_schema(ITEM_ID, TITLE, DESCRIPTION, CATEGORIES))

    def published(self) -> dict[str, Statistics]:
        """The owner's raw counts, if no view was left out."""
        return {"raw": Statistics(7_176, 10_728, 12_530_806)} if self.min_watch_ratio is None else {}

    def notes(self) -> list[str]:
        """What was done."""
        notes = [
            "`rating` is the watch ratio (time watched divided by the length of the video).",
            "The title is the caption, the description the text on the cover. Rows of the caption file that a broken "
            "caption makes unreadable are left out: such videos have no title.",
        ]
        if self.min_watch_ratio is not None:
            notes.append(f"Only views with a watch ratio of at least {self.min_watch_ratio:g} are kept.")
        return notes


def _captions(path: Path) -> Iterator[tuple[str | None, ...]]:
    # Unquoted line breaks inside captions tear rows apart: a row counts only when it starts with a video id and has every
    # column. Bytes that are not UTF-8 sit in the middle of captions and are replaced.
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        missing = [name for name in ("video_id", "caption", "manual_cover_text", *_LEVELS) if name not in header]
        if missing:
            raise RawDataError(f"{path} has no column {missing[0]!r}: it has {', '.join(header) or 'nothing'}.")
        for row in reader:
            if len(row) != len(header):
                continue
            record = dict(zip(header, row, strict=True))
            if record["video_id"].isdecimal():
                yield (
                    record["video_id"],
                    _known(record["caption"]),
                    _known(record["manual_cover_text"]),
                    joined(_known(record[level]) for level in _LEVELS),
                )


def _known(text: str) -> str | None:
    cleaned = clean_text(text, DESCRIPTION_LIMIT)
    return None if cleaned in ("UNKNOWN", "nan") else cleaned
