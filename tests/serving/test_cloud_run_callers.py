"""Who may call a service on Cloud Run: IAM says it, or the server itself, and never nobody."""

from __future__ import annotations

import http.client
import json
import time

import pytest
from google.cloud import run_v2

from layer3.errors import ReleaseError
from tests.fakes import issuer
from tests.fakes.servers import wait_for
from tests.serving.cloud import SERVICE, Desk, refused
from tests.serving.support import NEUTRAL

KEY = "the-desks-own-key-0123456789"
OPENED: dict[str, object] = {"allow_unauthenticated": True, "id_token_emails": issuer.EMAIL}


def ask(cloud: Desk, path: str, authorization: bytes | None, **more: str) -> int:
    """Status of the service's own address; underscores in the names of the headers ``more`` stand for dashes."""
    connection = http.client.HTTPConnection(cloud.run.only().uri.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    connection.request("POST", path, json.dumps({"state": NEUTRAL}), headers)
    status = connection.getresponse().status
    connection.close()
    return status


def newest(cloud: Desk) -> run_v2.Revision:
    return max(cloud.run.revisions.values(), key=lambda each: each.create_time)


def bearer(cloud: Desk, email: str) -> bytes:
    return issuer.token(issuer.claims(time.time(), aud=cloud.run.only().uri, email=email))


def test_callers_that_iam_does_not_check_are_checked_by_the_server(served: Desk) -> None:
    checks: list[tuple[str, bool]] = []
    note = lambda line: checks.append((line, served.run.only().invoker_iam_disabled))  # noqa: E731
    new = served.release(2, log=note, **OPENED).model_id
    assert [off for line, off in checks if not line.startswith("promote ok")] == [False] * (len(checks) - 1)
    assert served.run.only().invoker_iam_disabled
    assert "callers are checked by the server itself" in served.platform().describe(None)[0]
    asked = {each.name: each.value for each in newest(served).containers[0].env}
    assert (asked["AUTH"], asked["ID_TOKEN_AUDIENCE"]) == ("id-token", ",".join(served.run.only().urls))
    assert ask(served, "/predict", None) == 401
    assert ask(served, "/predict", bearer(served, issuer.EMAIL)) == 200
    assert ask(served, "/predict", bearer(served, "stranger@gmail.com")) == 403
    assert served.release(2, **OPENED).outcome == "already serving"
    served.rollback()  # to a server that asks nobody: IAM does again
    assert not served.run.only().invoker_iam_disabled
    assert "callers are checked by IAM" in served.platform().describe(None)[0]
    assert served.serving() != {new: 100}


def test_between_servers_that_check_callers_the_way_back_locks_nobody_out(served: Desk) -> None:
    first = served.release(2, **OPENED).model_id
    served.release(3, **OPENED)
    checks: list[bool] = []
    assert (
        served.rollback(log=lambda _: checks.append(served.run.only().invoker_iam_disabled)).champion.model_id == first
    )
    assert set(checks) == {True}
    assert served.run.only().invoker_iam_disabled
    assert ask(served, "/predict", bearer(served, issuer.EMAIL)) == 200


def test_who_goes_back_must_be_one_whom_the_server_answers(served: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    served.release(2, **OPENED)
    served.release(3)
    other = "other@himari-tests.iam.gserviceaccount.com"
    served.run.front.invokers.add(other)
    with monkeypatch.context() as patch:
        patch.setattr(served.run.front, "account", other)
        with pytest.raises(ReleaseError, match=rf"and not {other}: run the same command as one of them"):
            served.rollback()
    assert served.serving() == {served.model(3): 100}
    served.rollback()
    assert served.serving() == {served.model(2): 100}


@pytest.mark.parametrize("everybody", ["allUsers", "allAuthenticatedUsers"])
def test_a_server_that_asks_nobody_never_stands_where_iam_lets_everybody_in(
    served: Desk, monkeypatch: pytest.MonkeyPatch, everybody: str
) -> None:
    monkeypatch.setitem(served.run.policies, SERVICE, {"roles/run.invoker": {everybody, "user:me@x.example"}})
    refused(served, 2, rf"IAM lets {everybody} call himari.*remove-iam-policy-binding himari .*--member={everybody}")
    assert len(served.run.revisions) == 1
    served.release(2, **OPENED)
    # Of everybody with an account IAM would still ask for a token, and take its signature out.
    assert served.run.only().invoker_iam_disabled == (everybody == "allAuthenticatedUsers")
    assert served.release(2, **OPENED).outcome == "already serving"
    with pytest.raises(ReleaseError, match=f"IAM lets {everybody} call himari"):
        served.rollback()
    assert served.serving() == {served.model(2): 100}


def test_callers_that_iam_does_not_check_may_have_a_key(served: Desk) -> None:
    account = served.target().service_account
    opened: dict[str, object] = {"allow_unauthenticated": True, "api_keys_secret": "keys"}
    refused(served, 2, r"secrets/keys/versions/latest was not found", **opened)
    served.run.secrets.put("keys", f"desk:{KEY}")
    refused(served, 2, r"Permission denied on secret: .*secrets/keys.*roles/secretmanager\.secretAccessor", **opened)
    served.run.secrets.put("keys", f"desk:{KEY}", account)
    served.release(2, **opened)
    assert served.run.only().invoker_iam_disabled
    assert ask(served, "/predict", None) == 401
    assert ask(served, "/predict", None, X_API_Key="another-key-0123456789") == 401
    assert ask(served, "/predict", None, X_API_Key=KEY) == 200
    assert ask(served, "/predict", bearer(served, issuer.EMAIL)) == 403  # a key is all that gets anybody in, but us
    assert ask(served, "/predict", bearer(served, served.run.front.account)) == 200
    served.run.secrets.put("keys", f"desk:{KEY}-2")
    wait_for(lambda: ask(served, "/predict", None, X_API_Key=f"{KEY}-2") == 200)
    assert ask(served, "/predict", None, X_API_Key=KEY) == 401


def test_a_releaser_that_could_not_switch_iams_check_off_does_it_with_the_same_command(served: Desk) -> None:
    served.run.google.fail("UpdateService", status=403, skip=4)
    with pytest.raises(ReleaseError, match="was released and serves, but step 'promote' failed"):
        served.release(2, **OPENED)
    assert not served.run.only().invoker_iam_disabled
    served.release(2, **OPENED)
    assert served.run.only().invoker_iam_disabled
    assert served.serving() == {served.model(2): 100}
    assert len(served.run.revisions) == 2
    assert served.release(2, **OPENED).outcome == "already serving"
    assert served.rollback().champion.model_id == served.model(1)


def test_a_service_that_is_not_there_cannot_be_opened(cloud: Desk) -> None:
    with pytest.raises(ReleaseError, match=r"has no URL .*release once without allow_unauthenticated"):
        cloud.release(1, **OPENED)
    assert cloud.run.services == {}
