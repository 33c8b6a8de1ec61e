"""What every converter of a public data set looks like: facts about the owner, raw files, two readers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from .download import download, unpack
from .readers import RawDataError


@dataclass(frozen=True)
class About:
    """The owner's side of a data set, printed in its card.

    Attributes:
        title: Name of the data set for people.
        owner: Who publishes it.
        homepage: Where the owner describes it.
        obtain: One sentence: how to get the raw files by hand.
        terms: The owner's terms in one or two sentences.
        redistribution: Whether the owner grants the right to pass the data on.
        citation: BibTeX entry, empty if there is none.
        license: Hub licence identifier, `other` where the owner has own terms.
        license_name: Short name of the owner's terms, for `license = "other"`.
        language: Hub language code of the texts, None if unknown.
    """

    title: str
    owner: str
    homepage: str
    obtain: str
    terms: str
    redistribution: bool = False
    citation: str = ""
    license: str = "other"
    license_name: str = "owner-terms"
    language: str | None = "en"


@dataclass(frozen=True)
class RawFile:
    """One raw file and where it comes from.

    Attributes:
        names: Paths below the raw folder that are accepted, tried in this order.
        archive: Archive in the raw folder that holds the file.
        url: Where the owner lets anybody fetch the file (or the archive) directly; None if not.
        md5: MD5 of what `url` gives, as published by the owner.
        md5_url: Where the owner publishes that MD5.
        hub: `(dataset repository, path)` when the owner publishes on the Hugging Face Hub.
    """

    names: tuple[str, ...]
    archive: str | None = None
    url: str | None = None
    md5: str | None = None
    md5_url: str | None = None
    hub: tuple[str, str] | None = None

    @property
    def can_be_downloaded(self) -> bool:
        """Whether the owner allows a direct download."""
        return self.url is not None or self.hub is not None


@dataclass(frozen=True)
class Statistics:
    """Published counts; None where the owner prints no such number.

    A count is an integer, or the owner's rounded figure as text, such as `"94.8K"`.

    Example:
        >>> from hf_seqrec.dataset_scripts.base import Statistics
        >>> Statistics(users="94.8K", items=3, interactions=None).mismatches(users=94_762, items=4, interactions=9)
        ['items: got 4, published 3']
    """

    users: int | str | None
    items: int | str | None
    interactions: int | str | None

    def mismatches(self, users: int, items: int, interactions: int) -> list[str]:
        """Compares counts with the published ones.

        Args:
            users: Number of users found.
            items: Number of items found.
            interactions: Number of interactions found.

        Returns:
            One sentence per count that differs; empty if all agree.
        """
        found = {"users": users, "items": items, "interactions": interactions}
        return [
            f"{what}: got {count:,}, published {_shown(getattr(self, what))}"
            for what, count in found.items()
            if getattr(self, what) is not None and not _agrees(count, getattr(self, what))
        ]

    def __str__(self) -> str:
        return " / ".join(_shown(count) for count in (self.users, self.items, self.interactions))


def _shown(count: int | str | None) -> str:
    return "not published" if count is None else count if isinstance(count, str) else f"{count:,}"


def _agrees(count: int, published: int | str) -> bool:
    if isinstance(published, int):
        return count == published
    unit = {"K": 1_000, "M": 1_000_000}.get(published[-1], 1)
    number = published.rstrip("KM")
    decimals = len(number.partition(".")[2])
    # Half a step of the last printed digit; a little more, because owners round .05 either way.
    return abs(count - float(number) * unit) <= 0.501 * unit / 10**decimals


def option(help: str, default: Any = MISSING, choices: tuple[str, ...] | None = None, type: type = str) -> Any:
    """A field of a converter that is also a command line flag.

    Args:
        help: What the flag means.
        default: Value without the flag; a flag without default is required.
        choices: The only values allowed.
        type: Type of the value.

    Returns:
        A dataclass field that carries all of this.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "type": type})


