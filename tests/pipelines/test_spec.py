"""Reading a compiled spec."""

import copy
import sys

import pytest
import yaml

import compile as compiler
from pipelines.defaults import MEMBERS
from pipelines.spec import LOCAL_COMMAND, branches, defaults, leaves, localised


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path, _ = compiler.compile_pipelines(tmp_path_factory.mktemp("build"))
    return yaml.safe_load(path.read_text())


def test_the_local_twin_differs_in_command_prefix_and_image_and_nothing_else(spec):
    before = copy.deepcopy(spec)
    twin = localised(spec, "0123abcd")
    assert spec == before
    for name, executor in twin["deploymentSpec"]["executors"].items():
        container = executor["container"]
        original = spec["deploymentSpec"]["executors"][name]["container"]
        assert container["command"] == list(LOCAL_COMMAND)
        assert container["image"] == "python-himari-local:0123abcd"
        assert container["args"] == original["args"]
        container["command"], container["image"] = original["command"], original["image"]
    assert twin == spec


def test_the_local_command_is_this_very_python():
    assert LOCAL_COMMAND[0] == sys.executable
    assert "kfp.dsl.executor_main" in LOCAL_COMMAND


def test_steps_in_order_with_what_they_wait_for(spec):
    order = leaves(spec)
    assert [leaf.name for leaf in order] == [
        "ingest",
        "allot",
        "train",
        "walk",
        "evaluate",
        "gate",
        "reject",
        "register",
        "deploy",
        "notify",
    ]
    waits = {leaf.name: set(leaf.depends_on) for leaf in order}
    assert waits == {
        "ingest": set(),
        "allot": {"ingest"},
        "walk": {"allot", "ingest"},
        "train": {"ingest"},
        "evaluate": {"ingest", "train", "walk"},
        "gate": {"evaluate"},
        "register": {"evaluate", "gate", "train"},
        "deploy": {"gate", "register", "train"},
        "reject": {"gate"},
        "notify": {"deploy", "reject"},
    }
    assert {leaf.name: leaf.display_name for leaf in order}["train"] == "Train policy"


def test_what_waits_for_a_loop_waits_for_the_steps_in_it(tmp_path_factory):
    _, path = compiler.compile_pipelines(tmp_path_factory.mktemp("build"))
    waits = {leaf.name: set(leaf.depends_on) for leaf in leaves(yaml.safe_load(path.read_text()))}
    assert waits == {"ingest": set(), "propose": set(), "score": {"ingest", "propose"}, "compare": {"ingest", "score"}}


def test_defaults(spec):
    known = defaults(spec)
    assert known["data"] == "synthetic:default"
    assert known["seed"] == 1
    assert known["members"] == MEMBERS > 1, "a run begun in the console serves an ensemble too"
    assert "store" not in known


def test_branches(spec):
    assert branches(spec) == [[frozenset({"deploy"}), frozenset({"reject"})]]
