"""A local folder or a ``gs://`` bucket behind the same few functions.

A *root* or *uri* is a local path (``"runs"``, ``"/srv/store"``) or ``gs://bucket/prefix``; the
layout below it is the same in both places. Google's client is imported at the first ``gs://``
address and never otherwise. ``STORAGE_EMULATOR_HOST`` sends it to an emulator, without
credentials; elsewhere the machine's default credentials are used.

Errors, the same everywhere: what is missing is a :class:`FileNotFoundError` that carries the
address; a store that does not answer, or refuses, is a :class:`layer3.errors.SourceError` that
names the address and what to do; an address nobody understands is a
:class:`layer3.errors.ConfigurationError`. Trouble with the local disk stays an ``OSError``;
:func:`disk_trouble` puts it into words.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from layer3.errors import ConfigurationError, SourceError

__all__ = [
    "copy_in",
    "disk_trouble",
    "exists",
    "is_remote",
    "join",
    "list_names",
    "local_folder",
    "missing",
    "object_of",
    "read_bytes",
    "read_version",
    "remove",
    "replace_bytes",
    "sync_folder",
    "write_bytes",
]

_GS: Final = "gs://"
_T = TypeVar("_T")


def is_remote(uri: str) -> bool:
    """Whether ``uri`` is a ``gs://`` address; any other scheme is a ConfigurationError."""
    if not uri:
        raise ConfigurationError("an empty address: give a local path or gs://bucket/path")
    if uri.startswith(_GS):
        return True
    if "://" in uri:
        raise ConfigurationError(f"{uri}: only local paths and gs://bucket/path are understood")
    return False


def local_folder(name: str) -> Path:
    """The folder that ``name`` means on this machine; a bucket is refused.

    As a Path, gs://bucket would quietly become the folder ./gs:/bucket.
    """
    if is_remote(name):
        raise ConfigurationError(f"{name} is a bucket, a run on this machine needs a local folder: STORE=…")
    return Path(name).resolve()


def join(root: str, *parts: str) -> str:
    """``root`` and the names below it, as one address. A part may not be empty, absolute or climb with ``..``."""
    for part in parts:
        if not part or part.startswith("/") or ".." in PurePosixPath(part).parts:
            raise ConfigurationError(f"{part!r} is not a name below {root}: it is empty, absolute or climbs out")
    if is_remote(root):
        return "/".join([root.rstrip("/"), *parts])
    return str(Path(root, *parts))


def object_of(uri: str) -> tuple[str, str]:
    """Bucket and name of the object at a ``gs://`` address; a ConfigurationError if it names none."""
    bucket, _, name = uri.removeprefix(_GS).partition("/")
    if not bucket or not name.strip("/"):
        raise ConfigurationError(f"{uri}: expected gs://bucket/path")
    return bucket, name


def missing(uri: str) -> FileNotFoundError:
    """What is raised where there is nothing at ``uri``."""
    return FileNotFoundError(errno.ENOENT, "there is nothing at", uri)


def read_bytes(uri: str) -> bytes:
    """The whole content of one file or object."""
    if not is_remote(uri):
        try:
            return Path(uri).read_bytes()
        except FileNotFoundError:
            raise missing(uri) from None
    path = _object_path(uri)
    return bytes(_remotely("read", uri, lambda: _gcs().cat_file(path)))


def write_bytes(uri: str, content: bytes) -> None:
    """Create or replace one file or object as a whole: a reader sees the old content or the new, never a part.

    A local file is written beside, flushed to the disk and renamed; folders are made as needed.
    """
    if is_remote(uri):
        path = _object_path(uri)
        _written(uri, lambda: _gcs().pipe_file(path, content))
        return
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        # A disk that is full does not say which file had no room.
        if error.errno and not error.filename:
            error.filename = uri
        raise
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)


def read_version(uri: str) -> tuple[bytes, str]:
    """The content of one file or object, and which version of it this is, for :func:`replace_bytes`."""
    if not is_remote(uri):
        content = read_bytes(uri)
        return content, _local_version(content)
    bucket, name = object_of(uri)
    # By hand, because the client's cat_file drops the header that says which version it read.
    headers, content = _remotely("read", uri, lambda: _gcs().call("GET", "b/{}/o/{}", bucket, name, alt="media"))
    return bytes(content), str(headers["X-Goog-Generation"])


