"""Identity tokens for a service on Cloud Run: of an account's file, of the machine, and used until they expire."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from google.auth import iam

from layer3.errors import ConfigurationError, SourceError
from serving.platforms.tagged import Tokens, identity_tokens
from tests.fakes import issuer
from tests.fakes.web import Handler, answering

SERVICE = "https://himari-abc-uc.a.run.app"


@pytest.fixture
def token_server() -> Iterator[str]:
    """Where a service account's own signature is exchanged for Google's."""

    class Exchange(Handler):
        def do_POST(self) -> None:
            asked = parse_qs(self.content().decode())["assertion"][0]
            claims = jwt.decode(asked, options={"verify_signature": False})
            said = issuer.claims(time.time(), aud=claims["target_audience"], email=claims["iss"])
            body = json.dumps({"id_token": issuer.token(said).removeprefix(b"Bearer ").decode()}).encode()
            self.reply(200, body, {"Content-Type": "application/json"})

    with answering(Exchange) as url:
        yield f"{url}/token"


def account_file(folder: Path, token_uri: str) -> str:
    key = issuer.private_key("first").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    said = {
        "type": "service_account",
        "client_email": "releaser@himari-tests.iam.gserviceaccount.com",
        "private_key": key.decode(),
        "token_uri": token_uri,
    }
    path = folder / "account.json"
    path.write_text(json.dumps(said))
    return str(path)


def test_an_accounts_file(token_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", account_file(tmp_path, token_server))
    token, expiry = identity_tokens(SERVICE)()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["aud"], claims["email"]) == (SERVICE, "releaser@himari-tests.iam.gserviceaccount.com")
    assert expiry == claims["exp"]


CI = "himari-dev-ci@himari-tests.iam.gserviceaccount.com"


@pytest.fixture
def federation() -> Iterator[str]:
    """Google's token exchange and its IAM credentials, for a workflow that acts as :data:`CI`."""
    seen: list[str] = []

    class Google(Handler):
        def do_POST(self) -> None:
            asked = self.content().decode()
            seen.append(self.path)
            if self.path == "/sts":
                kind = "urn:ietf:params:oauth:token-type:access_token"
                said = {"access_token": "f", "issued_token_type": kind, "token_type": "Bearer", "expires_in": 3600}
            elif self.path == f"/accounts/{CI}:generateAccessToken":
                said = {"accessToken": "a", "expireTime": "2100-01-01T00:00:00Z"}
            elif self.path == f"/accounts/{CI}:generateIdToken" and self.headers["Authorization"] == "Bearer a":
                claims = issuer.claims(time.time(), aud=json.loads(asked)["audience"], email=CI)
                said = {"token": issuer.token(claims).removeprefix(b"Bearer ").decode()}
            else:
                self.send_error(404)
                return
            self.reply(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    with answering(Google) as url:
        yield url
    assert seen == ["/sts", f"/accounts/{CI}:generateAccessToken", f"/accounts/{CI}:generateIdToken"]


def test_a_workflow_that_acts_as_an_account(federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What google-github-actions/auth leaves behind: .github/workflows/release.yml rolls back with it."""
    (tmp_path / "token").write_text("of-github")
    said = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/github",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{federation}/sts",
        "credential_source": {"file": str(tmp_path / "token")},
        "service_account_impersonation_url": f"{federation}/accounts/{CI}:generateAccessToken",
    }
    (tmp_path / "workflow.json").write_text(json.dumps(said))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "workflow.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "himari-tests")
    monkeypatch.setattr(iam, "_IAM_IDTOKEN_ENDPOINT", federation + "/accounts/{}:generateIdToken")
    token, expiry = identity_tokens(SERVICE)()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["aud"], claims["email"], claims["exp"]) == (SERVICE, CI, expiry)


def test_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(ConfigurationError, match=r"no identity token.*--impersonate-service-account"):
        Tokens(identity_tokens(SERVICE))()


def test_a_token_is_used_until_it_is_about_to_expire() -> None:
    now, fetched = [1000.0], []

    def source() -> tuple[str, float]:
        fetched.append(now[0])
        return f"token-{len(fetched)}", now[0] + 3600

    tokens = Tokens(source, wall=lambda: now[0])
    assert [tokens(), tokens()] == ["token-1", "token-1"]
    now[0] += 3479
    assert tokens() == "token-1"
    now[0] += 2
    assert [tokens(), tokens()] == ["token-2", "token-2"]
    assert len(fetched) == 2


@pytest.mark.parametrize(
    ("token", "said"),
    [(issuer.token(issuer.claims(0, email=None)).decode().removeprefix("Bearer "), "no account"), ("x", "be read")],
)
def test_whose_they_are(token: str, said: str) -> None:
    ours = issuer.token(issuer.claims(0, email=CI)).decode().removeprefix("Bearer ")
    assert Tokens(lambda: (ours, 9e9), wall=lambda: 0.0).account() == CI
    with pytest.raises(ConfigurationError, match=said):
        Tokens(lambda: (token, 9e9), wall=lambda: 0.0).account()


def test_a_machine_that_gives_none() -> None:
    def source() -> tuple[str, float]:
        raise SourceError("there is no metadata server")

    with pytest.raises(ConfigurationError, match="there is no metadata server"):
        Tokens(source)()
