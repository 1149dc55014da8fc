"""One interface over a folder and a bucket; the bucket through the real gcsfs against a loopback fake."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layer3 import storage
from layer3.errors import ConfigurationError, SourceError
from tests.fakes.gcs import FakeGcs, RefusalError


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    with FakeGcs("store") as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        yield fake


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs waits 1, 2, 4, 8, 16 s between its six attempts; tests need not."""
    import gcsfs.retry

    real = gcsfs.retry.asyncio.sleep

    async def brief(seconds: float) -> None:
        await real(0)

    monkeypatch.setattr(gcsfs.retry.asyncio, "sleep", brief)


@pytest.fixture(params=["local", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("gcs")
    return "gs://store/some/prefix"


def test_what_is_written_is_read_back_and_replaced_as_a_whole(root: str) -> None:
    uri = storage.join(root, "models", "a b", "ü.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"first, longer")
    storage.write_bytes(uri, b"\x00\r\n --==0==\n")
    assert storage.read_bytes(uri) == b"\x00\r\n --==0==\n"
    assert storage.exists(uri)
    assert storage.exists(storage.join(root, "models"))
    assert not storage.exists(storage.join(root, "mod"))


def test_only_the_version_that_was_read_is_replaced(root: str) -> None:
    uri = storage.join(root, "channels", "a b.json")
    assert storage.replace_bytes(uri, b"first", None)
    assert not storage.replace_bytes(uri, b"second, unseen", None)
    content, version = storage.read_version(uri)
    assert content == b"first"
    assert storage.replace_bytes(uri, b"second", version)
    assert not storage.replace_bytes(uri, b"third, too late", version)
    content, later = storage.read_version(uri)
    assert (content, later != version) == (b"second", True)


def test_a_version_of_nothing_is_named(root: str) -> None:
    uri = storage.join(root, "nowhere", "x")
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_version(uri)
    assert caught.value.filename == uri
    if storage.is_remote(root):
        assert not storage.replace_bytes(uri, b"over what is gone", "1")


@pytest.mark.usefixtures("no_waiting")
def test_a_replacement_whose_answer_was_lost_is_known_as_our_own(gcs: FakeGcs) -> None:
    real = gcs.store

    def store_and_fail(*arguments: Any) -> dict[str, Any]:
        gcs.store = real  # type: ignore[method-assign]
        real(*arguments)
        raise RefusalError(503, "the answer is lost")

    gcs.store = store_and_fail  # type: ignore[method-assign]
    assert storage.replace_bytes("gs://store/channels/x", b"ours", None)
    assert gcs.content("store", "channels/x") == b"ours"


def test_a_bucket_that_refuses_a_replacement_is_a_source_error(gcs: FakeGcs) -> None:
    gcs.fail(403)
    with pytest.raises(SourceError, match=r"cannot write gs://store/x"):
        storage.replace_bytes("gs://store/x", b"", None)
    with pytest.raises(SourceError, match="create it with"):
        storage.replace_bytes("gs://no-such-bucket/x", b"", None)


def test_empty_content_is_content(root: str) -> None:
    uri = storage.join(root, "empty")
    storage.write_bytes(uri, b"")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b""


def test_what_is_missing_is_named(root: str) -> None:
    uri = storage.join(root, "nowhere", "x")
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_bytes(uri)
    assert caught.value.filename == uri
    assert uri in str(caught.value)


def test_what_is_removed_is_gone_and_may_be_removed_again(root: str) -> None:
    address = storage.join(root, "checkpoints", "one.safetensors")
    storage.write_bytes(address, b"1")
    storage.remove(address)
    assert not storage.exists(address)
    storage.remove(address)


def test_the_names_directly_below_a_folder(root: str) -> None:
    assert storage.list_names(storage.join(root, "trials")) == []
    for name in ("trials/b.json", "trials/a b/ü.json", "trials/a b/x/deep.json", "trials-not/c.json", "trials/ä"):
        storage.write_bytes(storage.join(root, name), b"1")
    assert storage.list_names(storage.join(root, "trials")) == ["a b", "b.json", "ä"]
    assert storage.list_names(storage.join(root, "trials") + "/") == ["a b", "b.json", "ä"]
    assert storage.list_names(storage.join(root, "trials", "a b")) == ["x", "ü.json"]


def test_what_is_written_is_listed_at_once(root: str) -> None:
    folder = storage.join(root, "trials")
    for number in range(3):
        storage.write_bytes(storage.join(folder, f"{number}.json"), b"1")
        assert storage.list_names(folder) == [f"{n}.json" for n in range(number + 1)]


def test_a_folder_is_not_in_its_own_list(gcs: FakeGcs) -> None:
    for name in ("trials/", "trials/a.json", "trials/deep/", "trials/deep/x"):
        gcs.put("store", name, b"")
    assert storage.list_names("gs://store/trials") == ["a.json", "deep"]


def test_a_long_list_is_whole(gcs: FakeGcs) -> None:
    for number in range(2_345):
        gcs.put("store", f"trials/{number:05}.json", b"")
    assert storage.list_names("gs://store/trials") == [f"{number:05}.json" for number in range(2_345)]


def test_a_model_folder_is_copied_in(root: str, tmp_path: Path) -> None:
    names = ("policy.safetensors", "manifest.json")
    for name in names:
        storage.write_bytes(storage.join(root, "m", name), name.encode())
    storage.copy_in(storage.join(root, "m"), tmp_path / "here" / "below", names)
    assert sorted(path.name for path in (tmp_path / "here" / "below").iterdir()) == sorted(names)
    with pytest.raises(FileNotFoundError):
        storage.copy_in(storage.join(root, "m"), tmp_path / "there", ["no such name"])


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp, of gcsfs's chunks
def test_a_large_object_goes_up_in_chunks(gcs: FakeGcs) -> None:
    content = os.urandom(1 << 20) * 51  # above gcsfs's limit for one request
    storage.write_bytes("gs://store/large", content)
    assert gcs.content("store", "large") == content
    assert sum(line.startswith("POST /upload") for line in gcs.requests) == 3
    assert storage.read_bytes("gs://store/large") == content


def test_an_emulator_never_sees_credentials(gcs: FakeGcs) -> None:
    storage.write_bytes("gs://store/x", b"1")
    assert gcs.authorizations == [None]


def test_a_second_emulator_is_not_served_from_the_first_ones_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"one", b"two"):
        with FakeGcs("store") as fake:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url.removeprefix("http://"))
            fake.put("store", "x", content)
            assert storage.read_bytes("gs://store/x") == content


def test_a_passing_disturbance_is_retried(gcs: FakeGcs, no_waiting: None) -> None:
    gcs.put("store", "x", b"there")
    gcs.fail(503, times=2)
    assert storage.read_bytes("gs://store/x") == b"there"
    assert len(gcs.requests) == 3


@pytest.mark.parametrize(
    ("status", "verb", "call"),
    [
        (403, "read", lambda: storage.read_bytes("gs://store/x")),
        (403, "write", lambda: storage.write_bytes("gs://store/x", b"1")),
        (403, "look for", lambda: storage.exists("gs://store/x")),
        (403, "list", lambda: storage.list_names("gs://store/x")),
        (401, "read", lambda: storage.read_bytes("gs://store/x")),
        (503, "write", lambda: storage.write_bytes("gs://store/x", b"1")),
    ],
)
def test_a_store_that_refuses_is_a_source_error_with_a_remedy(
    gcs: FakeGcs, no_waiting: None, status: int, verb: str, call: Callable[[], object]
) -> None:
    gcs.fail(status, times=50)
    with pytest.raises(SourceError, match=f"cannot {verb} gs://store/x.*application-default login"):
        call()


def test_a_store_that_is_away_is_a_source_error(monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    with FakeGcs("store") as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    with pytest.raises(SourceError, match=r"cannot read gs://store/x.*check the network"):
        storage.read_bytes("gs://store/x")


def test_writing_into_a_missing_bucket_says_how_to_make_it(gcs: FakeGcs) -> None:
    with pytest.raises(SourceError, match=r"no bucket other.*gcloud storage buckets create gs://other"):
        storage.write_bytes("gs://other/x", b"1")
    with pytest.raises(FileNotFoundError, match="gs://other/x"):
        storage.read_bytes("gs://other/x")
    assert not storage.exists("gs://other/x")


@pytest.mark.parametrize("uri", ["", "s3://bucket/key", "http://somewhere/x", "gs://", "gs://bucket", "gs://bucket/"])
def test_an_address_nobody_understands_is_refused(uri: str) -> None:
    for call in (storage.read_bytes, storage.exists):
        with pytest.raises(ConfigurationError):
            call(uri)
    with pytest.raises(ConfigurationError):
        storage.write_bytes(uri, b"")


@pytest.mark.parametrize(
    ("root", "parts", "joined"),
    [
        (".", ("models", "x"), "models/x"),
        ("/srv/store/", ("models/x",), "/srv/store/models/x"),
        ("gs://b", ("models", "x"), "gs://b/models/x"),
        ("gs://b/deep/", ("models", "x"), "gs://b/deep/models/x"),
    ],
)
def test_join(root: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(root, *parts) == joined


@pytest.mark.parametrize("part", ["", "/etc", "..", "a/../../b"])
@pytest.mark.parametrize("root", [".", "gs://b/x"])
def test_join_never_leaves_its_root(root: str, part: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a name below"):
        storage.join(root, "models", part)


def test_a_bucket_is_no_folder_of_this_machine(tmp_path: Path) -> None:
    assert storage.local_folder(f"{tmp_path}/a/../b") == tmp_path / "b"
    with pytest.raises(ConfigurationError, match="gs://store is a bucket"):
        storage.local_folder("gs://store")


def test_a_failed_local_write_keeps_the_old_content_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    storage.write_bytes(str(target), b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failure:
        storage.write_bytes(str(target), b"new")
    assert storage.disk_trouble(failure.value) == f"{target}: No space left on device: free some space"
    assert storage.disk_trouble(OSError("a library's words"), "a/b") == "a/b: a library's words: check the folder"
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_local_file_gets_the_usual_mode(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"")
    (tmp_path / "y").touch()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "y").stat().st_mode)


def test_local_paths_import_no_cloud_client(tmp_path: Path) -> None:
    program = (
        "import sys; from layer3 import storage; storage.write_bytes(sys.argv[1], b'1');"
        "storage.read_bytes(sys.argv[1]); storage.exists(sys.argv[1]);"
        "print([m for m in ('gcsfs', 'fsspec', 'google.auth', 'aiohttp', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
