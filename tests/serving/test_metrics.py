"""What /metrics says: valid for Prometheus, right to the last count, and never longer than its labels allow."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serving.access import AccessLog
from serving.metrics import BUCKETS, OTHER, ROUTES, Metrics
from serving.service import Service
from tests.serving.support import NEUTRAL, Client, make_policy

PREFIX = "himari_serving_"


def make_metrics(model_uri: str = "") -> Metrics:
    service = Service(model_uri)
    service.look()
    return Metrics(service, AccessLog(0, out=io.StringIO()))


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a page, as Prometheus' own reader finds it."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        assert family.name.startswith(PREFIX)
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(page: bytes, name: str, **labels: str) -> float:
    return samples(page)[name, frozenset(labels.items())]


def used(model_uri: str) -> Metrics:
    metrics = make_metrics(model_uri)
    for route in (*ROUTES, "/somewhere/else"):
        for status in (200, 404, 503):
            metrics.observe(route, status, 0.000123)
    return metrics


@pytest.mark.parametrize("model", ["ready", "refused", "none"])
def test_promtool_finds_nothing_to_say(tmp_path: Path, model: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    make_policy(tmp_path, seed=1)
    if model == "refused":
        (tmp_path / "policy.safetensors").write_bytes(b"")
    page = used("" if model == "none" else str(tmp_path)).render()
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_counts_are_those_of_the_answers() -> None:
    metrics = make_metrics()
    for _ in range(7):
        metrics.observe("/predict", 200, 0.001)
    metrics.observe("/predict", 422, 0.001)
    metrics.observe("/health", 503, 0.001)
    page = metrics.render()
    assert value(page, "requests_total", route="/predict", code="200") == 7
    assert value(page, "requests_total", route="/predict", code="422") == 1
    assert value(page, "requests_total", route="/health", code="503") == 1
    assert metrics.counts() == {"2xx": 7, "4xx": 1, "5xx": 1}
    assert value(page, "request_duration_seconds_count", route="/predict") == 8
    assert value(page, "request_duration_seconds_sum", route="/predict") == pytest.approx(0.008)


@given(st.lists(st.one_of(st.floats(0.0, 2.0), st.sampled_from(BUCKETS)), max_size=50))
def test_the_histogram_counts_what_is_no_longer_than_each_bound(seconds: list[float]) -> None:
    metrics = make_metrics()
    for each in seconds:
        metrics.observe("/predict", 200, each)
    found = samples(metrics.render())
    for bound in (*BUCKETS, float("inf")):
        shown = "+Inf" if bound == float("inf") else str(bound)
        expected = sum(each <= bound for each in seconds)
        key = ("request_duration_seconds_bucket", frozenset({("route", "/predict"), ("le", shown)}))
        assert found.get(key, 0) == expected


def test_no_caller_can_make_it_longer() -> None:
    metrics = make_metrics()
    for route in (*ROUTES, OTHER):
        for status in HTTPStatus:
            metrics.observe(route, status.value, 0.1)
    full = len(samples(metrics.render()))
    for number in range(10_000):
        metrics.observe(f"/secret/{number}", 404, 0.1)
        metrics.observe("/predict", 1_000 + number, 0.1)
    page = metrics.render()
    assert len(samples(page)) == full + 1  # one series for statuses that HTTP does not know
    assert value(page, "requests_total", route=OTHER, code="404") == 10_001
    assert b"secret" not in page


def test_the_model_that_serves_is_named(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    metrics = make_metrics(str(tmp_path))
    page = metrics.render()
    labels = {
        "version": policy.model_id,
        "sha256": policy.manifest["policy_sha256"],
        "contract": policy.manifest["contract"],
    }
    assert value(page, "model_info", **labels) == 1
    assert value(page, "ready") == 1
    assert not any(name == "model_refused" for name, _ in samples(page))


def test_why_no_model_serves_is_told_by_its_kind() -> None:
    page = make_metrics("nowhere").render()
    assert value(page, "ready") == 0
    assert value(page, "model_refused", kind="PolicyError") == 1
    assert value(page, "model_refusals_total") == 1
    assert not any(name == "model_info" for name, _ in samples(page))


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "\\n", '\\"', "é中"])
def test_a_label_may_hold_anything(tmp_path: Path, text: str) -> None:
    make_policy(tmp_path, data={"end": text})
    page = make_metrics(str(tmp_path)).render()
    (version,) = [dict(labels)["version"] for name, labels in samples(page) if name == "model_info"]
    assert version.startswith(text.replace("-", "")[:10])


def test_what_others_count_is_shown(tmp_path: Path) -> None:
    metrics = make_metrics()
    metrics.in_flight, metrics.shed, metrics.rate_limited, metrics.unauthorised = 1, 2, 3, 4
    page = metrics.render()
    names = ("in_flight_requests", "shed_total", "rate_limited_total", "unauthorised_total")
    assert [value(page, name) for name in names] == [1, 2, 3, 4]
    assert 2**20 < value(page, "resident_memory_bytes") < 2**40
    assert value(page, "cpu_seconds_total") > 0.0


def test_nothing_is_imported_for_it() -> None:
    code = "import sys; from serving.metrics import Metrics; print([m for m in sys.modules if 'prometheus' in m])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert found.stdout == "[]\n"


def test_through_the_door(client: Client) -> None:
    def asked(**labels: Any) -> float:
        page = client.ask("GET", "/metrics")
        assert (page.status, page.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return samples(page.raw).get(("requests_total", frozenset(labels.items())), 0.0)

    before = asked(route="/predict", code="200")
    for _ in range(5):
        assert client.predict(NEUTRAL).status == 200
    assert asked(route="/predict", code="200") == before + 5
    client.ask("GET", "/wp-login.php")
    assert asked(route="other", code="404") >= 1
