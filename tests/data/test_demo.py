"""The demo world has the structure it promises: order, taste, cold films, ties; measured on the tables alone."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.data.demo import build_demo_world, demo_tables


@pytest.fixture(scope="module")
def world():
    started = time.process_time()
    items, interactions = demo_tables(seed=0)
    seconds = time.process_time() - started
    row = {item_id: index for index, item_id in enumerate(items["item_id"].to_pylist())}
    user = interactions["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    item = np.array([row[item_id] for item_id in interactions["item_id"].to_pylist()])
    lengths = np.bincount(user)
    starts = np.cumsum(lengths) - lengths
    return SimpleNamespace(
        items=items,
        interactions=interactions,
        cpu_seconds=seconds,
        user=user,
        item=item,
        timestamp=interactions["timestamp"].to_numpy(),
        lengths=lengths,
        starts=starts,
        places_left=lengths[user] - (np.arange(len(user)) - starts[user]),  # 1 = test target, 2 = validation target
    )


def shuffled_inside_users(world, seed):
    """The items, every user's own in random order."""
    order = np.lexsort((np.random.default_rng(seed).random(len(world.item)), world.user))
    return world.item[order]


def follow_each_other(world):
    """Rows whose next row belongs to the same user."""
    return np.flatnonzero(world.user[1:] == world.user[:-1])


def hits_at_10(scores, target):
    of_target = scores[np.arange(len(target)), target][:, None]
    rank = (scores > of_target).sum(1) + 0.5 * ((scores == of_target).sum(1) - 1)
    return float((rank < 10).mean())


def test_the_same_seed_draws_the_same_world_and_another_seed_another():
    first, again, other = (demo_tables(seed=seed, num_items=200, num_users=100) for seed in (3, 3, 4))
    assert first[0].equals(again[0])
    assert first[1].equals(again[1])
    assert not first[0].equals(other[0])
    assert not first[1].equals(other[1])


def test_the_world_is_drawn_in_under_three_seconds(world):
    assert world.cpu_seconds < 3


def test_tables_have_the_promised_columns_sizes_and_types(world):
    assert {field.name: str(field.type) for field in world.items.schema} == {
        "item_id": "string",
        "title": "string",
        "year": "int64",
        "genres": "list<item: string>",
        "franchise": "string",
        "description": "string",
    }
    assert {field.name: str(field.type) for field in world.interactions.schema} == {
        "user_id": "string",
        "item_id": "string",
        "timestamp": "int64",
    }
    assert world.items.num_rows == len(set(world.items["item_id"].to_pylist())) == 1000
    assert len(world.lengths) == 3000
    assert set(world.item) == set(range(1000))


def test_sequence_lengths_are_skewed_between_5_and_80_with_a_mean_of_25(world):
    assert world.lengths.min() == 5
    assert world.lengths.max() == 80
    assert 24 < world.lengths.mean() < 26
    assert np.median(world.lengths) < world.lengths.mean() - 3


def test_nobody_watches_a_film_twice(world):
    assert len(np.unique(world.user * 1000 + world.item)) == len(world.item)


def test_timestamps_are_unix_seconds_in_order_with_some_ties(world):
    rows = follow_each_other(world)
    gaps = world.timestamp[rows + 1] - world.timestamp[rows]
    assert gaps.min() == 0
    assert 0.08 < (gaps == 0).mean() < 0.16
    years = world.timestamp.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    assert years.min() >= 2016
    assert years.max() <= 2024
    released = world.items["year"].to_numpy()[world.item]
    assert (released <= years).all()


def test_titles_are_unique_and_readable(world):
    titles = world.items["title"].to_pylist()
    assert len(set(titles)) == 1000
    assert all(re.fullmatch(r"[A-ZÀ-Ž][\w' :-]{5,70}", title) for title in titles)


def test_descriptions_are_varied_paragraphs_that_name_genre_and_series(world):
    rows = world.items.to_pylist()
    descriptions = [row["description"] for row in rows]
    assert len(set(descriptions)) == 1000
    assert all(20 < len(text.split()) < 80 and not re.search(r"[{}|]|  ", text) for text in descriptions)
    for row in rows:
        assert all(genre.lower() in row["description"] for genre in row["genres"])
        if row["title"] != row["franchise"] and row["franchise"]:
            assert f"“{row['franchise']}”" in row["description"]


