"""Which model serves: loaded, watched, swapped and refused, with clocks of our own and through the front door."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import contract, storage
from layer3.agent.policy_file import FILES
from layer3.champion import CHANNEL, Channel, read
from serving.channels import promoted
from serving.models import store_policy
from serving.problems import Problem
from serving.service import Service, Serving
from serving.source import Source
from tests.fakes.clock import Clock
from tests.fakes.gcs import FakeGcs
from tests.serving.conftest import champion_of
from tests.serving.support import JSON, NEUTRAL, edit_manifest, make_policy, serve, tamper_weights

WATCH = 2.0


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture(params=["local", "gs"])
def root(request: pytest.FixtureRequest, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store whose champion is the policy of seed 1."""
    if request.param == "local":
        yield str(store)
        return
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        for path in store.rglob("*"):
            if path.is_file():
                gcs.put("bucket", f"deep/{path.relative_to(store)}", path.read_bytes())
        yield "gs://bucket/deep"


def channel_of(root: str) -> str:
    return storage.join(root, *CHANNEL)


def service_of(root: str, clock: Callable[[], float]) -> Service:
    return Service(channel_of(root), watch_seconds=WATCH, clock=clock, wall=lambda: 1_700_000_000.0)


def offer(root: str, folder: Path, *, at: str = "2026-03-01T00:00:00+00:00", **changes: str) -> str:
    """Copy the policy of ``folder`` into the store and name it in the channel; ``changes`` are the channel's."""
    policy = store_policy(folder, root).policy
    name(root, replace(champion_of(policy, "run-2", at), **changes))
    return policy.model_id


def name(root: str, champion: Any) -> None:
    storage.write_bytes(channel_of(root), promoted(read(root), champion).to_json().encode())


