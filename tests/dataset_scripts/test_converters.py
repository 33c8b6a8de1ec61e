"""Each converter: small raw files in the owner's true format, and the tables they become, compared whole."""

import gzip
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_seqrec.dataset_scripts.amazon import Amazon
from hf_seqrec.dataset_scripts.building import Filters, build_dataset
from hf_seqrec.dataset_scripts.kuairec import KuaiRec
from hf_seqrec.dataset_scripts.movielens import MovieLens
from hf_seqrec.dataset_scripts.steam import Steam
from hf_seqrec.dataset_scripts.table import Csv, Parquet
from hf_seqrec.dataset_scripts.yelp import Yelp


pytestmark = pytest.mark.filterwarnings("ignore::hf_seqrec.dataset_scripts.building.PublishedCountsWarning")

EVERYTHING = Filters(user_core=1, item_core=1)


def build(converter, raw_dir, **options):
    """Builds without any filter and gives back (interactions, items) as lists of tuples."""
    output = raw_dir / "built"
    build_dataset(converter, raw_dir, output, options.pop("filters", EVERYTHING), **options)
    tables = (pq.read_table(output / name / "train-00000-of-00001.parquet") for name in ("interactions", "items"))
    return tuple([tuple(row.values()) for row in table.to_pylist()] for table in tables)


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def literal_lines(*records):
    return "".join(f"{record!r}\n" for record in records)


FILMS = [
    ("1", "Amélie & Co (2001)", "Comedy|Romance"),
    ("2", "Heat: Part 2 (1995)", "Crime"),
    ("3", "Ran (1985)", None),
]
# Not in order of time, grouped by user; the two ratings at 20 are a tie.
RATINGS = [("7", "2", 4.0, 30), ("7", "1", 3.5, 20), ("7", "3", 5.0, 20), ("5", "1", 1.0, 10)]
BUILT_RATINGS = [("7", "1", 20, 3.5), ("7", "3", 20, 5.0), ("7", "2", 30, 4.0), ("5", "1", 10, 1.0)]


def test_movielens_100k_reads_tabs_and_latin1_pipes(tmp_path):
    flags = {"1": {5, 14}, "2": {6}, "3": {0}}
    items = "".join(
        "|".join([item, title, "01-Jan-1995", "", "http://x", *["01"[i in flags[item]] for i in range(19)]]) + "\n"
        for item, title, _ in FILMS
    )
    write(tmp_path / "ml-100k/u.item", items, "latin-1")
    write(tmp_path / "ml-100k/u.data", "".join(f"{u}\t{i}\t{int(r)}\t{t}\n" for u, i, r, t in RATINGS))
    interactions, films = build(MovieLens(edition="100k"), tmp_path)
    assert interactions == [(u, i, t, float(int(r))) for u, i, t, r in BUILT_RATINGS]
    assert films == [(*film, "01-Jan-1995") for film in FILMS]


@pytest.mark.parametrize(
    ("edition", "folder", "encoding"), [("1m", "ml-1m", "latin-1"), ("10m", "ml-10M100K", "utf-8")]
)
def test_movielens_dat_reads_double_colons(tmp_path, edition, folder, encoding):
    write(tmp_path / folder / "movies.dat", "".join(f"{i}::{t}::{g or ''}\n" for i, t, g in FILMS), encoding)
    write(tmp_path / folder / "ratings.dat", "".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in RATINGS))
    assert build(MovieLens(edition=edition), tmp_path) == (BUILT_RATINGS, FILMS)


def test_movielens_csv_comes_out_of_its_zip_file(tmp_path):
    movies = "".join(f'{i},"{t}",{g or "(no genres listed)"}\n' for i, t, g in FILMS)
    ratings = "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in RATINGS)
    with zipfile.ZipFile(tmp_path / "ml-latest-small.zip", "w") as archive:
        archive.writestr("ml-latest-small/movies.csv", "movieId,title,genres\n" + movies)
        archive.writestr("ml-latest-small/ratings.csv", "userId,movieId,rating,timestamp\n" + ratings)
        archive.writestr("ml-latest-small/tags.csv", "not needed")
    assert build(MovieLens(edition="latest-small"), tmp_path) == (BUILT_RATINGS, FILMS)
    assert not list(tmp_path.rglob("tags.csv"))


