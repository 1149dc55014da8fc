"""The pages: what this service is, its documentation, and its OpenAPI document.

An ordinary FastAPI application behind the front door (``serving.door``), which answers everything that a
trading system asks and describes nothing. It is imported when somebody first opens a page.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, JSONResponse, Response

from layer3 import contract
from serving import documentation
from serving.pages import PAGE_HEADERS, render
from serving.service import Service
from serving.settings import Settings

__all__ = ["create_app"]


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The pages of a server with ``settings``; ``service`` knows what serves."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    document = documentation.document(settings)
    page = render(document)

    @app.get("/")
    async def root() -> Response:
        serving = service.current
        body: dict[str, Any] = {
            "name": documentation.NAME,
            "description": documentation.DESCRIPTION,
            "contract": contract.VERSION,
            "model_version": serving.model_version if serving else None,
            "endpoints": documentation.endpoints(document),
        }
        return JSONResponse(body)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document)

    @app.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    return app
