"""Terraform files against the provider's schema and against this project's policy, without Terraform.

Only what is written literally can be judged: an expression's type is whatever it is meant to be.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hcl2

with warnings.catch_warnings():
    # The parser leaves its grammar's file open when it is read for the first time.
    warnings.simplefilter("ignore", ResourceWarning)
    hcl2.loads("")
    gc.collect()

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "schema.json").read_text())
#: What every resource takes, whatever the provider says.
META = {"count", "depends_on", "for_each", "lifecycle", "provider", "provisioner"}
#: Roles on a whole project that are more than any of ours may have.
PRIMITIVE = {"roles/owner", "roles/editor", "roles/viewer"}
EVERYBODY = ("allUsers", "allAuthenticatedUsers")


def resources(text: str) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(resource or data, type, name, body) of everything in a .tf file."""
    document = hcl2.loads(text)
    for section in ("resource", "data"):
        for entry in document.get(section, []):
            for kind, named in entry.items():
                for name, body in named.items():
                    yield section, kind.strip('"'), name.strip('"'), body


def mistakes(text: str) -> list[str]:
    """Arguments that the provider does not know, lacks, or knows as something else."""
    found = []
    for section, kind, name, body in resources(text):
        where = f"{kind}.{name}"
        known = SCHEMA[section].get(kind)
        if known is None:
            found.append(f"{where}: the provider's schema here has no {section} {kind}: run extract_schema.py")
            continue
        found += _mistakes(where, {key: value for key, value in body.items() if key not in META}, known)
    return found


def _mistakes(where: str, body: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    found = []
    given = {key: value for key, value in body.items() if not key.startswith("__")}
    # dynamic "x" {} makes blocks x.
    names = set(given) | {key.strip('"') for entry in given.get("dynamic", []) for key in entry}
    for name, expected in known.items():
        if expected["required"] and name not in names:
            found.append(f"{where}: {name} is missing")
    for name, value in given.items():
        if name == "dynamic":
            continue
        expected = known.get(name)
        blocks = [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
        written_as_block = any("__is_block__" in entry for entry in blocks)
        if expected is None:
            found.append(f"{where}: the provider knows no {name}")
        elif "block" in expected:
            if not written_as_block:
                found.append(f"{where}: {name} is a block, it is written as an argument")
            for number, entry in enumerate(blocks):
                found += _mistakes(f"{where}.{name}[{number}]", entry, expected["block"])
        elif written_as_block:
            found.append(f"{where}: {name} is an argument, it is written as a block")
        elif not _fits(value, expected["type"]):
            found.append(f"{where}: {name} is {value!r}, the provider wants a {expected['type']}")
    return found


def _fits(value: object, kind: str) -> bool:
    if isinstance(value, str) and value.startswith("${"):
        return True  # an expression
    if kind == "string":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "list":
        return isinstance(value, list)
    return kind == "any" or isinstance(value, Mapping)


def violations(text: str) -> list[str]:
    """What breaks this project's policy: public buckets, everybody without the flag, roles on everything."""
    found = []
    for section, kind, name, body in resources(text):
        if section == "data":
            continue
        where = f"{kind}.{name}"
        if kind == "google_storage_bucket":
            if body.get("uniform_bucket_level_access") is not True:
                found.append(f"{where}: uniform_bucket_level_access is not true")
            if _plain(body.get("public_access_prevention")) != "enforced":
                found.append(f"{where}: public_access_prevention is not enforced")
            if not any(entry.get("enabled") is True for entry in body.get("versioning", [])):
                found.append(f"{where}: objects have no versions")
        written = json.dumps(body)
        for everybody in EVERYBODY:
            if everybody in written and "var.allow_unauthenticated" not in str(body.get("count", "")):
                found.append(f"{where}: {everybody} without the flag allow_unauthenticated")
        for role in PRIMITIVE:
            if f'{role}\\"' in written or f'"{role}"' in written:
                found.append(f"{where}: {role} is more than anybody needs")
        if kind == "google_service_account_key":
            found.append(f"{where}: a key that can be copied; use Workload Identity Federation")
    for entry in hcl2.loads(text).get("locals", []):
        for name, value in entry.items():
            written = json.dumps(value)
            found += [f"local.{name}: {role} is more than anybody needs" for role in PRIMITIVE if role in written]
            found += [f"local.{name}: {who} without the flag" for who in EVERYBODY if who in written]
    return found


def _plain(value: object) -> object:
    return value.strip('"') if isinstance(value, str) else value