@dataclass(frozen=True, kw_only=True)
class Converter(ABC):
    """Reads the raw files of one public data set.

    A subclass is a frozen dataclass: its fields are the options people choose (`--edition`, `--category`, …). It only
    knows the owner's formats; filtering, checking and writing are the same for all (`building.build_dataset`).

    Raises:
        ValueError: If an option has a value that is not among its choices.
    """

    name: ClassVar[str]
    about: ClassVar[About]

    def __post_init__(self):
        for one in self.options():
            choices, value = one.metadata["choices"], getattr(self, one.name)
            if choices and value not in choices:
                raise ValueError(f"{self.name} has no {one.name} {value!r}: choose from {', '.join(choices)}.")

    @classmethod
    def options(cls) -> list[Field]:
        """The fields made with `option`, in the order of the class."""
        return [one for one in fields(cls) if "help" in one.metadata]

    @property
    def title(self) -> str:
        """Name of this edition of the data set for people."""
        return self.about.title

    @property
    def slug(self) -> str:
        """Name of this edition for files and repositories."""
        return self.name

    @property
    def citation(self) -> str:
        """BibTeX entries the owner asks for, empty if none."""
        return self.about.citation

    @abstractmethod
    def raw_files(self) -> dict[str, list[RawFile]]:
        """The raw files under `"interactions"` and `"items"`; the latter may be missing or empty."""

    @abstractmethod
    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the interactions.

        Args:
            paths: Where the files of `raw_files()["interactions"]` were found, in the same order.

        Yields:
            Batches with `user_id` and `item_id` (dictionary arrays), `timestamp` (int64 Unix seconds) or `position`
            (int64), and `rating` (float32) where the source has one.

        Raises:
            RawDataError: If a file is broken; the message names file and line.
        """

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the items.

        Args:
            paths: Where the files of `raw_files()["items"]` were found, in the same order.

        Yields:
            Batches with `item_id`, `title` and further text columns, all strings, null where the source has nothing.

        Raises:
            RawDataError: If a file is broken; the message names file and line.
        """
        return iter(())

    def published(self) -> dict[str, Statistics]:
        """Counts published by the owner or in the literature.

        Returns:
            Under `"raw"` the counts of the raw files, under `"5-core"` those after a 5-core filter without any
            other filter; a key is missing where nothing reliable is published.
        """
        return {}

    def notes(self) -> list[str]:
        """Sentences about what was done to this source, for the card."""
        return []

    def download(self, raw_dir: Path) -> None:
        """Fetches the raw files that are not there yet.

        Args:
            raw_dir: Folder for the raw files.

        Raises:
            RawDataError: If the owner allows no direct download, or a checksum differs.
            OSError: If the owner's server cannot be reached.
        """
        for raw in chain(*self.raw_files().values()):
            if self._find(raw, raw_dir) is not None:
                continue
            if raw.hub is not None:
                from huggingface_hub import hf_hub_download

                raw_dir.mkdir(parents=True, exist_ok=True)
                hf_hub_download(raw.hub[0], raw.hub[1], repo_type="dataset", local_dir=raw_dir)
            elif raw.url is not None:
                target = raw_dir / (raw.archive or raw.names[0])
                download(raw.url, target, md5=raw.md5, md5_url=raw.md5_url)
            else:
                raise RawDataError(
                    f"The owner of {self.title} offers no direct download of {raw.names[0]}. {self.about.obtain}"
                )

    def locate(self, raw_dir: Path, with_items: bool = True) -> dict[str, list[Path]]:
        """Finds the raw files, unpacking an archive in the raw folder if need be.

        Args:
            raw_dir: Folder that holds the raw files.
            with_items: Whether the item texts are needed.

        Returns:
            Paths, in the shape of `raw_files()`.

        Raises:
            FileNotFoundError: If a file is missing; the message says where to get it.
        """
        roles = {role: raws for role, raws in self.raw_files().items() if with_items or role != "items"}
        found = {role: [self._find(raw, raw_dir) for raw in raws] for role, raws in roles.items()}
        for role, raws in roles.items():
            for raw, path in zip(raws, found[role], strict=True):
                if path is None:
                    raise FileNotFoundError(self._missing(raw, role, raw_dir))
        return {role: [path for path in paths if path is not None] for role, paths in found.items()}

    def _find(self, raw: RawFile, raw_dir: Path) -> Path | None:
        for name in raw.names:
            if (raw_dir / name).is_file():
                return raw_dir / name
        if raw.archive and (raw_dir / raw.archive).is_file():
            folder = raw_dir / (raw.archive.split(".")[0] + "-unpacked")
            wanted = {Path(one.names[0]).name for one in chain(*self.raw_files().values()) if one.archive}
            archive = raw_dir / raw.archive
            if not folder.exists() or folder.stat().st_mtime < archive.stat().st_mtime:
                unpack(archive, folder, wanted, overwrite=True)
            matches = sorted(folder.rglob(Path(raw.names[0]).name))
            return matches[0] if matches else None
        return None

    def _missing(self, raw: RawFile, role: str, raw_dir: Path) -> str:
        places = [str(raw_dir / name) for name in raw.names] + ([str(raw_dir / raw.archive)] if raw.archive else [])
        message = f"{self.title}: found none of {', '.join(places)}. {self.about.obtain}"
        if raw.can_be_downloaded:
            message += " Or pass --download to fetch it from the owner."
        if role == "items":
            message += " To build without titles, pass --without-titles."
        return message