def replace_bytes(uri: str, content: bytes, version: str | None) -> bool:
    """Write as :func:`write_bytes` does, but only over ``version`` (None: over nothing); False if another one is there.

    Of several writers to one object exactly one succeeds. For a local file that holds among writers that
    share a lock of their own: a rename asks no question.
    """
    if not is_remote(uri):
        found = Path(uri)
        present = _local_version(found.read_bytes()) if found.exists() else None
        if present != version:
            return False
        write_bytes(uri, content)
        return True
    bucket, name = object_of(uri)
    path = f"{bucket}/{name}"

    def upload() -> bool:
        try:
            _gcs().call(
                "POST",
                _gcs().base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
                bucket,
                uploadType="media",
                name=name,
                ifGenerationMatch="0" if version is None else version,
                headers={"Content-Type": "application/octet-stream"},
                data=content,
            )
        except FileExistsError:  # HTTP 412
            # The client repeats a request whose answer was lost: then the version in the way is our own.
            return _gcs().exists(path) and bytes(_gcs().cat_file(path)) == content
        return True

    return _written(uri, upload)


def exists(uri: str) -> bool:
    """Whether there is a file, an object, or a folder with something in it, at ``uri``."""
    if not is_remote(uri):
        return Path(uri).exists()
    path = _object_path(uri)
    return bool(_remotely("look for", uri, lambda: _gcs().exists(path)))


def list_names(folder: str) -> list[str]:
    """Names of the files, objects and folders directly below ``folder``, sorted; none where it does not exist."""
    if not is_remote(folder):
        try:
            return sorted(path.name for path in Path(folder).iterdir())
        except FileNotFoundError:
            return []
    path = _object_path(folder).rstrip("/")
    try:
        found = _remotely("list", folder, lambda: _gcs().ls(path, detail=False))
    except FileNotFoundError:
        return []
    # A bucket's browser leaves an empty object in the folder's own name behind.
    return sorted({address.rstrip("/").rsplit("/", 1)[1] for address in found if address.rstrip("/") != path})


def remove(uri: str) -> None:
    """Delete one file or object; nothing happens where there is none."""
    if not is_remote(uri):
        Path(uri).unlink(missing_ok=True)
        return
    path = _object_path(uri)
    with contextlib.suppress(FileNotFoundError):
        _remotely("remove", uri, lambda: _gcs().rm_file(path))


def disk_trouble(error: OSError, place: str = "") -> str:
    """Where this machine's disk failed (``place``, or what ``error`` says), how, and what to do about it."""
    where = place or error.filename
    remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check the folder"
    how = error.strerror or str(error)
    return f"{where}: {how}: {remedy}" if where else f"{how}: {remedy}"


def copy_in(folder: str, destination: Path, names: Iterable[str]) -> None:
    """Copy the files ``names`` from the ``folder`` address into the local folder ``destination``."""
    for name in names:
        write_bytes(str(destination / name), read_bytes(join(folder, name)))


def sync_folder(folder: Path) -> None:
    """Make a rename in a local ``folder`` durable: the name lives in it, and it has its own blocks on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written(uri: str, call: Callable[[], _T]) -> _T:
    try:
        return _remotely("write", uri, call)
    except FileNotFoundError as error:
        bucket, _ = object_of(uri)
        raise SourceError(
            f"cannot write {uri}: there is no bucket {bucket}: "
            f"create it with `gcloud storage buckets create gs://{bucket}`"
        ) from error


def _local_version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _object_path(uri: str) -> str:
    return "/".join(object_of(uri))


def _remotely(verb: str, uri: str, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except FileNotFoundError:
        raise missing(uri) from None
    except ConfigurationError:
        raise
    except Exception as error:
        # gcsfs lets through whatever its HTTP, credential and retry layers raise (five unrelated
        # hierarchies, some of them Google's own, which this package does not import).
        raise SourceError(
            f"cannot {verb} {uri}: {' '.join(str(error).split()) or type(error).__name__}: check the network, that "
            "`gcloud auth application-default login` was done, and that this account may use the bucket"
        ) from error


def _gcs() -> Any:
    return _filesystem(os.environ.get("STORAGE_EMULATOR_HOST", ""))


@functools.lru_cache(maxsize=2)
def _filesystem(emulator: str) -> Any:
    # One client per endpoint: each new one costs a token from the metadata server. From `core`,
    # because the package's default class first asks every bucket's layout over gRPC, which goes
    # around STORAGE_EMULATOR_HOST and needs a permission of its own.
    try:
        from gcsfs.core import GCSFileSystem
    except ImportError as error:
        raise ConfigurationError(f"gs:// needs an extra package ({error}): pip install 'himari[gcs]'") from error
    # Its failures arrive as exceptions; without a handler the logging module would print them again.
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())
    return GCSFileSystem(
        token="anon" if emulator else "google_default",
        use_listings_cache=False,
        skip_instance_cache=True,
        requests_timeout=60,
    )
