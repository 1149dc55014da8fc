"""The OpenAPI document as one HTML page that loads nothing: no script, no font, no other address."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import Any, Final

__all__ = ["PAGE_HEADERS", "render"]

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}"
    "code,pre{font:14px/1.4 ui-monospace,monospace;background:#f3f5f8}pre{padding:.75rem;overflow:auto}"
    "summary{cursor:pointer}h2 code{font-size:1.25rem}h2{margin-top:2.5rem;border-bottom:1px solid #cdd4dd}"
    "td code{white-space:nowrap}td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Strict-Transport-Security": "max-age=31536000",
}


def render(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document as ``serving.documentation`` makes it."""
    info, components = document["info"], document["components"]
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [f"<h3 id='{name}'>{name}</h3>{_json(schema)}" for name, schema in components["schemas"].items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(info['title'])}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{_text(info['title'])}</h1>{_prose(info['description'])}"
        "<p>The same for programs: <a href='openapi.json'>openapi.json</a></p>"
        f"{''.join(operations)}<h2>Bodies</h2>{''.join(schemas)}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    ways = ", ".join(name for way in operation["security"] for name in way) or "nobody asks who calls"
    parts = [
        f"<h2 id='{operation['operationId']}'><code>{method.upper()} {_text(path)}</code></h2>",
        f"<p>{_text(operation['summary'])}. Security: {_text(ways)}.</p>",
    ]
    rows = [
        f"<tr><td><code>{_text(each['name'])}</code><td>{_text(each['description'])}"
        for each in operation["parameters"]
    ]
    parts.append(f"<table>{''.join(rows)}</table>")
    if "requestBody" in operation:
        body = operation["requestBody"]
        parts.append(f"<h3>Request</h3><p>{_text(body['description'])}</p>{_content(body)}")
    for status, answer in sorted(operation["responses"].items()):
        opened = " open" if status == "200" else ""
        said = f"<summary>{status} {_text(answer['description'])}</summary>"
        parts.append(f"<details{opened}>{said}{_content(answer)}</details>")
    return "".join(parts)


def _content(part: dict[str, Any]) -> str:
    ((media_type, body),) = part["content"].items()
    name = body["schema"].get("$ref", "").rpartition("/")[2]
    link = f" of <a href='#{name}'>{name}</a>" if name else ""
    return f"<p><code>{media_type}</code>{link}</p>{_json(body['example'])}"


def _json(value: object) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
    return f"<pre>{_text(shown)}</pre>"


def _prose(markdown: str) -> str:
    """Paragraphs, a list numbered from 0, and code spans: the Markdown that the document's description has."""
    said = re.sub("`([^`]*)`", r"<code>\1</code>", _text(markdown))
    blocks = (re.sub(r"(?m)^\d+\. (.*)$", r"<li>\1", block) for block in said.split("\n\n"))
    return "".join(f"<ol start=0>{block}</ol>" if block.startswith("<li>") else f"<p>{block}</p>" for block in blocks)


def _text(value: str) -> str:
    return html.escape(value)
