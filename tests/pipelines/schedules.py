"""What the tests of the schedule have in common."""

from __future__ import annotations

from google.cloud import aiplatform_v1 as v1

from tests.fakes.cloud import World

CRON = "TZ=Etc/UTC 0 6 * * 1"


def there(cloud: World) -> list[v1.Schedule]:
    return list(cloud.vertex.schedules.schedules.values())
