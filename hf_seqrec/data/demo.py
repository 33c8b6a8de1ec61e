"""The demo world: simulated films and viewers, for a first run without any download.

The world is drawn from a seed. Nobody in it exists and no film in it was made; what it shares with real data is the
structure that a sequential recommender lives from:

* **taste**: every user mixes a few genres and moods, and drifts slowly from one mixture to another;
* **order**: sequels follow their prequel, viewers stay in a genre for a while, move on along a fixed cycle of genres, and
  walk through a director's films in the order of release. A shuffled history loses this;
* **popularity**: a long tail, new releases are watched more, and nothing is watched before its release;
* **cold films**: the newest releases occur only as the last or second-last film of a user, so a model trained on the
  training part of leave-one-out has never seen them and only their text can rank them;
* **time stamps** in Unix seconds, with ties, because people do enter several films at once.

Descriptions are written by a small grammar from the facts that drive behaviour (genre, mood, setting, director, series),
so that text tells something about taste.
"""

import os
import random
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa

from .layout import DatasetDescription, write_dataset
from .recommendation_data import RecommendationData


NAME = "demo-world (simulated)"
MIN_ITEMS, MAX_ITEMS, MIN_USERS = 100, 5_000, 20  # a table films × films is held while drawing

_COLD_SHARE = 0.065  # of all films
_FRANCHISES_PER_FILM = 0.04
_SEQUEL_PROBABILITY = 0.6  # that a viewer goes straight on to the next part
_COLD_APPEAL = 2.2  # popularity of a cold film at the last position; the mean film has 1.4
_TIE_PROBABILITY = 0.12  # that two films of a user carry the same second
_MIN_LENGTH, _MAX_LENGTH, _MEAN_LENGTH = 5, 80, 25
_FIRST_DAY, _LAST_DAY = date(2016, 1, 1).toordinal(), date(2024, 12, 31).toordinal()
_COLD_FROM_DAY, _COLD_UNTIL_DAY = date(2024, 7, 1).toordinal(), date(2024, 10, 15).toordinal()
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_USERS_AT_ONCE = 256  # rows of the weight matrix held at once: small enough to stay in cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


