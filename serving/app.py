"""The pages: what this service is, its documentation, and its OpenAPI document.

Constant but for the model's name. They are built when somebody first asks for one: a server that only predicts
neither imports nor keeps what they are made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from http import HTTPStatus

from layer3 import contract
from serving.replies import HTML, Pairs, Reply, head, json_reply
from serving.service import Service
from serving.settings import Settings

__all__ = ["pages"]

Page = Callable[[bytes], Reply]


def pages(service: Service, settings: Settings) -> dict[str, Page]:
    """The page at each path of a server with ``settings``; ``service`` knows what serves."""

    @cache
    def built() -> tuple[dict[str, object], Reply, Reply]:
        from serving import documentation
        from serving.pages import PAGE_HEADERS, render

        document = documentation.document(settings)
        about: dict[str, object] = {
            "name": documentation.NAME,
            "description": documentation.DESCRIPTION,
            "contract": contract.VERSION,
            "endpoints": documentation.endpoints(document),
        }
        more: Pairs = tuple((name.lower().encode(), value.encode()) for name, value in PAGE_HEADERS.items())
        return (
            about,
            Reply(head(HTTPStatus.OK), json.dumps(document).encode()),
            Reply(head(HTTPStatus.OK, HTML), render(document).encode(), more),
        )

    def root(_: bytes) -> Reply:
        serving = service.current
        return json_reply(HTTPStatus.OK, {**built()[0], "model_version": serving.model_version if serving else None})

    def openapi(_: bytes) -> Reply:
        return built()[1]

    def docs(_: bytes) -> Reply:
        return built()[2]

    return {"/": root, "/openapi.json": openapi, "/docs": docs}