REVIEWS = [("A1", "B2", 4.0, 1_400_000_000), ("A1", "B1", 5.0, 1_300_000_000), ("A2", "B1", 2.0, 1_400_000_000)]
BUILT_REVIEWS = [
    (REVIEWS[1][0], "B1", 1_300_000_000, 5.0),
    ("A1", "B2", 1_400_000_000, 4.0),
    ("A2", "B1", 1_400_000_000, 2.0),
]


def amazon_reviews():
    return lines(
        *(
            {
                "reviewerID": u,
                "asin": i,
                "helpful": [0, 1],
                "reviewText": "x\u2028y",
                "overall": r,
                "unixReviewTime": t,
            }
            for u, i, r, t in REVIEWS
        )
    )


def test_amazon_2014_reads_reviews_and_python_literal_metadata(tmp_path):
    write(tmp_path / "reviews_Beauty_5.json.gz", amazon_reviews())
    meta = literal_lines(
        {"asin": "B9", "title": "Nobody's"},
        {
            "asin": "B2",
            "title": "Ann's &amp; Bob's\tcream",
            "categories": [["Beauty", "Skin"], ["Beauty"]],
            "brand": "Ann",
        },
    )
    write(tmp_path / "meta_Beauty.json.gz", meta)
    interactions, items = build(Amazon(edition="2014", category="Beauty"), tmp_path)
    assert interactions == BUILT_REVIEWS
    # B1 has reviews but no metadata; B9 has metadata but no reviews.
    assert items == [("B2", "Ann's & Bob's cream", None, "Beauty|Skin", "Ann"), ("B1", None, None, None, None)]


@pytest.mark.parametrize(("edition", "file"), [("2014", "ratings_Beauty.csv"), ("2018", "Beauty.csv")])
def test_amazon_ratings_know_the_column_order_of_their_edition(tmp_path, edition, file):
    pairs = (f"{u},{i}" if edition == "2014" else f"{i},{u}" for u, i, *_ in REVIEWS)
    rows = (f"{pair},{r},{t}\n" for pair, (*_, r, t) in zip(pairs, REVIEWS, strict=True))
    write(tmp_path / file, "".join(rows))
    converter = Amazon(edition=edition, source="ratings")
    interactions, items = build(converter, tmp_path, with_titles=False)
    assert (interactions, items) == (BUILT_REVIEWS, [("B1", None), ("B2", None)])


def test_amazon_2018_reads_json_metadata_with_repeated_items(tmp_path):
    write(tmp_path / "Beauty_5.json.gz", amazon_reviews())
    first = {"asin": "B1", "title": "Cream", "category": ["Beauty"], "description": ["Rich.", "Soft."], "brand": ""}
    write(tmp_path / "meta_Beauty.json.gz", lines(first, {**first, "title": "Second row"}, {"asin": "B2"}))
    interactions, items = build(Amazon(edition="2018"), tmp_path)
    assert interactions == BUILT_REVIEWS
    assert items == [("B1", "Cream", "Rich. Soft.", "Beauty", None), ("B2", None, None, None, None)]