def test_a_new_champion_takes_the_place_of_the_old_one(
    root: str, candidate: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service = service_of(root, clock)
    with caplog.at_level(logging.INFO, "serving"):
        service.look()
        first = service.require()
        new = offer(root, candidate)
        pause = service.look()
    second = service.require()
    assert first.model_version != second.model_version == new
    assert (second.released_at, second.run_id) == ("2026-03-01T00:00:00+00:00", "run-2")
    assert second.loaded_at == "2023-11-14T22:13:20+00:00"
    assert pause is not None
    assert 0.9 * WATCH <= pause <= 1.1 * WATCH
    assert (service.swaps, service.refusals, service.unreachable, service.refused) == (1, 0, 0, None)
    assert f"model {new} is ready in place of {first.model_version}" in caplog.text
    # Whoever still answers with the old one may go on.
    assert first.policy.act(NEUTRAL) != second.policy.act(NEUTRAL)


def test_the_model_is_not_loaded_again_while_the_channel_names_the_same(
    root: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(root, clock)
    service.look()
    first = service.require()
    asked: list[str] = []
    for way, real in (("follow", Source.follow), ("read", Source.read)):
        monkeypatch.setattr(Source, way, lambda its, uri, real=real: asked.append(uri) or real(its, uri))
    for _ in range(5):
        service.look()
    assert service.current is first
    channel = read(root)
    assert channel is not None
    name(root, replace(channel.champion, released_at="2026-04-01T00:00:00+00:00", run_id="run-9"))
    asked.clear()
    service.look()
    assert service.require() == replace(first, released_at="2026-04-01T00:00:00+00:00", run_id="run-9")
    assert service.require().policy is first.policy
    assert asked == [channel_of(root)]
    assert service.swaps == 0


def test_the_same_weights_under_another_name_are_another_model(root: str, tmp_path: Path, clock: Clock) -> None:
    service = service_of(root, clock)
    service.look()
    first = service.require()
    make_policy(tmp_path / "later", seed=1, data={"end": "2026-02-01T00:00:00+00:00"})
    new = offer(root, tmp_path / "later")
    service.look()
    second = service.require()
    assert (second.sha256, second.model_version) == (first.sha256, new)
    assert first.model_version != new
    assert service.swaps == 1


def damaged(folder: Path) -> None:
    tamper_weights(folder)


def of_another_contract(folder: Path) -> None:
    edit_manifest(folder, contract="himari-state-12/7")


def of_another_network(folder: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden[0]["multiplier"] = 0.123
    edit_manifest(folder, golden=golden)


def under_another_name(folder: Path) -> None:
    edit_manifest(folder, model_id="20300101-ffffffffffff")


def of_another_day(folder: Path) -> None:
    make_policy(folder, seed=2, data={"end": "2030-01-01T00:00:00+00:00"})


BAD = {
    damaged: ("PolicyError", "policy.safetensors has sha256"),
    of_another_contract: ("ContractError", "himari-state-12/7"),
    of_another_network: ("PolicyError", "its own golden pairs come out"),
    of_another_day: ("PolicyError", "the files there say that they are 20300101-"),
    under_another_name: ("PolicyError", "20300101-ffffffffffff"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_new_model_is_refused_and_the_old_one_stays(
    root: str, candidate: Path, clock: Clock, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    service = service_of(root, clock)
    service.look()
    first = service.require()
    policy = store_policy(candidate, root).policy
    spoil(candidate)
    for file in FILES:
        storage.write_bytes(storage.join(root, "models", policy.model_id, file), (candidate / file).read_bytes())
    name(root, champion_of(policy))
    kind, said = BAD[spoil]
    for _ in range(4):  # the same offer is refused once, however often it is looked at
        assert service.look() is not None
        clock.now += 61.0
    assert service.current is first
    assert (service.swaps, service.refusals, service.unreachable) == (0, 1, 0)
    assert service.health()[0] == HTTPStatus.OK
    refused = service.refused
    assert refused is not None
    assert refused.kind == kind
    assert said in refused.reason
    assert service.status()["refused"] == {"reason": refused.reason, "at": "2023-11-14T22:13:20+00:00"}
    assert root not in refused.reason
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert f"{first.model_version} stays, {channel_of(root)}" in errors[0]
    # What was wrong is put right under the same name.
    make_policy(candidate, seed=2)
    for file in FILES:
        storage.write_bytes(storage.join(root, "models", policy.model_id, file), (candidate / file).read_bytes())
    service.look()
    assert service.require().model_version == policy.model_id
    assert (service.swaps, service.refused) == (1, None)


def test_a_refused_model_is_tried_again_at_growing_intervals(
    store: Path, candidate: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(str(store), clock)
    service.look()
    offer(str(store), candidate, policy_sha256="0" * 64)
    tries: list[float] = []
    began, load = clock.now, sys.modules["serving.service"].load_champion
    monkeypatch.setattr("serving.service.load_champion", lambda *given: tries.append(clock.now - began) or load(*given))
    for _ in range(200):
        service.look()
        clock.now += 1.0
    assert tries == [0.0, 4.0, 12.0, 28.0, 60.0, 120.0, 180.0]
    # Another offer is tried at once.
    offer(str(store), candidate)
    service.look()
    assert service.swaps == 1


def test_going_back_to_what_serves_ends_a_refusal(store: Path, candidate: Path, clock: Clock) -> None:
    service = service_of(str(store), clock)
    service.look()
    before = read(str(store))
    assert before is not None
    offer(str(store), candidate, policy_sha256="0" * 64)
    service.look()
    assert service.refused is not None
    name(str(store), before.champion)
    service.look()
    assert service.refused is None
    assert service.swaps == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model_id": 5}', b"\xff\xfe"])
def test_a_channel_that_is_none_is_refused_and_the_old_model_stays(store: Path, clock: Clock, content: bytes) -> None:
    service = service_of(str(store), clock)
    service.look()
    before = storage.read_bytes(channel_of(str(store)))
    for refusals in (1, 2):
        storage.write_bytes(channel_of(str(store)), content)
        service.look()
        assert service.health()[0] == HTTPStatus.OK
        assert service.refusals == refusals
        assert service.refused is not None
        assert "channels/production.json is not a channel file" in service.refused.reason
        storage.write_bytes(channel_of(str(store)), before)  # to the byte
        service.look()
        assert service.refused is None


def test_a_channel_that_is_gone_for_a_while_changes_nothing(
    store: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service = service_of(str(store), clock)
    service.look()
    first, content = service.require(), (store / "channels/production.json").read_bytes()
    (store / "channels/production.json").unlink()
    for _ in range(100):
        service.look()
        clock.now += 1.0
    assert (service.unreachable, service.refusals, service.current) == (100, 0, first)
    assert service.health()[0] == HTTPStatus.OK
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 2  # one a minute
    storage.write_bytes(channel_of(str(store)), content)
    service.look()
    assert (service.unreachable, service.swaps) == (100, 0)


def test_a_bucket_that_fails_for_a_while_changes_nothing(
    store: Path, candidate: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        offer("gs://bucket", store.parent / "champion")
        service = service_of("gs://bucket", clock)
        service.look()
        first = service.require()
        gcs.fail(403)
        service.look()
        assert (service.unreachable, service.refusals, service.current) == (1, 0, first)
        new = offer("gs://bucket", candidate)
        load = sys.modules["serving.service"].load_champion
        with monkeypatch.context() as patch:  # the channel can be read, the model not yet
            patch.setattr("serving.service.load_champion", lambda *given: gcs.fail(403) or load(*given))
            service.look()
        assert (service.unreachable, service.refusals, service.current) == (2, 0, first)
        service.look()
        assert service.require().model_version == new


@pytest.mark.parametrize("kind", ["folder", "channel"])
def test_what_is_not_there_yet_is_waited_for(store: Path, tmp_path: Path, clock: Clock, kind: str) -> None:
    """A server that starts before the first release, or before its volume is mounted."""
    model = next((store / "models").iterdir())
    uri = str(tmp_path / "late" / (f"models/{model.name}" if kind == "folder" else "channels/production.json"))
    service = Service(uri, watch_seconds=WATCH, clock=clock)
    pause = service.look()
    assert pause is not None
    assert service.current is None
    assert service.health()[1]["status"] == "unavailable"
    shutil.copytree(store, tmp_path / "late")
    clock.now += pause
    assert (service.look() is None) is (kind == "folder")
    assert service.require().model_version == model.name
    assert service.swaps == 0


@pytest.mark.parametrize("uri", ["", "s3://bucket/channels/production.json"])
def test_an_address_that_never_helps_is_looked_at_once(uri: str, clock: Clock) -> None:
    service = Service(uri, clock=clock)
    assert service.look() is None
    assert service.health()[1]["status"] == "unavailable"


def test_before_the_first_look_it_is_loading(clock: Clock) -> None:
    service = Service("somewhere", watch_seconds=7.5, clock=clock)
    clock.now += 3.0
    status, body = service.health()
    assert (status, body["status"], body["uptime_seconds"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "loading", 3.0)
    with pytest.raises(Problem, match="no model serves: the model is being loaded") as loading:
        service.require()
    assert loading.value.headers == {"Retry-After": "1"}
    service.look()
    with pytest.raises(Problem, match="no model serves: no policy at somewhere") as unavailable:
        service.require()
    assert unavailable.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert unavailable.value.headers == {"Retry-After": "8"}


def test_draining_is_said_first_and_predictions_go_on(store: Path, clock: Clock) -> None:
    service = service_of(str(store), clock)
    service.look()
    service.drain()
    status, body = service.health()
    assert (status, body["status"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "draining")
    assert service.require().model_version == body["model_version"]


def test_status_tells_what_serves_and_no_path(tmp_path: Path, clock: Clock) -> None:
    data = {
        "source": "/home/somebody/candles.parquet",
        "sha256": "ab" * 32,
        "start": "2024-01-01T00:00:00+00:00",
        "end": "2026-01-01T00:00:00+00:00",
        "interval_seconds": 3_600,
    }
    policy = make_policy(tmp_path / "policy", members=2, data=data, symbol="BTC-USD", synthetic=False)
    service = Service(str(tmp_path / "policy"), clock=clock, wall=lambda: 0.0)
    assert service.look() is None
    clock.now += 12.0
    assert service.status() == {
        "status": "ready",
        "model_version": policy.model_id,
        "contract": contract.VERSION,
        "uptime_seconds": 12.0,
        "model": {
            "id": policy.model_id,
            "sha256": policy.manifest["policy_sha256"],
            "contract": contract.VERSION,
            "members": 2,
            "trained_on": {
                **{key: value for key, value in data.items() if key != "source"},
                "symbol": "BTC-USD",
                "synthetic": False,
            },
            "released_at": None,
            "run_id": None,
            "loaded_at": "1970-01-01T00:00:00+00:00",
        },
        "watching": "nothing: a policy folder never changes",
        "swaps": 0,
        "refusals": 0,
        "unreachable": 0,
        "refused": None,
    }


def test_google_is_imported_for_its_buckets_only(store: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # an import of it would fail
    service = service_of(str(store), clock)
    service.look()
    assert service.current is not None


def test_the_thread_ends_with_the_service(store: Path) -> None:
    service = Service(channel_of(str(store)), watch_seconds=0.05)
    before = sys.getswitchinterval()
    service.start()
    try:
        assert sys.getswitchinterval() < before
        deadline = time.monotonic() + 120.0
        while service.current is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        service.close()
    assert sys.getswitchinterval() == before
    assert not any(thread.name == "model" for thread in threading.enumerate())


def test_swapping_keeps_no_model_behind(store: Path, tmp_path: Path, clock: Clock) -> None:
    service = service_of(str(store), clock)
    folders = [tmp_path / f"seed{seed}" for seed in (11, 12)]
    for seed, folder in zip((11, 12), folders, strict=True):
        make_policy(folder, seed=seed)
        offer(str(store), folder)
    channels = [_naming(store, folder) for folder in folders]
    held: list[int] = []
    for turn in range(400):
        storage.write_bytes(channel_of(str(store)), channels[turn % 2])
        service.look()
        if turn in (100, 399):
            held.append(_resident())
    assert service.swaps == 399
    assert held[1] - held[0] < 8 * 2**20  # 300 models are 90 MiB


def _naming(store: Path, folder: Path) -> bytes:
    manifest = json.loads((folder / "manifest.json").read_text())
    found = read(str(store))
    assert found is not None
    champion = replace(found.champion, model_id=manifest["model_id"], policy_sha256=manifest["policy_sha256"])
    return Channel(champion).to_json().encode()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * 4096


def test_champions_are_swapped_under_load_without_a_failed_request(store: Path, tmp_path: Path) -> None:
    """Through the front door: every answer is one of the two models' own, byte for byte."""
    answers: dict[str, float] = {}
    channels = []
    for seed in (21, 22):
        folder = tmp_path / f"seed{seed}"
        policy = make_policy(folder, seed=seed)
        offer(str(store), folder)
        answers[policy.model_id] = float(policy.act(np.zeros(16))[0])
        channels.append(_naming(store, folder))
    seen: list[tuple[int, str, float]] = []
    enough = threading.Event()
    with serve(channel_of(str(store)), WATCH_SECONDS="0.05") as client:
        client.wait_for_health("ready")

        def ask() -> None:
            while not enough.is_set():
                answer = client.ask("POST", "/predict", json.dumps({"state": NEUTRAL}), JSON)
                seen.append((answer.status, answer.body["model_version"], answer.body["position_multiplier"]))

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        try:
            for turn in range(20):
                storage.write_bytes(channel_of(str(store)), channels[turn % 2])
                expected = json.loads(channels[turn % 2])["model_id"]
                deadline = time.monotonic() + 120.0
                while client.health().body["model_version"] != expected:
                    assert time.monotonic() < deadline
        finally:
            enough.set()
            for asker in askers:
                asker.join()
        status = client.ask("GET", "/status").body
    assert {code for code, _, _ in seen} == {200}
    assert {version for _, version, _ in seen} == set(answers)
    assert all(answers[version] == pytest.approx(multiplier, abs=0.0) for _, version, multiplier in seen)
    assert status["swaps"] >= 19
    assert status["refusals"] == status["unreachable"] == 0


def test_a_refusal_is_seen_in_status_and_metrics_while_health_stays_good(store: Path, candidate: Path) -> None:
    with serve(channel_of(str(store)), WATCH_SECONDS="0.05") as client:
        first = client.wait_for_health("ready").body["model_version"]
        offer(str(store), candidate, policy_sha256="0" * 64)
        deadline = time.monotonic() + 120.0
        while (status := client.ask("GET", "/status").body)["refused"] is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "is not the model that was released" in status["refused"]["reason"]
        assert str(store) not in json.dumps(status)
        assert client.health().status == 200
        assert client.predict(NEUTRAL).body["model_version"] == first
        page = client.ask("GET", "/metrics").raw.decode()
        assert 'himari_serving_model_refused{kind="PolicyError"} 1' in page
        assert "himari_serving_model_refusals_total 1" in page
        assert "himari_serving_ready 1" in page


def test_a_serving_model_cannot_be_changed() -> None:
    assert Serving.__dataclass_params__.frozen  # type: ignore[attr-defined]
