"""A policy on its way into the model registry, and what became of it there: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from layer3.errors import ReleaseError

__all__ = ["REJECTED", "Candidate", "Version"]

#: The verdict that gets no alias.
REJECTED: Final = "rejected"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy as the gate judged it: ``verdict`` is passed, overridden or rejected."""

    model_id: str
    policy_sha256: str
    contract: str
    symbol: str
    synthetic: bool
    data_sha256: str
    verdict: str
    sentence: str
    run_id: str

    @classmethod
    def of(cls, model: Mapping[str, Any], verdict: Mapping[str, Any], run_id: str) -> Candidate:
        """From the metadata of the model's and of the verdict's artifacts.

        Raises
        ------
        ReleaseError : the verdict is on another policy
        """
        if model["policy_sha256"] != verdict["policy_sha256"]:
            raise ReleaseError(
                f"the verdict is on another policy than {model['model_id']}: run evaluate and gate again"
            )
        failed = [criterion["name"] for criterion in verdict["criteria"] if not criterion["passed"]]
        asked_of = len(verdict["criteria"])
        if not verdict["passed"]:
            word, sentence = REJECTED, f"failed {', '.join(failed)}"
        elif verdict.get("override"):
            word, sentence = "overridden", f"failed {', '.join(failed)}; released by {verdict['override']['name']}"
        else:
            word, sentence = "passed", f"passed all {asked_of} criteria"
        return cls(
            model_id=str(model["model_id"]),
            policy_sha256=str(model["policy_sha256"]),
            contract=str(model["contract"]),
            symbol=str(model["symbol"]),
            synthetic=bool(model["synthetic"]),
            data_sha256=str(model["data_sha256"]),
            verdict=word,
            sentence=sentence,
            run_id=run_id,
        )

    @property
    def rejected(self) -> bool:
        return self.verdict == REJECTED


@dataclass(frozen=True, slots=True)
class Version:
    """What became of a candidate in the registry: ``name`` is ``projects/…/models/…@version``, "" for nothing."""

    sentence: str
    name: str = ""
    uri: str = ""
    verdict: str = ""
    parent: str = ""
    container: Mapping[str, Any] | None = None

    def to_metadata(self) -> dict[str, Any]:
        """What its artifact says of it."""
        if not self.name:
            return {"registered": False, "reason": self.sentence}
        told = {"resourceName": self.name, "verdict": self.verdict, "containerSpec": self.container}
        return {"registered": True, "version": self.name.rpartition("@")[2], "parent": self.parent, **told}