# The order of genres is also the cycle along which viewers move on: after a comedy, rather a romance than a war film.
# Per genre: adjectives and nouns of titles, what the hero is, what the hero wants.
_GENRES: dict[str, tuple[str, str, str, str]] = {
    "Comedy": (
        "Accidental Borrowed Reluctant Second-Hand Unlikely Terrible Overbooked Cheerful Misplaced Perfect "
        "Clumsy Lazy",
        "Wedding Landlord Holiday Neighbour Reunion Butler Babysitter Diet Audition Roommate Cousin Vacation "
        "Picnic Parade",
        "a failed magician|an overworked wedding planner|a hopeless substitute teacher|a retired clown|a lazy heir",
        "keep a ridiculous lie alive for one weekend|win back a runaway parrot|"
        "host a party nobody was supposed to attend|"
        "pass off an amateur choir as world champions|survive a family reunion",
    ),
    "Romance": (
        "Unsent Tender Last Summer Velvet Distant Secret Golden Faithful Wistful Unspoken Gentle",
        "Letter Kiss Promise Heart Waltz Bouquet Sweetheart Embrace Valentine Proposal Serenade Honeymoon "
        "Longing Rendezvous",
        "a shy bookseller|a widowed baker|a travelling pianist|a homesick translator|an unlucky matchmaker",
        "find the stranger behind a love letter|choose between an old flame and a new start|"
        "keep a promise made ten summers ago|"
        "say the words left unsaid at the altar|win the heart of a rival",
    ),
    "Drama": (
        "Quiet Broken Empty Ordinary Inherited Patient Fading Honest Winter Unfinished Heavy Silent",
        "House Father Daughter Inheritance Harvest Silence Kitchen Testament Orchard Portrait Confession "
        "Funeral Farewell Absence",
        "a grieving schoolteacher|an estranged daughter|an ageing boxer|a country doctor|a single father",
        "forgive a brother after twenty years|save the family farm|raise a child who is not theirs|"
        "tell the truth about an old accident|learn to live after a loss",
    ),
    "War": (
        "Forgotten Fallen Iron Frozen Distant Muddy Burning Captured Wounded Final Grey Loyal",
        "Battalion Trench Armistice Convoy Regiment Outpost Siege Bridgehead Medal Soldier Retreat Barricade "
        "Frontline Offensive",
        "a field medic|a young lieutenant|a deserter|a signals officer|a battle-weary sergeant",
        "hold a bridge until dawn|bring a lost platoon home|carry an order through enemy lines|"
        "evacuate a besieged hospital|bury the dead of both armies",
    ),
    "Western": (
        "Dusty Lonesome Crooked Scarlet Bitter Nameless Sunburnt Outlawed Restless Copper Thirsty Vengeful",
        "Saddle Sheriff Canyon Stagecoach Gunslinger Ranch Prairie Outlaw Revolver Cattle Mesa Homestead "
        "Showdown Rustler",
        "an ageing sheriff|a nameless gunslinger|a stubborn rancher|a bounty hunter|a stagecoach driver",
        "defend a homestead from cattle barons|bring an outlaw to trial alive|cross the desert with a stolen herd|"
        "settle one last score at high noon|find water before the town dies",
    ),
    "Action": (
        "Lethal Rogue Maximum Burning Relentless Armoured Explosive Rapid Steel Hard Reckless Unstoppable",
        "Pursuit Strike Vendetta Impact Target Bullet Countdown Hijack Firestorm Fugitive Collision Getaway "
        "Mercenary Overdrive",
        "a former commando|a disgraced bodyguard|an undercover driver|a bomb-disposal expert|a reluctant mercenary",
        "stop a hijacked train|rescue a kidnapped ambassador|outrun an army of assassins|"
        "defuse a chain of bombs before midnight|clear a stolen name with bare fists",
    ),
    "Science Fiction": (
        "Orbital Quantum Synthetic Last Silent Infinite Cryogenic Solar Binary Stellar Artificial Parallel",
        "Signal Colony Android Horizon Protocol Starship Satellite Paradox Nebula Transmission Singularity "
        "Reactor Clone Gravity",
        "a stranded astronaut|a rogue android|a xenobiologist|a starship engineer|a time-loop physicist",
        "answer a signal from a dead star|shut down an awakened machine mind|"
        "repair a colony ship before the air runs out|"
        "undo a paradox of their own making|prove that a clone is human",
    ),
    "Fantasy": (
        "Enchanted Hollow Silver Ancient Whispering Thorned Moonlit Cursed Forgotten Elder Wandering Gilded",
        "Crown Dragon Sorcerer Oracle Amulet Kingdom Spell Unicorn Throne Witch Prophecy Sword Griffin Grimoire",
        "an apprentice sorcerer|an exiled princess|a dragon keeper|a village witch|a knight without a king",
        "break an ancient curse|carry a crown to the end of the world|wake the last dragon|"
        "close a gate between worlds|unmask a false prophet of magic",
    ),
    "Adventure": (
        "Lost Uncharted Hidden Daring Sunken Wild Emerald Farthest Endless Fearless Northern Buried",
        "Expedition Treasure Compass Voyage Island Jungle Map Ruins Safari Lagoon Caravan Idol Summit Castaway",
        "a reckless cartographer|a treasure diver|a mountain guide|a runaway cabin boy|an amateur archaeologist",
        "find a sunken galleon|cross an uncharted jungle|return a stolen idol to its temple|"
        "reach a summit nobody has come down from|follow half a map to buried treasure",
    ),
    "Mystery": (
        "Missing Locked Seventh Anonymous Vanishing Curious Unsolved Hidden Midnight Double Cryptic Absent",
        "Witness Alibi Key Riddle Guest Cipher Detective Manuscript Clue Disappearance Photograph Heirloom "
        "Passenger Portrait",
        "a retired detective|a crossword editor|a curious archivist|a blind clockmaker|an insurance investigator",
        "explain a murder in a locked room|find a guest who never checked out|decode the diary of a missing heiress|"
        "learn who sends the anonymous photographs|tell the twin from the impostor",
    ),
    "Crime": (
        "Dirty Crooked Rainy Unmarked Counterfeit Guilty Cold Offshore Stolen Backroom Merciless Narrow",
        "Heist Alley Informant Syndicate Ransom Verdict Forger Debt Kingpin Robbery Wiretap Smuggler Racket Vault",
        "a getaway driver|a weary police inspector|a small-time forger|an ambitious mob lawyer|"
        "a safecracker on parole",
        "rob a casino vault|bring down a crime syndicate from inside|pay off a debt to the wrong people|"
        "hide a witness from corrupt police|pull off one last heist",
    ),
    "Horror": (
        "Crawling Bleeding Haunted Rotten Pale Faceless Hungry Buried Screaming Unholy Sleepless Hollow",
        "Cellar Asylum Scarecrow Séance Corpse Doll Crypt Possession Graveyard Coven Mirror Attic Nightmare Exorcism",
        "a night nurse|a sceptical exorcist|a haunted babysitter|a gravedigger|an insomniac priest",
        "survive one night in a haunted asylum|bury what will not stay dead|silence a voice behind the wall|"
        "save a child from a demon|burn the doll that keeps coming back",
    ),
}
# mood -> adjectives for the opening sentence | how the closing sentence puts it
_MOODS: dict[str, tuple[str, str]] = {
    "dark": ("bleak|dark|grim", "leaves no light on at the end|stares into the dark and does not blink"),
    "heart-warming": ("heart-warming|warm|tender", "ends with a smile and a hug|is a warm blanket of a film"),
    "tense": (
        "tense|nerve-racking|breathless",
        "tightens the screw until the last minute|keeps you on the edge of the seat",
    ),
    "witty": ("witty|sharp-tongued|playful", "lives from quick, clever dialogue|is full of wit and wordplay"),
    "melancholic": ("melancholic|wistful|bittersweet", "lingers like an old sad song|aches with nostalgia"),
    "epic": ("epic|sweeping|monumental", "has thousands of extras and a thundering score|is told on a grand scale"),
    "dreamlike": ("dreamlike|surreal|hypnotic", "drifts like a strange dream|follows the logic of a fever dream"),
    "gritty": ("gritty|raw|unvarnished", "smells of sweat and asphalt|is shot by hand, rough and honest"),
}
_SETTINGS = _phrases(
    "a rain-soaked harbour city|a remote mountain village|the catacombs of Paris|a floating market in Bangkok|"
    "the frozen coast of Greenland|a crumbling palace in Venice|the salt flats of Bolivia|a sleepy seaside town|"
    "the back streets of Naples|an abandoned mining town|the night trains of Siberia|a lighthouse off Brittany|"
    "the rooftops of Istanbul|a boarding school in the moors|the suburbs of Osaka|a carnival on the road|"
    "the vineyards of Portugal|a fishing village without a road|the deserts of Namibia|a grand hotel in the Alps"
)
_PLACES = _words(
    "Ashgrove Bellmoor Calder Dunmere Eastwick Farrow Glasswater Hollowmere Ironbridge Juniper Kestrel "
    "Larkhill Marrow "
    "Northgate Oakhaven Pinecrest Quarry Ravenhill Saltmarsh Thornfield Umber Valehaven Westerly Yarrow Zephyr"
)
_FIRST_NAMES = _words(
    "Ada Bruno Clara Dmitri Elena Felix Greta Hugo Ines Jonas Kira Leon Mira Nadia Oskar Petra Quentin "
    "Rosa Samir Tess "
    "Ulla Viktor Wanda Xenia Yusuf Zora Amara Björn Chidi Daria Emeka Farah Gustav Hana Ivo Juno Kaito "
    "Lucia Mateo Noor"
)
_LAST_NAMES = _words(
    "Abara Bergström Castellan Duval Eriksen Falk Garrow Hollis Ivanova Jarre Kowalczyk Lindqvist "
    "Marchetti Nakagawa Okafor "
    "Pemberton Quist Rademaker Sorensen Tanaka Ullman Varga Whitlock Xanthos Yilmaz Zeller Achebe Brandt "
    "Corvin Delacroix"
)
_SUBTITLES = _phrases(
    "The Return|The Long Night|Reckoning|Homecoming|Into the Fire|The Lost Chapter|Afterglow|Bloodlines|No Way Back|"
    "The Beginning|Legacy|Last Light|The Other Side|Aftermath|Rising Tide|The Final Hour"
)
_TITLE_FORMS = _phrases(
    "The {adjective} {noun}|{adjective} {noun}|{noun} of {place}|The {noun} at {place}|{name}'s {noun}|"
    "The {adjective} {noun} of {place}|{name} and the {noun}|A {noun} for {name}|{noun} and {noun2}|"
    "The {noun} Before the {noun2}"
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII")

_GENRE_NAMES, _MOOD_NAMES = tuple(_GENRES), tuple(_MOODS)


@dataclass(frozen=True)
class _Films:
    """The facts behind every film, one entry per film; -1 = none."""

    genre: np.ndarray
    second_genre: np.ndarray
    mood: np.ndarray
    setting: np.ndarray
    director: np.ndarray
    franchise: np.ndarray
    part: np.ndarray  # 0 = first part
    sequel: np.ndarray  # index of the next part
    prequel: np.ndarray
    release_day: np.ndarray  # proleptic ordinal
    popularity: np.ndarray
    cold: np.ndarray  # bool


def build_demo_world(
    output_dir: str | os.PathLike,
    seed: int = 0,
    num_items: int = 1000,
    num_users: int = 3000,
    overwrite: bool = False,
) -> RecommendationData:
    """Draw the demo world and write it in the layout of any other data set, with a card that says it is simulated.

    Args:
        output_dir: Folder to write; missing or empty, unless `overwrite`.
        seed: Same seed, same world.
        num_items: Films in the catalogue, 100 to 5,000.
        num_users: Viewers, at least 20.
        overwrite: Whether a folder that holds something is replaced.

    Returns:
        The data as written, named "demo-world (simulated)".

    Raises:
        FileExistsError: If `output_dir` holds something and `overwrite` is off.
        ValueError: If a size is out of range.

    Example:
        >>> import pathlib, tempfile
        >>> from hf_seqrec.data.demo import build_demo_world
        >>> data = build_demo_world(pathlib.Path(tempfile.mkdtemp()) / "demo-world", num_items=100, num_users=50)
        >>> data.name, data.catalogue.num_items, len(data.sequences)
        ('demo-world (simulated)', 100, 50)
    """
    items, interactions = demo_tables(seed, num_items, num_users)
    card = DatasetDescription(
        title=NAME,
        summary=(
            "A small world of films and viewers that do not exist, to try sequential recommenders without a download. Tastes "
            "are personal and drift, sequels follow their prequel, genres come in streaks, new releases are watched more."
        ),
        source="Drawn by `hf_seqrec.data.demo`. Numbers measured on it say nothing about real viewers.",
        license="apache-2.0",
        language="en",
        notes=(
            f"`build_demo_world(output_dir, seed={seed}, num_items={num_items}, num_users={num_users})`",
            f"The newest films ({_COLD_SHARE:.1%} of the catalogue) occur only as the last or second-last film of a user: "
            "after leave-one-out they are not in the training part, and only their text can rank them.",
        ),
        simulated=True,
        tags=("demo",),
    )
    return write_dataset(output_dir, items, interactions, card, overwrite=overwrite)


def demo_tables(seed: int = 0, num_items: int = 1000, num_users: int = 3000) -> tuple[pa.Table, pa.Table]:
    """Draw the demo world as two tables. All of it is simulated.

    Args:
        seed: Same seed, same tables.
        num_items: Films in the catalogue, 100 to 5,000.
        num_users: Viewers, at least 20. Each has watched 5 to 80 different films, 25 in the mean; at most a quarter of
            a small catalogue.

    Returns:
        `items` with `item_id`, `title` (unique), `year` (int64), `genres` (list of strings, main genre first),
        `franchise` (null for most films), `description`; and `interactions` with `user_id`, `item_id`, `timestamp`
        (int64 Unix seconds), user after user, each in viewing order.

    Raises:
        ValueError: If a size is out of range.

    Example:
        >>> from hf_seqrec.data.demo import demo_tables
        >>> items, interactions = demo_tables(seed=0, num_items=100, num_users=20)
        >>> items.column_names
        ['item_id', 'title', 'year', 'genres', 'franchise', 'description']
    """
    if not MIN_ITEMS <= num_items <= MAX_ITEMS:
        raise ValueError(f"`num_items` must be in {MIN_ITEMS}..{MAX_ITEMS}, got {num_items}.")
    if num_users < MIN_USERS:
        raise ValueError(f"`num_users` must be at least {MIN_USERS}, got {num_users}.")

    generator = np.random.default_rng(seed)
    words = random.Random(seed)
    films = _draw_films(generator, num_items)
    titles, franchise_names = _write_titles(words, films)
    descriptions = _write_descriptions(words, films, franchise_names)
    user, film, seconds = _draw_interactions(generator, films, num_users)

    genres = [
        [_GENRE_NAMES[first]] + ([_GENRE_NAMES[second]] if second >= 0 else [])
        for first, second in zip(films.genre, films.second_genre, strict=True)
    ]
    # Films were drawn franchise by franchise: ids and rows are mixed so that neither tells what a film is.
    number = generator.permutation(num_items)
    item_ids = np.array([f"film-{n + 1:0{len(str(num_items))}d}" for n in number])
    user_ids = np.array([f"user-{n + 1:0{len(str(num_users))}d}" for n in range(num_users)])
    items = pa.table(
        {
            "item_id": pa.array(item_ids.tolist(), pa.string()),
            "title": pa.array(titles, pa.string()),
            "year": pa.array([date.fromordinal(int(day)).year for day in films.release_day], pa.int64()),
            "genres": pa.array(genres, pa.list_(pa.string())),
            "franchise": pa.array([franchise_names[f] if f >= 0 else None for f in films.franchise], pa.string()),
            "description": pa.array(descriptions, pa.string()),
        }
    ).take(pa.array(np.argsort(number)))
    interactions = pa.table(
        {
            "user_id": pa.array(user_ids, pa.string()).take(pa.array(user)),
            "item_id": pa.array(item_ids, pa.string()).take(pa.array(film)),
            "timestamp": pa.array(seconds, pa.int64()),
        }
    )
    return items, interactions


def _draw_films(generator: np.random.Generator, num_items: int) -> _Films:
    """Facts of all films: franchises first, part after part, then the films that stand alone."""
    num_cold = round(_COLD_SHARE * num_items)
    num_franchises = round(_FRANCHISES_PER_FILM * num_items)
    sizes = generator.integers(3, 7, num_franchises)
    franchise = np.full(num_items, -1)
    part = np.zeros(num_items, dtype=np.int64)
    franchise[: sizes.sum()] = np.repeat(np.arange(num_franchises), sizes)
    part[: sizes.sum()] = np.concatenate([np.arange(size) for size in sizes])
    film = np.arange(num_items)
    is_sequel = part > 0
    prequel = np.where(is_sequel, film - 1, -1)
    sequel = np.where(np.append(is_sequel[1:], False), film + 1, -1)

    # Every fourth franchise has its newest part among the cold films; the other cold films stand alone.
    newest_part = np.cumsum(sizes) - 1
    cold = np.zeros(num_items, dtype=bool)
    cold[newest_part[::4]] = True
    cold[sizes.sum() : sizes.sum() + num_cold - cold.sum()] = True

    age = 365 * 50 * generator.beta(0.9, 2.2, num_items)
    release = (_COLD_FROM_DAY - 1 - age).astype(np.int64)
    release[cold] = generator.integers(_COLD_FROM_DAY, _COLD_UNTIL_DAY, cold.sum())
    years_between = generator.integers(500, 1400, num_items)
    for last, size in zip(newest_part, sizes, strict=True):
        for index in range(last - 1, last - size, -1):
            release[index] = release[index + 1] - years_between[index]

    # A director has a home genre and mood; a standalone film takes its director's more often than not.
    num_directors = max(12, num_items // 14)
    share = generator.dirichlet(np.full(len(_GENRES), 8.0))
    home_genre = generator.choice(len(_GENRES), num_directors, p=share)
    home_mood = generator.integers(0, len(_MOODS), num_directors)
    director = generator.integers(0, num_directors, num_items)
    at_home = generator.random(num_items)
    genre = np.where(at_home < 0.75, home_genre[director], generator.choice(len(_GENRES), num_items, p=share))
    mood = np.where(at_home < 0.60, home_mood[director], generator.integers(0, len(_MOODS), num_items))
    setting = generator.integers(0, len(_SETTINGS), num_items)
    second_genre = (genre + generator.integers(1, len(_GENRES), num_items)) % len(_GENRES)
    second_genre[generator.random(num_items) < 0.45] = -1
    popularity = np.maximum(generator.lognormal(0.0, 0.9, num_items), 0.3)
    # All parts of a franchise share the facts of the first; later parts draw slightly fewer viewers.
    first_part = film - part
    for fact in (director, genre, mood, setting, second_genre):
        fact[:] = fact[first_part]
    popularity = np.where(franchise >= 0, 1.2 * popularity[first_part] * 0.85**part, popularity)
    return _Films(
        genre, second_genre, mood, setting, director, franchise, part, sequel, prequel, release, popularity, cold
    )


def _write_titles(words: random.Random, films: _Films) -> tuple[list[str], list[str]]:
    """A unique title for every film, and the name of every franchise."""
    taken: set[str] = set()
    titles: list[str] = []
    franchise_names: list[str] = []
    style = 0
    for genre, franchise, part in zip(films.genre, films.franchise, films.part, strict=True):
        if part > 0:
            name, subtitle = franchise_names[franchise], words.choice(_SUBTITLES)
            while f"{name}: {subtitle}" in taken:
                subtitle = words.choice(_SUBTITLES)
            taken.add(f"{name}: {subtitle}")  # no subtitle twice in a franchise, whatever its style
            forms = (f"{name} {part + 1}", f"{name}: {subtitle}", f"{name} {_ROMAN[part]}: {subtitle}")
            titles.append(forms[style])
            continue
        adjectives, nouns = (_words(_GENRES[_GENRE_NAMES[genre]][i]) for i in (0, 1))
        title = ""
        while not title or title in taken:
            noun, noun2 = words.sample(nouns, 2)
            title = words.choice(_TITLE_FORMS).format(
                adjective=words.choice(adjectives),
                noun=noun,
                noun2=noun2,
                place=words.choice(_PLACES),
                name=words.choice(_FIRST_NAMES),
            )
        taken.add(title)
        titles.append(title)
        if franchise >= 0:
            franchise_names.append(title)
            style = words.randrange(3)
    return titles, franchise_names


def _write_descriptions(words: random.Random, films: _Films, franchise_names: list[str]) -> list[str]:
    """One paragraph per film: genre, mood, setting, hero, quest, director, in varied sentences."""

    def pick(phrases: str) -> str:
        return words.choice(_phrases(phrases))

    full_names = [f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES]
    words.shuffle(full_names)
    num_directors = int(films.director.max()) + 1
    director_names = [full_names[i % len(full_names)] for i in range(num_directors)]
    hero, role = "", ""
    texts = []
    for i in range(len(films.genre)):
        genre = _GENRE_NAMES[films.genre[i]].lower()
        mood, closing = _MOODS[_MOOD_NAMES[films.mood[i]]]
        roles, goals = _GENRES[_GENRE_NAMES[films.genre[i]]][2:]
        if films.part[i] == 0:  # the hero stays through a franchise
            hero, role = f"{words.choice(_FIRST_NAMES)} {words.choice(_LAST_NAMES)}", pick(roles)
        setting, adjective = _SETTINGS[films.setting[i]], pick(mood)
        article = "An" if adjective[0] in "aeiou" else "A"
        facts = {
            "genre": genre,
            "adjective": adjective,
            "article": article,
            "setting": setting,
            "hero": hero,
            "role": role,
            "goal": pick(goals),
            "closing": pick(closing),
            "director": director_names[films.director[i]],
            "second": _GENRE_NAMES[films.second_genre[i]].lower() if films.second_genre[i] >= 0 else "",
        }
        opening = pick(
            "{article} {adjective} {genre} film set in {setting}.|{article} {adjective} {genre} story from {setting}.|"
            "Against the backdrop of {setting}, {director} stages {article_lower} {adjective} {genre} film."
        )
        quest = pick(
            "{hero}, {role}, has to {goal}.|It follows {hero}, {role} who must {goal}.|"
            "When everything goes wrong, {role} named {hero} sets out to {goal}."
        )
        closings = (
            "Directed by {director}, it {closing}.|The film by {director} {closing}.|{director}'s film {closing}."
        )
        sentences = [opening, quest, "It {closing}." if "{director}" in opening else pick(closings)]
        if films.second_genre[i] >= 0:
            sentences.insert(
                2, pick("There is more than a touch of {second} in it.|Admirers of {second} will enjoy it too.")
            )
        if films.franchise[i] >= 0 and films.part[i] > 0:
            which = _ORDINALS[films.part[i]]
            sentences.insert(0, f"The {which} part of the series “{franchise_names[films.franchise[i]]}”.")
        texts.append(" ".join(sentences).format(article_lower=article.lower(), **facts))
    return texts


def _transition_weights(films: _Films) -> np.ndarray:
    """How much likelier film j becomes right after film i: (films, films); asymmetric, so order matters."""
    same_genre = films.genre[:, None] == films.genre[None, :]
    next_genre = (films.genre[:, None] + 1) % len(_GENRES) == films.genre[None, :]
    same_mood = films.mood[:, None] == films.mood[None, :]
    same_setting = films.setting[:, None] == films.setting[None, :]
    weights = 1.0 + 4.0 * same_genre + 3.0 * next_genre
    weights += 8.0 * (same_genre & same_mood) + 8.0 * (same_genre & same_setting)
    # From one film of a director to the next two by release.
    by_director = np.lexsort((films.release_day, films.director))
    for step in (1, 2):
        before, after = by_director[:-step], by_director[step:]
        kept = films.director[before] == films.director[after]
        weights[before[kept], after[kept]] += 60.0
    return weights


def _draw_interactions(
    generator: np.random.Generator, films: _Films, num_users: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat (user, film, Unix seconds), user after user in viewing order."""
    num_items = len(films.genre)
    longest = min(_MAX_LENGTH, num_items // 4)
    lengths = _MIN_LENGTH + generator.gamma(1.1, (_MEAN_LENGTH + 1 - _MIN_LENGTH) / 1.1, num_users).astype(np.int64)
    lengths = np.minimum(lengths, longest)
    seconds = _draw_seconds(generator, lengths)

    genres, moods = np.eye(len(_GENRES))[films.genre], np.eye(len(_MOODS))[films.mood]
    second = films.second_genre >= 0
    genres[second, films.second_genre[second]] += 0.4
    genre_share, mood_share = genres.mean(0), moods.mean(0)
    early, late = (generator.dirichlet(3.0 * genre_share, num_users) + 0.004 for _ in range(2))
    mood_taste = generator.dirichlet(4.0 * mood_share, num_users) + 0.03

    # Cold films are equally popular: who watches one is a matter of taste, which their text tells.
    fit = ((early + late) @ genres.T * (mood_taste @ moods.T)).mean(0)
    popularity = np.where(films.cold, _COLD_APPEAL * fit.mean() / fit, films.popularity)

    # New releases are watched more and nothing is watched before its release, by month.
    months = np.arange(_FIRST_DAY, _LAST_DAY + 31, 30)
    age = (months[:, None] - films.release_day[None, :]) / 365.0
    recency = np.where(age >= 0, 1.0 + 5.0 * np.exp(-np.maximum(age, 0) / 1.5), 0.0)
    month = (seconds // 86_400 + _EPOCH_DAY - _FIRST_DAY) // 30
    transitions = _transition_weights(films)
    cold = np.flatnonzero(films.cold)
    later_parts = np.flatnonzero((films.prequel >= 0) & ~films.cold)

    chosen = np.zeros((num_users, longest), dtype=np.int64)
    for start in range(0, num_users, _USERS_AT_ONCE):
        stop = min(start + _USERS_AT_ONCE, num_users)
        base = (mood_taste[start:stop] @ moods.T) * popularity
        open_films = np.ones((stop - start, num_items))  # 0 = watched already
        for step in range(int(lengths[start:stop].max())):
            row = np.flatnonzero(lengths[start:stop] > step)
            user = row + start
            drift = (step / lengths[user])[:, None]
            taste = (1 - drift) * early[user] + drift * late[user]
            weights = taste @ genres.T
            weights *= base[row]
            weights *= recency[month[user, step]]
            weights *= open_films[row]
            # Cold films are for the two held-out positions; the last one gets most of them.
            left = lengths[user] - step
            weights[:, cold] *= np.select([left == 1, left == 2], [1.0, 0.4], 0.0)[:, None]
            # Few people start a series in the middle.
            prequel_unwatched = open_films[np.ix_(row, films.prequel[later_parts])] > 0
            weights[:, later_parts] *= np.where(prequel_unwatched, 0.1, 1.0)
            possible = weights > 0
            if step > 0:
                previous = chosen[user, step - 1]
                weights *= transitions[previous]
            cumulative = np.cumsum(weights, axis=1)
            threshold = generator.random(len(row)) * cumulative[:, -1]
            film = (cumulative > threshold[:, None]).argmax(axis=1)
            if step > 0:
                sequel = films.sequel[previous]
                goes_on = (sequel >= 0) & possible[np.arange(len(row)), sequel]
                goes_on &= generator.random(len(row)) < _SEQUEL_PROBABILITY
                film = np.where(goes_on, sequel, film)
            chosen[user, step] = film
            open_films[row, film] = 0.0
    watched = np.arange(longest) < lengths[:, None]
    return np.repeat(np.arange(num_users), lengths), chosen[watched], seconds[watched]


def _draw_seconds(generator: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Unix seconds (users, longest), non-decreasing along a row; entries beyond a user's length are unused."""
    shape = (len(lengths), int(lengths.max()))
    gap_days = generator.lognormal(np.log(5.0), 1.2, shape)
    gap_days[generator.random(shape) < _TIE_PROBABILITY] = 0.0
    gap = (86_400 * gap_days).astype(np.int64)
    gap[:, 0] = 0
    gap[np.arange(shape[1]) >= lengths[:, None]] = 0
    since_first = np.cumsum(gap, axis=1)
    # Four in ten users are still active in the last four months; the others left at some time before.
    days_before_end = np.where(
        generator.random(len(lengths)) < 0.4,
        generator.integers(0, 120, len(lengths)),
        generator.integers(0, 1500, len(lengths)),
    )
    last = (_LAST_DAY - _EPOCH_DAY - days_before_end) * 86_400 + generator.integers(0, 86_400, len(lengths))
    seconds = last[:, None] - since_first[:, -1:] + since_first
    return np.maximum(seconds, (_FIRST_DAY - _EPOCH_DAY) * 86_400)  # only an absurdly slow viewer starts that early
