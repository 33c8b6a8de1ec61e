"""Writing files and folders whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`; it becomes `path` when the block ends without an error, else it goes.

    Args:
        path: File to write; its folder is made when missing, an existing file is replaced.

    Yields:
        The temporary path to write to.

    Example:
        >>> import pathlib, tempfile
        >>> from hf_seqrec.data.files import atomic_path
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; give them the permissions any new file would have.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; it becomes `path` when the block ends without an error, else it goes.

    Args:
        path: Folder to write; missing or empty, unless `overwrite`.
        overwrite: Whether a folder that holds something is replaced.

    Yields:
        The temporary folder to write into.

    Raises:
        FileExistsError: If `path` holds something and `overwrite` is off.
        NotADirectoryError: If `path` is a file.
    """
    path = Path(path)
    check_writable_folder(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            # Two renames: the old folder steps aside first, so that `path` never holds a mixture.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
            os.replace(path, aside / "old")
            os.replace(temporary, path)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable_folder(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuses an output folder that is a file, or that holds something and may not be replaced.

    Args:
        path: The folder.
        overwrite: Whether a folder that holds something may be replaced.

    Raises:
        FileExistsError: If `path` holds something and `overwrite` is off.
        NotADirectoryError: If `path` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, need a folder: choose another output.")
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty: choose another folder or pass overwrite=True.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
