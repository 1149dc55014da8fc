"""``python -m serving.release … --cloud FILE``: from the command line to what a caller is answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from serving import release as module
from serving.release import main
from tests.serving.cloud import IMAGE, STORE, Desk


@pytest.fixture
def file(cloud: Desk) -> str:
    """A configuration like config/cloud.yaml, whose endpoints are this machine's."""
    images = cloud.folder / "images.json"
    images.write_text(json.dumps({"components": IMAGE, "serving": IMAGE}))
    path = cloud.folder / "cloud.yaml"
    said = {
        "project": "himari-tests",
        "region": "us-central1",
        "store": STORE,
        "service": "himari",
        "serving_service_account": "himari-serving",
        "images_file": str(images),
        "canary_window_seconds": 0.1,
        "endpoints": {"run": cloud.run.url, "monitoring": cloud.run.url, "storage": cloud.gcs.url},
    }
    path.write_text(yaml.safe_dump(said))
    return str(path)


def promote(cloud: Desk, file: str, seed: int, *more: str) -> int:
    arguments = ["--candidate", str(cloud.candidate(seed)), "--run-id", f"run-{seed}", *more]
    return main(["promote", "--cloud", file, *arguments])


def test_promote_status_rollback(cloud: Desk, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--cloud", file]) == 1
    assert "no such service in us-central1 yet" in capsys.readouterr().out
    assert promote(cloud, file, 1) == 0
    assert promote(cloud, file, 2) == 0
    output = capsys.readouterr()
    old, new = cloud.model(1), cloud.model(2)
    assert f"{new} serves now; a rollback returns to {old}" in output.out
    assert re.search(r"canary 50 % ok, .*: our questions: candidate 0 of \d+ failed", output.err)
    assert (cloud.champion(), cloud.serving()) == (new, {new: 100})
    (account,) = {each.service_account for each in cloud.run.revisions.values()}
    assert account == "himari-serving@himari-tests.iam.gserviceaccount.com"

    assert main(["status", "--cloud", file]) == 0
    said = capsys.readouterr().out
    assert f"champion  {new}" in said
    assert f"{new}  tag champion" in said
    (cloud.folder / "images.json").unlink()  # no image is needed to go back to what is there
    assert main(["rollback", "--cloud", file]) == 0
    assert f"{old} serves again; left {new}" in capsys.readouterr().out
    assert cloud.serving() == {old: 100}


def test_a_release_that_was_cut_short_is_told(cloud: Desk, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = cloud.release(1).model_id, cloud.model(2)

    def cut(line: str) -> None:
        if line.startswith("canary 50 % ok"):
            cloud.run.google.fail("GetService", status=403)  # so that nothing can be put back
            raise KeyboardInterrupt
        if "run `make rollback CLOUD=FILE`" in line:
            told.append(line)

    told: list[str] = []

    with pytest.raises(KeyboardInterrupt):
        cloud.release(2, log=cut)
    assert "the traffic could not be put back" in told[0]
    assert cloud.serving() == {old: 50, new: 50}
    assert main(["status", "--cloud", file]) == 1
    output = capsys.readouterr().out
    assert "a release was cut short" in output
    assert f"make rollback puts {old} back" in output
    assert main(["rollback", "--cloud", file]) == 0
    output = capsys.readouterr()
    assert f"{old} serves again\n" in output.out
    assert "run it again to go back further" in output.err
    assert cloud.serving() == {old: 100}


def test_even_a_bug_of_ours_puts_the_traffic_back(cloud: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    old = cloud.release(1).model_id
    monkeypatch.setattr(module.channels, "publish", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cloud.release(2)
    assert (cloud.champion(), cloud.serving()) == (old, {old: 100})


def test_without_a_service_a_release_names_the_champion_in_the_bucket(
    cloud: Desk, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(file)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "service": ""}))
    assert promote(cloud, file, 1) == 0
    assert cloud.champion() == cloud.model(1)
    assert cloud.run.services == {}
    assert main(["status", "--cloud", file]) == 0
    assert "pass their self-test" in capsys.readouterr().out


def test_refusals_on_the_command_line(cloud: Desk, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.run.google.fail("GetService", status=403, message="Permission 'run.services.get' denied", times=99)
    assert promote(cloud, file, 1) == 1
    assert "run.services.get" in (said := capsys.readouterr().err)
    assert "roles/run.developer on the service himari" in said
    (cloud.folder / "images.json").unlink()
    assert promote(cloud, file, 1) == 1
    assert "images.json" in capsys.readouterr().err
    assert main(["status", "--cloud", str(cloud.folder / "no.yaml")]) == 1
    assert "no.yaml" in capsys.readouterr().err


def test_nobody_is_let_in_before_it_is_said_who(cloud: Desk, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote(cloud, file, 1) == 0
    capsys.readouterr()
    assert promote(cloud, file, 2, "--allow-unauthenticated") == 1
    assert "set id_token_emails (their accounts) or api_keys_secret" in capsys.readouterr().err
    path = Path(file)
    said = yaml.safe_load(path.read_text()) | {"id_token_emails": "desk@x.example"}
    path.write_text(yaml.safe_dump(said))
    assert promote(cloud, file, 2, "--allow-unauthenticated") == 0
    assert cloud.run.only().invoker_iam_disabled
    assert promote(cloud, file, 3) == 0
    assert not cloud.run.only().invoker_iam_disabled
    path.write_text(yaml.safe_dump(said | {"allow_unauthenticated": True}))
    assert promote(cloud, file, 2) == 0
    assert cloud.run.only().invoker_iam_disabled


@pytest.mark.parametrize("arguments", [["status"], ["status", "--store", ".", "--cloud", "x.yaml"]])
def test_one_place_is_named(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
