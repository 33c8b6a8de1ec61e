"""Builds ml-100k, ml-1m and Beauty (2014) from raw files in their owners' formats and checks the published counts.

The raw files are written from the small copies in the data folder (`$HF_SEQREC_DATA`, or `../shared/data` beside the
project), which hold the filtered sets. So that the filter has work to do, users and items below the core are mixed in; in
Beauty they form a chain that falls link by link, so that only a filter repeated to its fixed point removes it.

    python benchmarks/check_counts.py
"""

import gzip
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from hf_seqrec.dataset_scripts.amazon import Amazon
from hf_seqrec.dataset_scripts.base import Converter
from hf_seqrec.dataset_scripts.building import Filters, build_dataset
from hf_seqrec.dataset_scripts.movielens import MovieLens


DATA = Path(os.environ.get("HF_SEQREC_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_ml_100k(root)
        check(MovieLens(edition="100k"), root, Filters(user_core=1, item_core=1), (943, 1_682, 100_000))
        check(MovieLens(edition="100k"), root, Filters(), (943, 1_349, 99_287))
        write_ml_1m(root)
        check(MovieLens(edition="1m"), root, Filters(), (6_040, 3_416, 999_611))
        write_beauty(root)
        check(Amazon(edition="2014", category="Beauty", source="reviews"), root, Filters(), (22_363, 12_101, 198_502))


def check(converter: Converter, raw_dir: Path, filters: Filters, expected: tuple[int, int, int]) -> None:
    output = raw_dir / f"{converter.slug}-{filters.user_core}-core"
    data = build_dataset(converter, raw_dir, output, filters, strict=True)
    found = len(data.sequences), data.catalogue.num_items, data.sequences.num_interactions
    print(f"{converter.title}, {filters.user_core}-core: {found}, published {expected}")
    if found != expected:
        raise SystemExit(f"{converter.title}: got {found}, published {expected}")


def write_ml_100k(root: Path) -> None:
    """Everything is in the copy: no noise, the raw counts must come out."""
    rows, items = load("ml-100k")
    folder = root / "ml-100k"
    folder.mkdir()
    rows["rating"] = rows["rating"].astype(int)
    rows[["user_id", "item_id", "rating", "timestamp"]].to_csv(folder / "u.data", sep="\t", index=False, header=False)
    lines = [
        "|".join([item, title, "01-Jan-1995", "", "", "1", *["0"] * 18])
        for item, title in zip(items["item_id"], items["title"], strict=True)
    ]
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")


def write_ml_1m(root: Path) -> None:
    """290 films with 598 ratings are absent from the copy: the same numbers are put back as noise."""
    rows, items = load("ml-1m")
    folder = root / "ml-1m"
    folder.mkdir()
    counts = np.array([4] * 18 + [3] * 18 + [2] * 218 + [1] * 36)
    assert len(counts) == 290
    assert counts.sum() == 598
    films = [f"{item}" for item in np.repeat(np.arange(5_000, 5_290), counts)]
    # Users of the copy rate the films, so that nobody falls with them: as in the owner's file.
    users = rows["user_id"].unique()[np.concatenate([np.arange(count) + 7 for count in counts])]
    noise = pd.DataFrame({"user_id": users, "item_id": films, "timestamp": 978_300_000})
    rows = pd.concat([rows, noise]).sample(frac=1.0, random_state=0).sort_values("user_id", kind="stable")
    rating = (rows["timestamp"] % 5 + 1).astype(str)
    lines = rows["user_id"] + "::" + rows["item_id"] + "::" + rating + "::" + rows["timestamp"].astype(str)
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")
    texts = items["item_id"] + "::" + items["title"] + "::" + items["genres"].fillna("")
    extra = [f"{item}::Rarely Seen {item} (1990)::Drama" for item in range(5_000, 5_290)]
    (folder / "movies.dat").write_text("\n".join([*texts, *extra]) + "\n", encoding="latin-1")


def write_beauty(root: Path) -> None:
    """Noise users and items in a chain: each link keeps the next one at five until it falls itself."""
    rows, items = load("amazon-beauty-2014")
    chain = [
        (f"NOISEUSER{link:04}", f"NOISEITEM{link + step:04}")
        for link in range(300)
        for step in (range(5) if link else range(4))
    ]
    noise = pd.DataFrame(chain, columns=["user_id", "item_id"]).assign(timestamp=1_400_000_000)
    rows = pd.concat([rows, noise]).sample(frac=1.0, random_state=0)
    with gzip.open(root / "reviews_Beauty.json.gz", "wt", compresslevel=1) as file:
        for user, item, time in zip(rows["user_id"], rows["item_id"], rows["timestamp"], strict=True):
            review = {"reviewerID": user, "asin": item, "helpful": [0, 0], "reviewText": "", "overall": 5.0}
            file.write(json.dumps(review | {"unixReviewTime": time}) + "\n")
    with gzip.open(root / "meta_Beauty.json.gz", "wt", compresslevel=1) as file:
        for item, title in zip(items["item_id"], items["title"], strict=True):
            record = {"asin": item, "categories": [["Beauty"]]} | ({"title": title} if isinstance(title, str) else {})
            file.write(f"{record!r}\n")


def load(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = DATA / name
    if not folder.is_dir():
        raise SystemExit(f"{folder} does not exist: set HF_SEQREC_DATA to the folder with the data sets.")
    return pd.read_parquet(folder / "interactions.parquet"), pd.read_parquet(folder / "items.parquet")


if __name__ == "__main__":
    main()