def test_franchises_have_three_to_six_parts_in_order_of_release(world):
    parts = {}
    for row in world.items.to_pylist():
        if row["franchise"]:
            parts.setdefault(row["franchise"], []).append(row)
    assert len(parts) == 40
    for name, films in parts.items():
        assert 3 <= len(films) <= 6
        assert all(film["title"].startswith(name) for film in films)
        assert len({tuple(film["genres"]) for film in films}) == 1
        first = min(films, key=lambda film: film["year"])
        assert name in {film["title"] for film in films if film["year"] == first["year"]}


def test_cold_films_occur_only_as_held_out_targets(world):
    in_training = np.bincount(world.item[world.places_left > 2], minlength=1000)
    cold = in_training == 0
    assert 0.05 <= cold.mean() <= 0.08
    assert set(world.items["year"].to_numpy()[cold]) == {2024}
    assert 0.08 < cold[world.item[world.places_left == 1]].mean() < 0.2
    assert 0.03 < cold[world.item[world.places_left == 2]].mean() < 0.15


def test_sequels_follow_their_prequel_more_often_than_chance(world):
    franchise = world.items["franchise"].to_numpy(zero_copy_only=False)
    year = world.items["year"].to_numpy()
    rows = follow_each_other(world)

    def straight_on(item):
        before, after = item[rows], item[rows + 1]
        same = np.array([f is not None and f == g for f, g in zip(franchise[before], franchise[after], strict=True)])
        return (same & (year[before] < year[after])).sum()

    assert straight_on(world.item) > 10 * straight_on(shuffled_inside_users(world, 0))


def test_viewers_stay_in_a_genre_more_often_than_their_taste_alone_explains(world):
    genre = np.array([genres[0] for genres in world.items["genres"].to_pylist()])
    rows = follow_each_other(world)

    def streak(item):
        return (genre[item[rows]] == genre[item[rows + 1]]).mean()

    assert streak(world.item) > 1.25 * streak(shuffled_inside_users(world, 0))


def test_taste_is_personal_and_drifts(world):
    genres = sorted({genres[0] for genres in world.items["genres"].to_pylist()})
    genre = np.array([genres.index(names[0]) for names in world.items["genres"].to_pylist()])[world.item]
    long_users = np.flatnonzero(world.lengths >= 40)

    def profile(user, part):
        start, length = world.starts[user], world.lengths[user]
        return np.bincount(np.array_split(genre[start : start + length], 4)[part], minlength=len(genres))

    quarters = np.array([[profile(user, part) for user in long_users] for part in range(4)], dtype=float)
    quarters /= np.linalg.norm(quarters, axis=-1, keepdims=True)
    next_quarter = (quarters[0] * quarters[1]).sum(-1).mean()
    last_quarter = (quarters[0] * quarters[3]).sum(-1).mean()
    of_another_user = (quarters[0] * np.roll(quarters[1], 1, axis=0)).sum(-1).mean()
    assert next_quarter > of_another_user + 0.2
    assert next_quarter > last_quarter + 0.1


def test_popularity_has_a_long_tail_and_new_releases_are_watched_more(world):
    counts = np.sort(np.bincount(world.item, minlength=1000))
    assert 0.25 < counts[-100:].sum() / counts.sum() < 0.6
    year = world.items["year"].to_numpy()
    watched_in = world.timestamp.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    fresh = (watched_in - year[world.item] <= 1).mean()
    in_catalogue = np.mean([(when - year[year <= when] <= 1).mean() for when in watched_in[::100]])
    assert fresh > 1.7 * in_catalogue


def test_the_last_film_predicts_the_next_far_better_than_popularity_and_order_is_why(world):
    """First-order transitions, counted on the training part, rank the test target of every user."""

    def transition_table(item):
        rows = follow_each_other(world)
        rows = rows[world.places_left[rows + 1] > 2]
        table = np.zeros((1000, 1000))
        np.add.at(table, (item[rows], item[rows + 1]), 1)
        return table / (table.sum(1, keepdims=True) + 5)

    is_test = np.flatnonzero(world.places_left == 1)
    target, last = world.item[is_test], world.item[is_test - 1]
    seen = np.zeros((3000, 1000), dtype=bool)
    seen[world.user[world.places_left > 1], world.item[world.places_left > 1]] = True
    counts = np.bincount(world.item[world.places_left > 2], minlength=1000)

    def masked(scores):
        return np.where(seen, -np.inf, scores)

    popularity = hits_at_10(masked(np.tile(counts.astype(float), (3000, 1))), target)
    in_order = hits_at_10(masked(transition_table(world.item)[last] + 1e-6 * counts), target)
    # Only the training part is shuffled; the last film and the target stay where they are.
    shuffled = np.where(world.places_left > 2, shuffled_inside_users_training_part(world), world.item)
    out_of_order = hits_at_10(masked(transition_table(shuffled)[last] + 1e-6 * counts), target)
    assert in_order > 2.5 * popularity
    assert in_order > 1.6 * out_of_order


