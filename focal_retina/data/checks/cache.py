"""Results of earlier checks, kept by what was checked."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def file_digest(path: str) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cached(
    key: Sequence[Any],
    compute: Callable[[], T],
    *,
    encode: Callable[[T], Any],
    decode: Callable[[Any], T],
) -> T:
    """``compute()``, or what it returned when it was called with this key before.

    A cache that can't be read or written costs time, never the run: the result is then computed
    again. It appears by one rename, so that processes may share the folder, which is
    ``focal_retina`` below XDG_CACHE_HOME (default ``~/.cache``).

    Args:
        key: all that the result depends on, of types that json knows.
        compute: makes the result.
        encode: result to json's types.
        decode: the way back; may raise KeyError, TypeError or ValueError.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(home, "focal_retina", f"{digest}.json")
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
        return decode(json.loads(path.read_text(encoding="utf-8")))
    result = compute()
    with contextlib.suppress(OSError):
        _write(path, json.dumps(encode(result)))
    return result


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
