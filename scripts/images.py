"""The images' base, pinned by digest, and the digests of what was built.

    python scripts/images.py pin                         write down the digest that the base's tag has today
    python scripts/images.py base                        print the base; exit 2 where it has no digest
    python scripts/images.py record COMPONENTS SERVING   write build/images.json

Nothing but the standard library, because Cloud Build runs it without this project's environment.
Exit status: 0 done, 1 the registry could not be asked, 2 something is not pinned.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
BASE: Final = ROOT / "components" / "base_image.txt"
IMAGES: Final = ROOT / "build" / "images.json"
PINNED: Final = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")

_DOCKER_HUB: Final = "registry-1.docker.io"
_TIMEOUT_SECONDS: Final = 30
#: An image for several architectures before one for a single one, in the new format and in the old.
_MANIFESTS: Final = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)


def pinned(reference: str) -> str:
    """``reference`` where it names one image for ever, or a ValueError that says it does not."""
    if not PINNED.fullmatch(reference):
        raise ValueError(f"{reference!r} is not pinned by digest (name@sha256:<64 hexadecimal digits>)")
    return reference


def digest_of(reference: str) -> str:
    """The digest that ``[registry/]name:tag`` has now, worked out from the manifest itself.

    Raises
    ------
    OSError, HTTPException : the registry cannot be reached or refuses
    ValueError : it answers with something else than the manifest that it announces
    """
    registry, name, tag = _parts(reference)
    url = f"{_scheme(registry)}://{registry}/v2/{name}/manifests/{tag}"
    try:
        manifest, announced = _manifest(url, token="")
    except urllib.error.HTTPError as error:
        challenge = error.headers.get("WWW-Authenticate", "")
        error.close()
        if error.code != 401:
            raise
        manifest, announced = _manifest(url, token=_token(challenge))
    found = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    if announced != found:
        raise ValueError(f"the manifest of {reference} has the digest {found}, the registry says {announced!r}")
    return found


def pin(path: Path) -> str:
    """Write the digest of the base's tag behind it; the whole reference."""
    tag = path.read_text(encoding="ascii").strip().partition("@")[0]
    reference = pinned(f"{tag}@{digest_of(tag)}")
    path.write_text(f"{reference}\n", encoding="ascii")
    return reference


def record(components: str, serving: str, path: Path) -> None:
    """Write which images a run uses from now on."""
    images = {"components": pinned(components), "serving": pinned(serving)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(images, indent=2) + "\n", encoding="ascii")


def main(arguments: Sequence[str]) -> int:
    """Command line, as the module says."""
    try:
        match arguments:
            case ["pin"]:
                print(pin(BASE))
            case ["base"]:
                print(pinned(BASE.read_text(encoding="ascii").strip()))
            case ["record", components, serving]:
                record(components, serving, IMAGES)
            case _:
                raise ValueError("expected pin, base, or record COMPONENTS SERVING")
    except (OSError, http.client.HTTPException) as error:
        print(f"images: {error}: run make pin-images where the registry can be reached", file=sys.stderr)
        return 1
    except ValueError as error:
        hint = " in components/base_image.txt: run make pin-images and commit the file" if arguments == ["base"] else ""
        print(f"images: {error}{hint}", file=sys.stderr)
        return 2
    return 0


def _parts(reference: str) -> tuple[str, str, str]:
    """Registry, repository and tag; Docker Hub where none is named."""
    name, _, tag = reference.rpartition(":")
    if not name or "/" in tag:
        raise ValueError(f"{reference!r} names no tag")
    first, _, rest = name.partition("/")
    if rest and ("." in first or ":" in first):
        return first, rest, tag
    return _DOCKER_HUB, name if rest else f"library/{name}", tag


def _scheme(host: str) -> str:
    return "http" if host.partition(":")[0] == "127.0.0.1" else "https"


def _manifest(url: str, token: str) -> tuple[bytes, str]:
    headers = {"Accept": _MANIFESTS, **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as answer:
        return answer.read(), answer.headers.get("Docker-Content-Digest", "")


def _token(challenge: str) -> str:
    """The token that lets anybody pull, from where the registry's refusal says it is to be had."""
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = urllib.parse.urlsplit(said.get("realm", ""))
    if realm.scheme != _scheme(realm.netloc):
        raise ValueError(f"the registry sends us to {said.get('realm')!r} for a token")
    query = urllib.parse.urlencode({key: said[key] for key in ("service", "scope") if key in said})
    with urllib.request.urlopen(f"{realm.geturl()}?{query}", timeout=_TIMEOUT_SECONDS) as answer:
        found = json.load(answer)
    return str(found["token"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
