"""Broken raw input: each gives one clear error that names file and line, and nothing is written."""

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_seqrec.dataset_scripts.amazon import Amazon
from hf_seqrec.dataset_scripts.building import Filters, build_dataset
from hf_seqrec.dataset_scripts.movielens import MovieLens
from hf_seqrec.dataset_scripts.steam import Steam
from hf_seqrec.dataset_scripts.table import Csv, Parquet
from hf_seqrec.dataset_scripts.yelp import Yelp


PLAYS = Csv(interactions_file="plays.csv", timestamp_column="time", items_file="songs.csv")
HEADER = "user_id,item_id,time\n"
GOOD = HEADER + "ann,a,5\nbob,b,6\n"
REVIEW = '{"user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-07-07 22:09:11"}\n'
AMAZON = '{"reviewerID": "u", "asin": "b", "overall": 4.0, "unixReviewTime": 1400000000}\n'
BUSINESS = '{"business_id": "b", "name": "Bar"}\n'
GAME = "{'id': '70', 'title': 'Game'}\n"


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


PARQUET = Parquet(interactions_file="plays.parquet", timestamp_column="time")
ROWS = parquet(user_id=["ann", "bob"], item_id=["a", "b"], time=[5, 6])

CASES = {
    "missing file": (PLAYS, {}, r"found none of .*plays\.csv\. Put the file into the raw folder"),
    "missing movielens": (
        MovieLens(edition="1m"),
        {},
        r"found none of .*ratings\.dat.*ml-1m\.zip\. Get the zip file from https://grouplens\.org/.* Or pass --download",
    ),
    "missing titles": (
        PLAYS,
        {"plays.csv": GOOD},
        r"found none of .*songs\.csv\..*To build without titles, pass --without-titles",
    ),
    "empty csv": (PLAYS, {"plays.csv": ""}, r"plays\.csv is empty"),
    "only a header": (PLAYS, {"plays.csv": HEADER}, r"raw interactions have no row"),
    "wrong column": (
        PLAYS,
        {"plays.csv": "user_id,itemid,time\nann,a,5\n"},
        r"plays\.csv has no column 'item_id': it has user_id, itemid, time\. Did you mean 'itemid'\?",
    ),
    "too few fields": (
        PLAYS,
        {"plays.csv": GOOD + "cat,c\n"},
        r"plays\.csv, line 4: Expected 3 columns, got 2: cat,c",
    ),
    "time is no number": (PLAYS, {"plays.csv": GOOD + "cat,c,soon\n"}, r"line 4: .*int64.*'soon'"),
    "time is missing": (PLAYS, {"plays.csv": GOOD + "cat,c,\n"}, r"line 4: 'time' is missing"),
    "user is empty": (PLAYS, {"plays.csv": GOOD + ",c,7\n"}, r"line 4: 'user_id' is empty"),
    "not UTF-8": (PLAYS, {"plays.csv": GOOD.encode() + b"c\xe9,c,7\n"}, r"line 4: .*invalid UTF8"),
    "header not UTF-8": (PLAYS, {"plays.csv": b"caf\xe9,item_id,time\n"}, r"plays\.csv, line 1: not utf-8 text"),
    "cut gzip": (
        Csv(interactions_file="plays.csv.gz", timestamp_column="time"),
        {"plays.csv.gz": gzip.compress((HEADER + "".join(f"u{i},i{i},{i}\n" for i in range(5_000))).encode())[:-20]},
        r"plays\.csv\.gz is cut off or damaged",
    ),
    "no gzip at all": (
        Csv(interactions_file="plays.csv.gz", timestamp_column="time"),
        {"plays.csv.gz": GOOD},
        r"plays\.csv\.gz is cut off or not gzip",
    ),
    "milliseconds": (PLAYS, {"plays.csv": HEADER + "ann,a,1577923201000\n"}, r"looks like milliseconds"),
    "negative time": (PLAYS, {"plays.csv": HEADER + "ann,a,-5\n"}, r"negative timestamp"),
    "text time of another form": (
        Csv(interactions_file="plays.csv", timestamp_column="time", timestamp_unit="text"),
        {"plays.csv": HEADER + "ann,a,2020-01-02 00:00:01\nbob,b,02.01.2020\n"},
        r"interaction 2: time '02\.01\.2020' does not have the form '%Y-%m-%d %H:%M:%S'",
    ),
    "control character in a title": (
        PLAYS,
        {"plays.csv": GOOD, "songs.csv": "item_id,title\na,Bell\x07\n"},
        r"title in row 0 \(item_id 'a'\) has control characters",
    ),
    "rating is not finite": (
        Csv(interactions_file="plays.csv", timestamp_column="time", rating_column="stars"),
        {"plays.csv": "user_id,item_id,time,stars\nann,a,5,4.0\nann,b,6,nan\n"},
        r"line 3: 'stars' is (missing|nan)",
    ),
    "half-written parquet": (PARQUET, {"plays.parquet": ROWS[:-40]}, r"plays\.parquet cannot be read.*cut off"),
    "parquet column": (
        PARQUET,
        {"plays.parquet": parquet(user=["ann"], item_id=["a"], time=[5])},
        r"no column 'user_id': it has user, item_id, time\. Did you mean 'user'\?",
    ),
    "parquet float ids": (
        PARQUET,
        {"plays.parquet": parquet(user_id=[1.0], item_id=["a"], time=[5])},
        r"'user_id' holds ids as floating-point numbers",
    ),
    "parquet null id": (
        PARQUET,
        {"plays.parquet": parquet(user_id=["ann", None], item_id=["a", "b"], time=[5, 6])},
        r"row 2: 'user_id' is missing",
    ),
    "parquet fractions of seconds": (
        PARQUET,
        {"plays.parquet": parquet(user_id=["ann"], item_id=["a"], time=[5.5])},
        r"'time' cannot be read as int64",
    ),
    "broken ratings.dat": (
        MovieLens(edition="1m"),
        {"ratings.dat": "1::2::5::7\n1:2:5:7\n", "movies.dat": "2::Heat::Crime\n"},
        r"ratings\.dat, line 2: Expected 7 columns, got 4",
    ),
    "letters in a movielens id": (
        MovieLens(edition="100k"),
        {"u.data": "1\t2\t5\t7\nx\t2\t5\t7\n", "u.item": ""},
        r"u\.data, line 2: .*'x'",
    ),
    "movies without genres": (
        MovieLens(edition="10m"),
        {"ratings.dat": "1::2::5::7\n", "movies.dat": "2::Heat::Crime\n3::Ran\n"},
        r"movies\.dat, line 2: expected MovieID::Title::Genres, got 2",
    ),
    "film with too few flags": (
        MovieLens(edition="100k"),
        {"u.data": "1\t2\t5\t7\n", "u.item": "2|Heat|1995||x|0|1\n"},
        r"u\.item, line 1: expected 5 fields and 19 genre flags",
    ),
    "json cut in a line": (
        Yelp(),
        {
            "yelp_academic_dataset_review.json": REVIEW * 2 + REVIEW[:30] + "\n",
            "yelp_academic_dataset_business.json": BUSINESS,
        },
        r"review\.json, line 3: .*The line starts with '\{\"user_id\"",
    ),
    "json without a key": (
        Amazon(),
        {"reviews_Beauty_5.json": AMAZON + AMAZON.replace("asin", "item"), "meta_Beauty.json": ""},
        r"reviews_Beauty_5\.json, line 2: 'asin' is missing",
    ),
    "json of another type": (
        Amazon(),
        {"reviews_Beauty_5.json": AMAZON * 3 + AMAZON.replace('"u"', "7"), "meta_Beauty.json": ""},
        r"line 4: 'reviewerID' is 7, expected string",
    ),
    "json not UTF-8": (
        Amazon(),
        {
            "reviews_Beauty_5.json": AMAZON.encode() + AMAZON.replace('"u"', '"\xfc"').encode("latin-1"),
            "meta_Beauty.json": "",
        },
        r"reviews_Beauty_5\.json, line 2: not utf-8 text",
    ),
    "code instead of a literal": (
        Steam(),
        {"steam_reviews.json": "__import__('os').remove('x')\n", "steam_games.json": GAME},
        r"steam_reviews\.json, line 1: malformed",
    ),
    "review without a game": (
        Steam(),
        {"steam_reviews.json": "{'username': 'ann', 'date': '2017-01-01'}\n", "steam_games.json": GAME},
        r"line 1: 'product_id' is None",
    ),
    "metadata is json in the wrong edition": (
        Amazon(),
        {"reviews_Beauty_5.json": AMAZON, "meta_Beauty.json": '{"asin": "b", "title": null}\n'},
        r"meta_Beauty\.json, line 1: malformed",
    ),
    "metadata without an id": (
        Amazon(edition="2018"),
        {"Beauty_5.json": AMAZON, "meta_Beauty.json": '{"title": "Cream"}\n'},
        r"meta_Beauty\.json, line 1: not an item of the 2018 edition",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_raw_input_is_one_clear_error_and_nothing_is_written(tmp_path, case):
    converter, files, message = CASES[case]
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, content in files.items():
        (raw / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_dataset(
            converter,
            raw,
            tmp_path / "out",
            Filters(user_core=1, item_core=1),
            with_titles=_has_items(converter, case),
        )
    assert sorted(tmp_path.rglob("*")) == before


def _has_items(converter, case):
    # Csv cases about the interactions alone need no items table.
    return not (converter is PLAYS and case not in ("missing titles", "control character in a title"))


def test_a_core_that_leaves_nothing_is_an_error(tmp_path):
    (tmp_path / "plays.csv").write_text(GOOD)
    with pytest.raises(ValueError, match=r"Nothing is left after filtering .*Lower the core"):
        build_dataset(PLAYS, tmp_path, tmp_path / "out", with_titles=False)
    assert not (tmp_path / "out").exists()


def test_a_rating_threshold_without_ratings_is_an_error(tmp_path):
    (tmp_path / "plays.csv").write_text(GOOD)
    with pytest.raises(ValueError, match="min_rating=3 needs ratings, but this source has none"):
        build_dataset(PLAYS, tmp_path, tmp_path / "out", Filters(min_rating=3), with_titles=False)


def test_an_output_folder_in_use_is_refused_before_raw_files_are_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is not empty"):
        build_dataset(PLAYS, tmp_path / "nowhere", tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovieLens(edition="2m"), "movielens has no edition '2m': choose from 100k, 1m, latest-small"),
        (lambda: Amazon(category="../Beauty"), "is no category name"),
        (lambda: Csv(interactions_file="x.csv"), "pass either --timestamp-column or --position-column"),
        (lambda: Csv(interactions_file="x.csv", timestamp_column="t", position_column="p"), "not both"),
    ],
)
def test_unknown_options_are_refused_with_their_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()
