"""The files of a decision log: their lines, their names, and how they are read back.

One record is one line, itself JSON: ``["<crc32>", <bytes>, {record}]``, the CRC-32 and the length
being those of the record's own text, so that a torn or changed line is always told from a whole one
and ``jq '.[2]'`` reads the log.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from layer3.errors import DataError

__all__ = [
    "DECISION",
    "HEAD",
    "SCHEMA",
    "decode",
    "encode",
    "files",
    "keep_aside",
    "next_name",
    "read",
    "read_all",
    "survey",
]

#: The ``kind`` of a record that holds configuration and state, and of one that holds a decision.
HEAD: Final = "head"
DECISION: Final = "decision"
SCHEMA: Final = "himari-decisions/1"

_LINE: Final = re.compile(rb'\["([0-9a-f]{8})",([0-9]{1,10}),(.*)\]', re.DOTALL)
_DAMAGED: Final = "is not a whole record: its length or its checksum is wrong"


def encode(record: Mapping[str, Any]) -> bytes:
    """The line of one record, with its line break.

    Raises
    ------
    DataError : the record holds what JSON cannot say, a NaN for example
    """
    try:
        text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError) as error:
        raise DataError(f"a record that cannot be written as JSON: {error}") from error
    return b'["%08x",%d,%s]\n' % (zlib.crc32(text), len(text), text)


def decode(line: bytes) -> dict[str, Any] | None:
    """The record of one line, without or with its line break; ``None`` for one that is torn or was changed."""
    found = _LINE.fullmatch(line.removesuffix(b"\n"))
    if found is None or int(found[2]) != len(found[3]) or int(found[1], 16) != zlib.crc32(found[3]):
        return None
    record = json.loads(found[3])
    return record if isinstance(record, dict) else None


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of one file in their order, while another process may still append to it.

    A last line without its line break was never acknowledged and is left out.

    Raises
    ------
    DataError : no such file, or a line is damaged; file, line and byte are named
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read the decision log {path}: {error.strerror}") from error
    with file:
        start = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            record = decode(line)
            if record is None:
                raise DataError(f"{path}: line {number} (byte {start}) {_DAMAGED}; restore the file from a copy")
            start += len(line)
            yield record


def files(path: Path) -> list[Path]:
    """The files of the log that is written at ``path``, oldest first; a file that was rolled is itself alone."""
    rolled = _rolled(path)
    return [*rolled, path] if path.exists() or not rolled else rolled


def read_all(path: Path) -> Iterator[dict[str, Any]]:
    """The records of :func:`files` in their order; errors as :func:`read`."""
    for file in files(path):
        yield from read(file)


def survey(path: Path) -> tuple[int, int | None]:
    """How many bytes from the start are whole records, and where the first damaged line is if a whole one follows."""
    whole = start = 0
    torn: int | None = None
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and decode(line) is not None:
                if torn is not None:
                    return whole, torn
                whole = start + len(line)
            elif torn is None:
                torn = start
            start += len(line)
    return whole, None


def keep_aside(path: Path, whole: int) -> Path:
    """Move what follows the first ``whole`` bytes to a new file beside; returns its name."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.torn-{number:06d}")).exists():
        number += 1
    with path.open("r+b") as file:
        file.seek(whole)
        with aside.open("xb") as kept:
            kept.write(file.read())
            kept.flush()
            os.fsync(kept.fileno())
        file.truncate(whole)
        os.fsync(file.fileno())
    return aside


def _rolled(path: Path) -> list[Path]:
    """The numbered files of the log at ``path``, oldest first."""
    name = re.compile(rf"{re.escape(path.stem)}\.[0-9]{{6,}}{re.escape(path.suffix)}")
    folder = path.parent
    return sorted(
        (file for file in folder.iterdir() if name.fullmatch(file.name)) if folder.is_dir() else (), key=_number
    )


def next_name(path: Path) -> Path:
    """What the file written at ``path`` is to be called when it is moved out of the way."""
    number = 1 + max((_number(name) for name in _rolled(path)), default=0)
    return path.with_name(f"{path.stem}.{number:06d}{path.suffix}")


def _number(path: Path) -> int:
    return int(path.stem.rpartition(".")[2])
