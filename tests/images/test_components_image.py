"""The image of the pipelines' steps without Docker: the files that it holds, and steps that run from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compile import compile_pipelines
from tests.fakes.docker import Stage, build
from tests.images.arguments import ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def components(place: Path, source: Path) -> Stage:
    """The components' image but for its packages: installing torch is not for every test run."""
    dockerfile = place / "Dockerfile.components"
    said = (ROOT / "components/Dockerfile").read_text()
    dockerfile.write_text(said.replace("COPY --from=build /opt/venv /opt/venv\n", ""))
    return build(dockerfile, source, place / "components", ARGUMENTS, left_out=("python -m venv", "/opt/venv/bin"))


def in_components(image: Stage, *arguments: str, cwd: Path | None = None) -> str:
    environment = image.inherited() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd or image.path(image.workdir),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_step_runs_from_the_components_image_by_the_pipelines_own_command(components: Stage, tmp_path: Path) -> None:
    (path, *_) = compile_pipelines(tmp_path / "spec")
    container = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"]["exec-allot"]["container"]
    assert container["command"] == components.entrypoint
    (tmp_path / "features").touch()
    features = {"name": "features", "type": {"schemaTitle": "system.Dataset"}, "uri": str(tmp_path / "features")}
    given = {
        "inputs": {
            "parameterValues": {"folds": 0, "kind": "rolling", "groups": 2},
            "artifacts": {"features": {"artifacts": [features]}},
        },
        "outputs": {
            "outputFile": str(tmp_path / "result.json"),
            "parameters": {"Output": {"outputFile": str(tmp_path / "out")}},
        },
    }
    arguments = [json.dumps(given) if word == "{{$}}" else word for word in container["args"]]
    said = in_components(components, *container["command"][1:], *arguments)
    assert "No walk-forward was asked for" in said
    assert json.loads((tmp_path / "result.json").read_text())["parameterValues"] == {"Output": [[]]}


def test_every_step_is_found_in_the_components_image(components: Stage) -> None:
    code = (
        "import sys, configparser, pathlib\n"
        "from kfp.dsl import base_component, component_factory\n"
        "from importlib import import_module\n"
        "steps = configparser.ConfigParser(); steps.read('kfp_config.ini')\n"
        "for name, file in steps['Components'].items():\n"
        "    module = import_module('components.' + pathlib.Path(file).stem)\n"
        "    assert hasattr(module, name), name\n"
        "    print(name, module.__file__)\n"
        "import layer3.workflow, serving.release\n"
        "print('rest', layer3.workflow.__file__); print('rest', serving.release.__file__)\n"
    )
    found = [line.split() for line in in_components(components, "-c", code).splitlines()]
    assert len(found) > 10
    assert {"train", "deploy", "rest"} <= {name for name, _ in found}
    assert all(file.startswith(str(components.path("/app"))) for _, file in found)


def test_no_step_needs_the_rest_of_the_project(components: Stage) -> None:
    assert sorted(path.name for path in components.path("/app").iterdir()) == ["components", "layer3", "serving"]
    imports = re.compile(r"^\s*(?:from|import) (pipelines|tests|bench|compile)\b", re.MULTILINE)
    assert [path for path in components.path("/app").rglob("*.py") if imports.search(path.read_text())] == []
