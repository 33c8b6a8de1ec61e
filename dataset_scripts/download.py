"""Fetching raw files from their owners, and unpacking archives without leaving the folder."""

import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tqdm.auto import tqdm

from hf_seqrec.data.files import atomic_folder

from .readers import RawDataError


CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
# The largest archive known here (Yelp) unpacks to about 9 GB.
UNPACK_LIMIT_BYTES = 32 << 30

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def download(url: str, target: Path, md5: str | None = None, md5_url: str | None = None) -> Path:
    """Fetches a file with a progress bar; a broken download is taken up again where it stopped.

    Args:
        url: `http` or `https` address.
        target: File to write; the part that has arrived lies beside it as `<name>.part`.
        md5: Published MD5 of the file in hexadecimal digits.
        md5_url: Where the owner publishes that MD5 (its first 32 hexadecimal digits are taken).

    Returns:
        `target`.

    Raises:
        RawDataError: If the checksum or the length differs; nothing is left under the name of `target`.
        OSError: If the server cannot be reached. What has arrived is kept for the next try.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no http or https address.")
    if md5 is None and md5_url is not None:
        md5 = _published_md5(md5_url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.etag")
    _fetch(url, part, tag)
    if md5 is not None and (found := checksum(part, "md5")) != md5:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise RawDataError(
            f"{url}: MD5 is {found}, the owner publishes {md5}. The broken file was deleted: try again."
        )
    os.replace(part, target)
    tag.unlink(missing_ok=True)
    return target


def _fetch(url: str, part: Path, tag: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "hf-seqrec"}
    # A part is only continued when the server can say that the file is still the same one.
    if have and tag.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            # Nothing lies beyond the part: it is complete, or stale, which the checksum or the length shows.
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            return _fetch(url, part, tag)
        raise OSError(f"{url}: the server answered {error.code} {error.reason}.") from error
    except urllib.error.URLError as error:
        raise OSError(f"{url} cannot be reached ({error.reason}): fetch it by hand, or try again.") from error
    with response:
        if not response.url.startswith(("http://", "https://")):
            raise RawDataError(f"{url} leads to {response.url!r}, which is no http or https address.")
        continued = response.status == 206
        have = have if continued else 0
        if etag := response.headers.get("ETag") or response.headers.get("Last-Modified"):
            tag.write_text(etag)
        else:
            tag.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True)
        with bar, part.open("ab" if continued else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{url}: got {part.stat().st_size:,} of {total:,} bytes; run the same command again to go on.")


def _published_md5(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            text = response.read(4096).decode("ascii", errors="replace")
    except urllib.error.URLError as error:
        raise OSError(f"the owner's checksum {url} cannot be read ({error}): try again, or fetch by hand.") from error
    for word in text.lower().replace("=", " ").split():
        if len(word) == 32 and all(digit in "0123456789abcdef" for digit in word):
            return word
    raise RawDataError(f"{url} holds no MD5: it starts with {text[:40]!r}.")


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hash of a file.

    Args:
        path: The file.
        algorithm: Name of a `hashlib` algorithm.

    Returns:
        Hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def unpack(
    archive: Path, folder: Path, wanted: set[str], max_bytes: int = UNPACK_LIMIT_BYTES, overwrite: bool = False
) -> None:
    """Unpacks the wanted files of a zip or tar archive.

    The whole archive is refused when any member would leave the folder or is a link, wanted or not.

    Args:
        archive: The archive: `.zip`, or `.tar` with any compression.
        folder: Folder to make; it appears whole or not at all.
        wanted: File names to unpack (without folders).
        max_bytes: Most bytes written. What the archive claims about its sizes is not trusted.
        overwrite: Whether a folder that is there already is replaced.

    Raises:
        RawDataError: If the archive is unsafe, too large or damaged.
        FileExistsError: If the folder holds something and `overwrite` is off.
    """
    try:
        with atomic_folder(folder, overwrite) as temporary, _members(archive) as members:
            left = max_bytes
            for name, opened in members:
                if PurePosixPath(name).name not in wanted:
                    continue
                target = temporary / name
                if target.exists():
                    raise RawDataError(f"{archive} holds {name!r} twice: it is refused.")
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, target.open("xb") as file:
                    while chunk := source.read(CHUNK_BYTES):
                        left -= len(chunk)
                        if left < 0:
                            raise RawDataError(f"{archive} unpacks to more than {max_bytes:,} bytes: it is refused.")
                        file.write(chunk)
    except RawDataError:
        raise
    except (*_BROKEN, RuntimeError, NotImplementedError) as error:
        raise RawDataError(f"{archive} is damaged or no archive ({error}): delete it and fetch it again.") from error


@contextmanager
def _members(archive: Path) -> Iterator[list[tuple[str, Callable[[], Any]]]]:
    """Names of the regular files of an archive and how to open them, after refusing unsafe members."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                _refuse_unsafe(archive, info.filename, stat.S_ISLNK(info.external_attr >> 16))
            yield [(info.filename, partial(packed.open, info)) for info in packed.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                _refuse_unsafe(archive, member.name, not (member.isreg() or member.isdir()))
            yield [(member.name, partial(tar.extractfile, member)) for member in tar.getmembers() if member.isreg()]


def _refuse_unsafe(archive: Path, name: str, is_special: bool) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts):
        raise RawDataError(f"{archive} holds {name!r}, which would be written outside its folder: it is refused.")
    if is_special:
        raise RawDataError(f"{archive} holds {name!r}, which is a link or no regular file: it is refused.")
