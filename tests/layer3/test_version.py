"""The code's version: follows every source byte and name, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from layer3.version import PACKAGES, source_sha256


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "one.py").write_text(f"name = {package!r}\n")
    (tmp_path / "layer3" / "deep").mkdir()
    (tmp_path / "layer3" / "deep" / "page.html.j2").write_text("<p>")
    return tmp_path


def fresh(tree: Path) -> str:
    source_sha256.cache_clear()
    return source_sha256(tree)


def test_the_same_source_elsewhere_has_the_same_hash(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("image")
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_file():
            target = other / path.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (other / "layer3" / "__pycache__").mkdir()
    (other / "layer3" / "__pycache__" / "one.cpython-311.pyc").write_bytes(b"\0")
    (other / "README.md").write_text("not code")
    assert fresh(other) == fresh(tree)


@pytest.mark.parametrize("name", ["serving/one.py", "layer3/deep/page.html.j2"])
def test_a_changed_byte_changes_it(tree: Path, name: str) -> None:
    before = fresh(tree)
    (tree / name).write_text("changed")
    assert fresh(tree) != before


def test_a_new_or_renamed_file_changes_it(tree: Path) -> None:
    before = fresh(tree)
    (tree / "pipelines" / "one.py").rename(tree / "pipelines" / "two.py")
    renamed = fresh(tree)
    (tree / "pipelines" / "new.py").write_text("")
    assert len({before, renamed, fresh(tree)}) == 3


def test_moving_text_between_files_changes_it(tree: Path) -> None:
    (tree / "serving" / "one.py").write_text("ab")
    (tree / "serving" / "two.py").write_text("c")
    before = fresh(tree)
    (tree / "serving" / "one.py").write_text("a")
    (tree / "serving" / "two.py").write_text("bc")
    assert fresh(tree) != before


def test_the_default_is_this_very_source() -> None:
    source_sha256.cache_clear()
    assert source_sha256() == source_sha256(Path(__file__).parents[2])
    assert len(source_sha256()) == 64
