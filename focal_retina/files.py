"""Files that are whole or absent, and that one process at a time uses."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from detectron2.data import DatasetCatalog, MetadataCatalog


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under its name complete and on the disk, or not at all. ``mode``:
    ``"wb"``, or ``"w"`` for text in UTF-8. It is written beside ``path``, under a hidden name; what
    a kill leaves there, the next write to ``path`` replaces."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # A file name that is no UTF-8 becomes \udc.., which json reads as that name again.
        how: Any = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
        with open(temporary, mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, has to reach the disk
    finally:
        os.close(folder)


def write_json(path: Path, content: object, *, indent: int | None = 1) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def is_generated(dataset_name: str) -> bool:
    """Whether this package writes the set, so that its files need not be there yet."""
    return bool(MetadataCatalog.get(dataset_name).get("generated", False))


def annotation_file(dataset_name: str) -> str:
    """The json of a registered data set, "" where it has none. That of a generated set is written
    where nothing has asked for its records yet."""
    path = MetadataCatalog.get(dataset_name).get("json_file", "")
    if is_generated(dataset_name) and not os.path.isfile(path):
        DatasetCatalog.get(dataset_name)
    return path


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, *, if_busy: str = "") -> Iterator[None]:
    """Hold ``path``, which is made and stays, against other processes; the kernel lets go of it
    when this one ends. Where another process has it, wait, or a ValueError says ``if_busy``."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if if_busy else 0))
        except BlockingIOError:
            raise ValueError(if_busy) from None
        yield


def write_once(folder: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill ``folder``, unless it is there: it appears by one rename, complete. One
    process writes, others wait. A killed one leaves a hidden folder, which the next replaces."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():  # another process may have written it meanwhile
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write(unfinished)
            unfinished.rename(folder)