def shuffled_inside_users_training_part(world):
    held_out = np.where(world.places_left > 2, 0, 3 - world.places_left)  # held-out rows stay at the end
    order = np.lexsort((np.random.default_rng(1).random(len(world.item)), held_out, world.user))
    return world.item[order]


def test_text_ranks_cold_films_far_above_chance(world):
    """Words of the ten films before the target, weighted by rarity, against the words of every cold film."""
    texts = world.items["description"].to_pylist()
    vocabulary = {word: n for n, word in enumerate(sorted(set(re.findall(r"\w+", " ".join(texts).lower()))))}
    words = np.zeros((1000, len(vocabulary)))
    for row, text in enumerate(texts):
        words[row, [vocabulary[word] for word in re.findall(r"\w+", text.lower())]] = 1
    words *= np.log(1000 / words.sum(0))
    words /= np.linalg.norm(words, axis=1, keepdims=True)

    cold = np.bincount(world.item[world.places_left > 2], minlength=1000) == 0
    is_cold_test = np.flatnonzero((world.places_left == 1) & cold[world.item])
    similarity = np.array(
        [words[world.item[max(end - 10, world.starts[world.user[end]]) : end]].sum(0) for end in is_cold_test]
    )
    scores = similarity @ words[cold].T
    target = np.cumsum(cold)[world.item[is_cold_test]] - 1
    better = (scores > scores[np.arange(len(target)), target][:, None]).mean(1)
    assert better.mean() < 0.3  # 0.5 by chance


@pytest.mark.parametrize("size", [{"num_items": 99}, {"num_items": 5_001}, {"num_users": 19}])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match=f"`{next(iter(size))}` must be .* got {next(iter(size.values()))}"):
        demo_tables(**size)


@pytest.mark.parametrize(("num_items", "num_users"), [(100, 20), (1500, 50)])
def test_other_sizes_work_too(num_items, num_users):
    items, interactions = demo_tables(seed=1, num_items=num_items, num_users=num_users)
    assert items.num_rows == len(set(items["title"].to_pylist())) == num_items
    assert len(set(interactions["user_id"].to_pylist())) == num_users
    assert set(interactions["item_id"].to_pylist()) <= set(items["item_id"].to_pylist())


def test_a_built_world_loads_like_any_data_set_and_says_it_is_simulated(tmp_path):
    built = build_demo_world(tmp_path / "demo-world", seed=2, num_items=150, num_users=200)
    assert built.name == "demo-world (simulated)"
    assert {str(path.relative_to(tmp_path / "demo-world")) for path in tmp_path.rglob("*.*")} == {
        "README.md",
        "items/train-00000-of-00001.parquet",
        "interactions/train-00000-of-00001.parquet",
    }
    card = (tmp_path / "demo-world" / "README.md").read_text(encoding="utf-8")
    assert "# demo-world (simulated)" in card
    assert "Simulated data" in card
    assert f"Fingerprint of content and order: `{built.fingerprint}`" in card

    data = load_recommendation_data(tmp_path / "demo-world")
    items, interactions = demo_tables(seed=2, num_items=150, num_users=200)
    assert data.fingerprint == built.fingerprint
    assert data.catalogue.titles.to_pylist() == items["title"].to_pylist()
    flat = data.catalogue.to_item_ids(data.sequences.item_index).to_pylist()
    assert flat == interactions["item_id"].to_pylist()
    split = leave_one_out(data.sequences)
    assert len(split.test) == 200


def test_building_twice_into_one_folder_needs_overwrite(tmp_path):
    first = build_demo_world(tmp_path / "world", seed=0, num_items=100, num_users=20)
    with pytest.raises(FileExistsError, match="overwrite"):
        build_demo_world(tmp_path / "world", seed=1, num_items=100, num_users=20)
    assert load_recommendation_data(tmp_path / "world").fingerprint == first.fingerprint
    second = build_demo_world(tmp_path / "world", seed=1, num_items=100, num_users=20, overwrite=True)
    assert load_recommendation_data(tmp_path / "world").fingerprint == second.fingerprint != first.fingerprint


def test_a_refused_size_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ValueError, match="num_items"):
        build_demo_world(tmp_path / "world", num_items=5)
    assert list(tmp_path.iterdir()) == []