def test_amazon_2023_joins_the_three_parts_and_turns_milliseconds_into_seconds(tmp_path):
    folder = tmp_path / "benchmark/5core/last_out"
    header = "user_id,parent_asin,rating,timestamp\n"
    for part, rows in {
        "train": [("A1", "B1", 5.0, 1_300_000_000_999)],
        "valid": [("A1", "B2", 4.0, 1_400_000_000_000)],
        "test": [("A2", "B1", 2.0, 1_400_000_000_001)],
    }.items():
        write(folder / f"Video_Games.{part}.csv", header + "".join(",".join(map(str, row)) + "\n" for row in rows))
    meta = {"parent_asin": "B1", "title": "Game", "description": ["One."], "categories": ["Toys"], "store": "Shop"}
    write(
        tmp_path / "raw/meta_categories/meta_Video_Games.jsonl",
        lines(meta, {**meta, "parent_asin": "B2", "title": None}),
    )
    converter = Amazon(edition="2023", category="Video_Games")
    interactions, items = build(converter, tmp_path)
    assert interactions == BUILT_REVIEWS
    assert items == [("B1", "Game", "One.", "Toys", "Shop"), ("B2", None, "One.", "Toys", "Shop")]


def test_amazon_2023_reads_raw_reviews(tmp_path):
    rows = (
        {"user_id": u, "asin": "X", "parent_asin": i, "rating": r, "timestamp": t * 1000} for u, i, r, t in REVIEWS
    )
    write(tmp_path / "All_Beauty.jsonl", lines(*rows))
    converter = Amazon(edition="2023", category="All_Beauty", source="reviews")
    assert build(converter, tmp_path, with_titles=False)[0] == BUILT_REVIEWS


def test_steam_reads_python_literals_with_every_kind_of_quote(tmp_path):
    reviews = (
        "{u'username': u'O\\'Neil \"x\"', u'hours': 0.1, u'product_id': u'70', u'date': u'2017-12-17', u'text': u\"it's\"}\n"
        "{u'found_funny': 2, u'username': u'Zo\\xeb', u'product_id': u'80', u'date': u'1970-01-02', u'early_access': False}\n"
    )
    games = (
        "{u'publisher': u'V', u'genres': [u'Action', u'Indie'], u'app_name': u'Half', u'title': u'Half-Life', u'id': u'70', "
        "u'tags': [u'FPS'], u'developer': u'Valve', u'release_date': u'1998-11-08'}\n"
        "{u'app_name': u'Only a name', u'id': u'80'}\n{u'app_name': u'No id'}\n"
    )
    write(tmp_path / "steam_reviews.json.gz", reviews)
    write(tmp_path / "steam_games.json.gz", games)
    interactions, items = build(Steam(), tmp_path)
    assert interactions == [('O\'Neil "x"', "70", 1_513_468_800), ("Zoë", "80", 86_400)]
    assert items == [
        ("70", "Half-Life", "Action|Indie", "FPS", "Valve", "1998-11-08"),
        ("80", "Only a name", None, None, None, None),
    ]


def test_yelp_comes_out_of_its_tar_file(tmp_path):
    review = {"review_id": "r", "user_id": "u1", "business_id": "b1", "stars": 4.0, "date": "2018-07-07 22:09:11"}
    business = {
        "business_id": "b1",
        "name": "Caf\u00e9",
        "city": "Tampa",
        "state": "FL",
        "categories": "Food, Coffee & Tea",
    }
    sources = tmp_path / "sources"
    write(sources / "yelp_academic_dataset_review.json", lines(review))
    write(sources / "yelp_academic_dataset_business.json", lines(business))
    with tarfile.open(tmp_path / "yelp_dataset.tar", "w") as archive:
        for file in sources.iterdir():
            archive.add(file, arcname=file.name)
    interactions, items = build(Yelp(), tmp_path)
    assert interactions == [("u1", "b1", 1_531_001_351, 4.0)]
    assert items == [("b1", "Café", "Food|Coffee & Tea", "Tampa", "FL")]


KUAIREC_HEADER = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
CAPTIONS_HEADER = (
    "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,"
    "second_level_category_id,second_level_category_name,third_level_category_id,third_level_category_name\n"
)


def write_kuairec(folder):
    views = "0,148,4381,6067,2020-07-05 05:27:48.378,20200705,1593898068.378,0.722\n0,149,20000,6067,,20200705,1593898090.9,3.25\n"
    write(folder / "KuaiRec 2.0/data/big_matrix.csv", KUAIREC_HEADER + views)
    captions = '148,UNKNOWN,"一天, 一夜",[],1,美食,2,UNKNOWN,3,UNKNOWN\n149,封面,broken\n caption,[],1,a,2,b,3,c\n'
    write(folder / "KuaiRec 2.0/data/kuairec_caption_category.csv", CAPTIONS_HEADER + captions)


