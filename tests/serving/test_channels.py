"""Which model serves, what came before, and the way back."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3 import storage
from layer3.champion import Champion, Channel, load, load_folder, model_folder, read
from layer3.errors import ConfigurationError, PolicyError, ReleaseError, SourceError
from serving import channels
from serving.channels import HISTORY
from serving.models import store_policy
from tests.fakes.gcs import FakeGcs
from tests.serving.support import edit_manifest, make_policy, snapshot, tamper_weights


def champion(name: str, at: str = "2026-01-01T00:00:00+00:00") -> Champion:
    return Champion(name, name * 4, "himari-state-16/1", at, f"run-{name}")


def later() -> datetime:
    return datetime(2026, 3, 1, tzinfo=UTC)


def put(store: str, folder: Path, seed: int) -> Champion:
    """Store and publish a random policy."""
    make_policy(folder, seed)
    policy = store_policy(folder, store).policy
    new = Champion(
        policy.model_id, policy.manifest["policy_sha256"], policy.manifest["contract"], "then", f"run-{seed}"
    )
    channels.publish(store, new, expected=read(store))
    return new


# Pure


def test_each_promotion_remembers_the_one_before() -> None:
    channel = channels.promoted(None, champion("a"))
    assert (channel.champion, channel.previous) == (champion("a"), None)
    channel = channels.promoted(channels.promoted(channel, champion("b")), champion("c"))
    assert (channel.champion, channel.previous) == (champion("c"), champion("b"))
    assert [(e.event, e.model_id, e.replaced) for e in channel.history] == [
        ("release", "c", "b"),
        ("release", "b", "a"),
        ("release", "a", None),
    ]


def test_a_champion_released_again_does_not_become_its_own_previous() -> None:
    channel = channels.promoted(channels.promoted(None, champion("a")), champion("b"))
    again = channels.promoted(channel, champion("b", at="later"))
    assert (again.champion.released_at, again.previous) == ("later", champion("a"))


def test_rolling_back_twice_returns_to_where_it_was() -> None:
    channel = channels.promoted(channels.promoted(None, champion("a")), champion("b"))
    back = channels.rolled_back(channel, "t1")
    assert (back.champion, back.previous) == (champion("a", at="t1"), champion("b"))
    forth = channels.rolled_back(back, "t2")
    assert (forth.champion, forth.previous) == (champion("b", at="t2"), champion("a", at="t1"))
    assert [(e.event, e.model_id, e.at) for e in forth.history[:2]] == [
        ("rollback", "b", "t2"),
        ("rollback", "a", "t1"),
    ]


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    channel = channels.promoted(None, champion("0"))
    for i in range(1, HISTORY + 20):
        channel = channels.promoted(channel, champion(str(i)))
    assert len(channel.history) == HISTORY
    assert channel.history[0].model_id == str(HISTORY + 19)


texts = st.text(max_size=20)
records = st.builds(Champion, texts, texts, texts, texts, texts)


@given(st.lists(records, min_size=1, max_size=4), st.booleans())
def test_a_channel_survives_its_file(released: list[Champion], back: bool) -> None:
    channel = None
    for one in released:
        channel = channels.promoted(channel, one)
    assert channel is not None
    if back and channel.previous:
        channel = channels.rolled_back(channel, "t")
    assert Channel.from_json(channel.to_json().encode(), "here") == channel


def test_the_file_is_laid_out_as_documented_and_keys_of_later_versions_are_ignored() -> None:
    body = json.loads(channels.promoted(channels.promoted(None, champion("a")), champion("b")).to_json())
    assert set(body) == {"model_id", "policy_sha256", "contract", "released_at", "run_id", "previous", "history"}
    assert set(body["previous"]) == {"model_id", "policy_sha256", "contract", "released_at", "run_id"}
    body.update(traffic={"canary": 10})
    assert Channel.from_json(json.dumps(body).encode(), "here").champion == champion("b")


@pytest.mark.parametrize(
    "content", ["", "3", "[]", "{}", '{"model_id": null}', '{"previous": 3}', '{"history": [1]}', '{"history": 5}']
)
def test_a_malformed_file_is_named(content: str) -> None:
    if content.startswith('{"') and "model_id" not in content:
        body = {**json.loads(channels.promoted(None, champion("a")).to_json()), **json.loads(content)}
        content = json.dumps(body)
    with pytest.raises(ReleaseError, match="the/file is not a channel file"):
        Channel.from_json(content.encode(), "the/file")


# In a store


def test_publish_read_roll_back(any_store: str, tmp_path: Path) -> None:
    assert read(any_store) is None
    first, second = put(any_store, tmp_path / "1", 1), put(any_store, tmp_path / "2", 2)
    now = read(any_store)
    assert now is not None
    assert (now.champion, now.previous) == (second, first)
    back = channels.rollback(any_store, now=later)
    assert back == read(any_store)
    assert back.champion.model_id == first.model_id
    assert back.champion.released_at == "2026-03-01T00:00:00+00:00"
    assert load(any_store).model_id == first.model_id
    assert channels.rollback(any_store, now=later).champion.model_id == second.model_id


def test_there_must_be_something_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"nothing serves in .* yet"):
        channels.rollback(str(tmp_path))
    only = put(str(tmp_path), tmp_path / "1", 1)
    with pytest.raises(ReleaseError, match=f"no model before {only.model_id}"):
        channels.rollback(str(tmp_path))


@pytest.mark.parametrize("damage", ["gone", "weights", "contract", "swapped"])
def test_a_rollback_to_a_damaged_model_is_refused_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    store = tmp_path / "store"
    first, second = put(str(store), tmp_path / "1", 1), put(str(store), tmp_path / "2", 2)
    folder = Path(model_folder(str(store), first.model_id))
    if damage == "gone":
        (folder / "policy.safetensors").unlink()
    elif damage == "weights":
        tamper_weights(folder)
    elif damage == "contract":
        edit_manifest(folder, contract="himari-state-99/1")
    else:
        make_policy(folder, seed=3)
    before = snapshot(store, "channels")
    with pytest.raises(ReleaseError, match=rf"cannot go back to {first.model_id}.*{second.model_id} still serves"):
        channels.rollback(str(store))
    assert snapshot(store, "channels") == before


def test_a_channel_changed_by_someone_else_is_not_overwritten(tmp_path: Path) -> None:
    seen = read(str(tmp_path))
    channels.publish(str(tmp_path), champion("a"), expected=seen)
    with pytest.raises(ReleaseError, match="changed by someone else"):
        channels.publish(str(tmp_path), champion("b"), expected=seen)


def test_of_two_releasers_into_a_bucket_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen the same channel, and the second one's look at it comes before the first one's write."""
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        real = storage.read_version

        def overtaken(uri: str) -> tuple[bytes, str]:
            monkeypatch.setattr(storage, "read_version", real)
            seen = real(uri)
            channels.publish("gs://bucket", champion("b"), expected=start)
            return seen

        start = channels.publish("gs://bucket", champion("a"), expected=None)
        monkeypatch.setattr(storage, "read_version", overtaken)
        with pytest.raises(ReleaseError, match="changed by someone else"):
            channels.publish("gs://bucket", champion("c"), expected=start)
        now = read("gs://bucket")
        assert now is not None
        assert now.champion == champion("b")


