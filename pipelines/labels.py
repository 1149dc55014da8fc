"""The labels of a run on Vertex: which commit, source, data and contract it was; 63 of a-z, 0-9, _ and - each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from layer3 import contract
from serving.vertex import label

__all__ = ["data_label", "run_labels"]

#: Of a sha256, which has one character more than a label may have.
_DIGEST: Final = 40


def run_labels(code: Mapping[str, Any], *, data: str, data_version: str) -> dict[str, str]:
    """Labels of a run of ``code`` (:func:`pipelines.provenance.provenance`) on ``data``.

    A commit with changes that are not committed ends in ``-dirty``. ``data_version`` is a file's sha256 or the end
    of an exchange's window; what has none (the simulator, a schedule's newest data) is labelled by its name.
    """
    commit = code["git"]["commit"] or "none"
    return {
        "git_commit": label(f"{commit}-dirty" if code["git"]["dirty"] else commit),
        "source": code["source_sha256"][:_DIGEST],
        "data": data_label(data, data_version),
        "contract": label(contract.VERSION),
    }


def data_label(data: str, data_version: str) -> str:
    """The version as a label, or the data's name where the version is none, or what there will be."""
    return label(data_version if data_version and data_version != "newest" else data)[:_DIGEST]
