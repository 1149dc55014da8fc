"""Write schema.json: what arguments the Google provider's resources take, of those that infra/ uses.

The provider itself comes from a registry that a closed network does not reach. The npm package @cdktf/provider-google
is generated from the provider's own schema; its types say every argument, its name in Terraform and whether it must
be given. Run it again when the provider's version or the list of resources changes:

    npm pack @cdktf/provider-google@16.12.1 && tar xzf cdktf-provider-google-16.12.1.tgz
    python tests/infra/extract_schema.py package/lib
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import hcl2

HERE = Path(__file__).resolve().parent
INFRA = HERE.parents[1] / "infra"
PACKAGE = "@cdktf/provider-google@16.12.1"

_INTERFACE = re.compile(r"export interface (\w+)(?: extends [\w.]+)? \{\n(.*?)\n\}", re.DOTALL)
_FIELD = re.compile(
    r"docs/(?:resources|data-sources)/\w+#(\w+) [^}]*\}[^/]*\*/\n    readonly \w+(\??): ([^;]+(?:;\n    \})?)"
)
_PLAIN = {"string": "string", "number": "number", "boolean": "bool"}


def fields(text: str, interfaces: dict[str, str]) -> dict[str, Any]:
    """The arguments of one interface: ``{"type": …, "required": …}`` or ``{"block": {…}, …}``."""
    found: dict[str, Any] = {}
    for name, optional, kind in _FIELD.findall(text):
        first = kind.replace(" | cdktf.IResolvable", "").strip()
        required = optional == ""
        nested = first.removesuffix("[]")
        if nested in interfaces:
            found[name] = {"block": fields(interfaces[nested], interfaces), "required": required}
        elif first.startswith("{"):
            found[name] = {"type": "map", "required": required}
        elif first.endswith("[]"):
            found[name] = {"type": "list", "required": required}
        else:
            found[name] = {"type": _PLAIN.get(first.split(" ")[0], "any"), "required": required}
    return found


def used(folder: Path) -> set[tuple[str, str]]:
    """(resource or data, its type) of everything in the .tf files of ``folder``."""
    kinds: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*.tf")):
        document = hcl2.loads(path.read_text())
        for section in ("resource", "data"):
            kinds |= {(section, name.strip('"')) for entry in document.get(section, []) for name in entry}
    return kinds


def main(library: Path) -> None:
    schema: dict[str, Any] = {"package": PACKAGE, "resource": {}, "data": {}}
    for section, kind in sorted(used(INFRA)):
        folder = kind.removeprefix("google_").replace("_", "-")
        folder = f"data-google-{folder}" if section == "data" else folder
        text = (library / folder / "index.d.ts").read_text()
        interfaces = dict(_INTERFACE.findall(text))
        config = next(
            name for name in interfaces if name.endswith("Config") and "MetaArguments" in text.split(name, 1)[1][:60]
        )
        schema[section][kind] = fields(interfaces[config], interfaces)
    (HERE / "schema.json").write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