def test_a_rollback_that_does_not_prove_itself_changes_nothing(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first, second = put(store, tmp_path / "1", 1), put(store, tmp_path / "2", 2)
    asked: list[str] = []

    def refuse(candidate: Champion) -> None:
        asked.append(candidate.model_id)
        raise ReleaseError("it answers wrongly")

    with pytest.raises(
        ReleaseError, match=rf"cannot go back to {first.model_id}: it answers wrongly; {second.model_id}"
    ):
        channels.rollback(store, prove=refuse)
    now = read(store)
    assert asked == [first.model_id]
    assert now is not None
    assert now.champion == second


def test_one_at_a_time_in_one_store(tmp_path: Path) -> None:
    channels.publish(str(tmp_path), champion("a"), expected=None)
    with channels.exclusive(str(tmp_path)):
        with pytest.raises(ReleaseError, match=rf"another release .*process {os.getpid()}\): .*run the command again"):
            channels.rollback(str(tmp_path))
        with channels.exclusive(str(tmp_path / "other")):
            pass
    with channels.exclusive(str(tmp_path)):
        pass


def test_a_short_release_of_another_is_waited_for(tmp_path: Path) -> None:
    entered, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with channels.exclusive(str(tmp_path)):
            entered.set()
            enough.wait(120)

    other = threading.Thread(target=hold)
    other.start()
    assert entered.wait(120)
    with pytest.raises(ReleaseError, match="another release"), channels.exclusive(str(tmp_path), patience_seconds=0.1):
        pass
    ending = threading.Timer(0.1, enough.set)
    ending.start()
    with channels.exclusive(str(tmp_path), patience_seconds=120):
        assert enough.is_set()
    other.join()
    ending.join()


# Models


def test_storing_is_idempotent(any_store: str, tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "p")
    first, second = (store_policy(tmp_path / "p", any_store) for _ in range(2))
    assert (first.copied, second.copied) == (True, False)
    assert first.uri == second.uri == f"{any_store}/models/{policy.model_id}"
    assert load_folder(first.uri).manifest == policy.manifest


def test_the_same_weights_of_a_second_run_keep_the_first_manifest(tmp_path: Path) -> None:
    make_policy(tmp_path / "a", code_version="one")
    make_policy(tmp_path / "b", code_version="two")
    store_policy(tmp_path / "a", str(tmp_path))
    stored = store_policy(tmp_path / "b", str(tmp_path))
    assert not stored.copied
    assert stored.policy.manifest["code_version"] == "one"


def test_a_copy_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "p")
    folder = Path(model_folder(str(tmp_path), policy.model_id))
    folder.mkdir(parents=True)
    (folder / "policy.safetensors").write_bytes(b"half of it")
    assert store_policy(tmp_path / "p", str(tmp_path)).copied
    assert load_folder(str(folder)).model_id == policy.model_id


def test_other_weights_under_the_same_id_are_an_error(tmp_path: Path) -> None:
    make_policy(tmp_path / "p")
    stored = store_policy(tmp_path / "p", str(tmp_path))
    tamper_weights(Path(stored.uri))
    before = snapshot(tmp_path, "models")
    with pytest.raises(ReleaseError, match="holds other weights than the candidate of the same id"):
        store_policy(tmp_path / "p", str(tmp_path))
    assert snapshot(tmp_path, "models") == before


@pytest.mark.parametrize("model_id", ["", "..", ".hidden", "a/b", "a\\b", "a b", "x" * 129, "ü"])
def test_a_model_id_is_a_plain_name(tmp_path: Path, model_id: str) -> None:
    make_policy(tmp_path / "p")
    edit_manifest(tmp_path / "p", model_id=model_id)
    with pytest.raises(PolicyError, match="model id"):
        store_policy(tmp_path / "p", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_bucket_that_refuses_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        gcs.fail(403, times=5)
        with pytest.raises(SourceError, match=r"gs://bucket/channels/production\.json"):
            read("gs://bucket")
    with pytest.raises(ConfigurationError):
        read("s3://bucket")


def test_a_rollback_at_a_mistyped_address_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="nothing serves in"):
        channels.rollback(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []
