"""The strict loader: what a file says is what one gets, and everything else is refused by name."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layer3 import settings
from layer3.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Inner:
    share: float = 0.5
    count: int = 3

    def __post_init__(self) -> None:
        settings.within(self, "share", 0.0, 1.0, open_low=True)
        settings.within(self, "count", 1, 10, whole=True)


@dataclass(frozen=True, slots=True)
class Outer:
    level: float = 1.0
    side: Literal["left", "right"] = "left"
    fast: bool = True
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        settings.within(self, "level", -5.0, 5.0, open_high=True)
        settings.one_of(self, "side", ("left", "right"))
        settings.true_or_false(self, "fast")


def test_what_the_text_leaves_out_keeps_its_default() -> None:
    assert settings.parse(Outer(), "", "here") == Outer()
    assert settings.parse(Outer(), "# nothing\n", "here") == Outer()
    said = settings.parse(Outer(), "side: right\nfast: false\ninner: {count: 7}\n", "here")
    assert said == Outer(side="right", fast=False, inner=Inner(count=7))
    mine = Outer(level=2.0, inner=Inner(share=0.25))
    assert settings.parse(mine, "inner: {count: 7}", "here") == Outer(level=2.0, inner=Inner(0.25, 7))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("levle: 1", r"unknown key 'levle'; did you mean 'level'\?"),
        ("zzz: 1", r"unknown key 'zzz'; known here: level, side, fast, inner"),
        ("inner: {shrae: 1}", r"unknown key 'inner.shrae'; did you mean 'share'"),
        ("7: 1", r"unknown key '7'"),
        ("inner: 3", r"inner is 3; it must be a mapping"),
        ("inner:", r"inner is None; it must be a mapping"),
        ("[1, 2]", r"the document is \[1, 2\]"),
        ("level: one", r"level is the text 'one'; it must be a number, unquoted"),
        ("level: '1'", r"level is the text '1'"),
        ("level: 1e0", r"level is the text '1e0'.*write 1.0e\+9"),
        ("inner: {count: '3'}", r"inner.count is the text '3'"),
        ("level: yes", r"Outer.level is True; it must be a number in \[-5, 5\)"),
        ("level:", r"Outer.level is None"),
        ("level: .nan", r"Outer.level is nan"),
        ("level: -.inf", r"Outer.level is -inf"),
        ("level: [1]", r"Outer.level is \[1\]"),
        ("level: 2026-01-01", r"Outer.level is datetime.date"),
        ("level: 5", r"Outer.level is 5; it must be a number in \[-5, 5\)"),
        ("inner: {share: 0}", r"inner: Inner.share is 0; it must be a number in \(0, 1\]"),
        ("inner: {count: 2.0}", r"inner: Inner.count is 2.0; it must be a whole number in \[1, 10\]"),
        ("side: up", r"Outer.side is 'up'; it must be left or right"),
        ("side: no", r"Outer.side is False; it must be left or right"),
        ("side: [left]", r"Outer.side is \['left'\]; it must be left or right"),
        ("fast: 1", r"Outer.fast is 1; it must be true or false"),
        ("fast: maybe", r"Outer.fast is 'maybe'; it must be true or false"),
        ("level: 1\nlevel: -4", r"the key 'level' stands there twice \(line 2\)"),
        ("inner:\n  count: 3\n  share: 1\n  count: 9", r"the key 'count' stands there twice \(line 4\)"),
        ("a: [", r"is not YAML"),
        ("level: 2026-99-99", r"is not YAML"),
        ("a: " + "[" * 1_000, r"is not YAML"),
        ("level: !!python/object:os.system {}", r"is not YAML"),
        ("{[1]: 2}", r"is not YAML"),
        ("--- 1\n--- 2", r"is not YAML"),
        ("level: \x07", r"is not YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says) as caught:
        settings.parse(Outer(), text, "the text here")
    assert str(caught.value).startswith("the text here")
    assert "\n" not in str(caught.value)
    for read in (settings.load, settings.text_of):
        with pytest.raises(ConfigurationError, match=says) as caught:
            read(Outer(), path, "the outer settings")
        assert str(caught.value).startswith(str(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"level: \xff")
    for read in (settings.load, settings.text_of):
        with pytest.raises(ConfigurationError, match=r"cannot read the outer settings .*absent.yaml: No such file"):
            read(Outer(), tmp_path / "absent.yaml", "the outer settings")
        with pytest.raises(ConfigurationError, match="cannot read the outer settings"):
            read(Outer(), tmp_path, "the outer settings")
        with pytest.raises(ConfigurationError, match=r"binary.yaml is not YAML"):
            read(Outer(), binary, "the outer settings")


def test_the_text_of_a_file_is_kept_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("level: 2.0  # why\n")
    assert settings.text_of(Outer(), path, "the outer settings") == "level: 2.0  # why\n"
    assert settings.text_of(Outer(), None, "the outer settings") == ""
    assert settings.load(Outer(), path, "the outer settings") == Outer(level=2.0)


def test_without_pyyaml_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"some.yaml needs PyYAML .*pip install pyyaml"):
        settings.parse(Outer(), "level: 1", "some.yaml")


@given(
    st.floats(-5, 5, exclude_max=True),
    st.sampled_from(["left", "right"]),
    st.booleans(),
    st.floats(0, 1, exclude_min=True),
    st.integers(1, 10),
)
def test_what_was_written_comes_back(level: float, side: Any, fast: bool, share: float, count: int) -> None:
    wanted = Outer(level, side, fast, Inner(share, count))
    text = yaml.safe_dump({"level": level, "side": side, "fast": fast, "inner": {"share": share, "count": count}})
    assert settings.parse(Outer(), text, "here") == wanted


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["level", "side", "fast", "inner", "share", "count", "x"]), inner, max_size=4
            )
        ),
    )
)
def test_any_document_gives_settings_or_one_sentence(document: Any) -> None:
    try:
        made = settings.parse(Outer(), yaml.safe_dump(document), "here")
    except ConfigurationError:
        return
    assert -5.0 <= made.level < 5.0
    assert made.side in ("left", "right")
    assert 0.0 < made.inner.share <= 1.0