def test_kuairec_reads_views_and_leaves_torn_captions_out(tmp_path):
    write_kuairec(tmp_path)
    interactions, items = build(KuaiRec(), tmp_path)
    assert [row[:3] for row in interactions] == [("0", "148", 1593898068), ("0", "149", 1593898090)]
    assert [row[3] for row in interactions] == pytest.approx([0.722, 3.25])
    assert items == [("148", "一天, 一夜", None, "美食"), ("149", None, None, None)]


def test_kuairec_keeps_only_views_above_the_watch_ratio(tmp_path):
    write_kuairec(tmp_path)
    interactions, _ = build(KuaiRec(min_watch_ratio=2.0), tmp_path)
    assert interactions == [("0", "149", 1593898090, 3.25)]
    assert "watch ratio of at least 2 are kept" in (tmp_path / "built/README.md").read_text()


PLAYS = [("ann", "007", 3_999, 2.0), ("ann", "x", 1_000, 5.0)]


def test_csv_takes_columns_by_name_and_keeps_ids_as_text(tmp_path):
    # With a byte order mark, as spreadsheets write it, and a text over two lines.
    rows = "".join(f"{r};{t};{i};{u}\n" for u, i, t, r in PLAYS)
    write(tmp_path / "plays.csv", "stars;when;what;who\n" + rows, "utf-8-sig")
    write(tmp_path / "songs.csv", 'song;name;mood\n007;"Gold; finger";\nx;;"calm,\nslow"\n')
    converter = Csv(
        interactions_file="plays.csv",
        user_column="who",
        item_column="what",
        timestamp_column="when",
        timestamp_unit="ms",
        rating_column="stars",
        items_file="songs.csv",
        items_id_column="song",
        title_column="name",
        text_columns="mood",
        delimiter=";",
    )
    interactions, items = build(converter, tmp_path)
    assert interactions == [("ann", "x", 1, 5.0), ("ann", "007", 3, 2.0)]
    assert items == [("007", "Gold; finger", None), ("x", None, "calm,\nslow")]


def test_csv_reads_text_times_and_gzip(tmp_path):
    write(tmp_path / "plays.csv.gz", "user_id,item_id,when\nann,a,2020-01-02 00:00:01\n")
    converter = Csv(interactions_file="plays.csv.gz", timestamp_column="when", timestamp_unit="text")
    assert build(converter, tmp_path)[0] == [("ann", "a", 1_577_923_201)]


@pytest.mark.parametrize("ids", [pa.int64(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_takes_any_type_of_id_and_positions(tmp_path, ids):
    table = pa.table(
        {
            "user_id": pa.array(["1", "1"]).cast(pa.int64()).cast(ids)
            if ids == pa.int64()
            else pa.array(["1", "1"]).cast(ids),
            "item_id": ["b", "a"],
            "rank": pa.array([1, 0], pa.int32()),
        }
    )
    pq.write_table(table, tmp_path / "plays.parquet")
    converter = Parquet(interactions_file="plays.parquet", position_column="rank")
    assert build(converter, tmp_path)[0] == [("1", "a", 0), ("1", "b", 1)]


def test_items_nobody_met_stay_only_when_asked_for(tmp_path):
    write(tmp_path / "plays.csv", "user_id,item_id,when\nann,a,5\n")
    write(tmp_path / "songs.csv", "item_id,title\ncold,Cold\na,Alpha\n")
    converter = Csv(interactions_file="plays.csv", timestamp_column="when", items_file="songs.csv")
    assert build(converter, tmp_path)[1] == [("a", "Alpha")]
    assert build(converter, tmp_path, all_items=True, overwrite=True)[1] == [("cold", "Cold"), ("a", "Alpha")]
