"""A Secret Manager as far as Cloud Run mounts it: each secret's newest version, and which accounts may read it."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path

from google.cloud import run_v2

__all__ = ["Secrets", "mount_problem"]


class Secrets:
    """Secrets by name, each a file of a folder that :meth:`close` removes."""

    def __init__(self) -> None:
        self.readers: dict[str, set[str]] = {}

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        """Made with the first secret: most tests have none, and nothing to close."""
        return tempfile.TemporaryDirectory(prefix="himari-secrets-")

    def close(self) -> None:
        if "_folder" in self.__dict__:
            self._folder.cleanup()

    def put(self, name: str, content: str, *readers: str) -> None:
        """Add a version, which whoever has the secret mounted reads from then on; ``readers`` may, too."""
        spare = self._file(f"{name}.new")
        spare.write_text(content)
        spare.replace(self._file(name))
        self.readers.setdefault(name, set()).update(readers)

    def mounted(self, revision: run_v2.Revision) -> dict[str, str] | str:
        """Where the files of a revision's mounts lie on this machine, by their path in the container; or why not."""
        found = {}
        volumes = {volume.name: volume.secret for volume in revision.volumes}
        for mount in revision.containers[0].volume_mounts:
            secret = volumes[mount.name]
            version = f"{revision.name.partition('/locations/')[0]}/secrets/{secret.secret}/versions/latest"
            if secret.secret not in self.readers:
                return f"Secret {version} was not found"
            if revision.service_account not in self.readers[secret.secret]:
                return (
                    f"Permission denied on secret: {version} for Revision service account {revision.service_account}. "
                    "The service account used must be granted the 'Secret Manager Secret Accessor' role "
                    "(roles/secretmanager.secretAccessor) at the secret, project or higher level."
                )
            for item in secret.items:
                found[f"{mount.mount_path}/{item.path}"] = str(self._file(secret.secret))
        return found

    def _file(self, name: str) -> Path:
        return Path(self._folder.name, name)


def mount_problem(template: run_v2.RevisionTemplate) -> str | None:
    """What the real service would not take of a template's volumes and mounts."""
    volumes, mounts = [volume.name for volume in template.volumes], template.containers[0].volume_mounts
    if len(set(volumes)) != len(volumes):
        return f"volumes: names {volumes} must differ"
    if (strange := {mount.name for mount in mounts} - set(volumes)) or len(mounts) != len(volumes):
        return f"volume_mounts: no volume {sorted(strange)}, or one that is not mounted"
    if not all(mount.mount_path.startswith("/") and mount.mount_path != "/" for mount in mounts):
        return "volume_mounts: mount_path must be an absolute path and not /"
    if not all(volume.secret.secret and volume.secret.items for volume in template.volumes):
        return "volumes: this fake knows secrets with items only"
    return None
