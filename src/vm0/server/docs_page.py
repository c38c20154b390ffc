"""The page at `/docs`: the OpenAPI document as plain HTML, rendered here.

The usual viewers load their scripts from a network of somebody else, which a control plane should neither need nor
trust on its own origin. This page has no script at all.
"""

from __future__ import annotations

import html
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
code, .method { font-family: ui-monospace, monospace; } .method { font-weight: bold; }
section { border-top: 1px solid #ccc; padding: .5rem 0; } h3 { margin: .5rem 0; font-size: 1.05rem; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc; padding: .15rem .5rem; text-align: left; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } a { color: #8bf; } }
"""


def render(document: dict[str, Any]) -> str:
    """The whole page. Everything from the document is escaped."""
    info = document["info"]
    title = html.escape(f"{info['title']} {info['version']}")
    operations = [
        _operation(method, path, operation)
        for path, methods in sorted(document["paths"].items())
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body><h1>{title}</h1><p>{html.escape(info.get('description') or '')}</p>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<h2>Routes</h2>{''.join(operations)}<h2>Bodies</h2>{''.join(schemas)}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [("callers", html.escape(", ".join(operation.get("x-callers", ["anyone"]))))]
    parameters = [f"<code>{html.escape(p['name'])}</code> ({p['in']})" for p in operation.get("parameters", [])]
    if parameters:
        rows.append(("parameters", ", ".join(parameters)))
    if "requestBody" in operation:
        rows.append(("body", _content(operation["requestBody"])))
    rows += [
        (code, f"{_content(response)} {html.escape(response.get('description', ''))}")
        for code, response in operation["responses"].items()
    ]
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
    return (
        f'<section><h3><span class="method">{method.upper()}</span> <code>{html.escape(path)}</code></h3>'
        f"<p>{html.escape(operation.get('description', ''))}</p><table>{cells}</table></section>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    cells = "".join(
        f"<tr><th><code>{html.escape(field)}</code></th><td>{_kind(kind)}</td>"
        f"<td>{'required' if field in required else ''}</td></tr>"
        for field, kind in schema.get("properties", {}).items()
    )
    return (
        f'<section id="{html.escape(name)}"><h3><code>{html.escape(name)}</code></h3>'
        f"<p>{html.escape(schema.get('description', ''))}</p><table>{cells}</table></section>"
    )


def _content(holder: dict[str, Any]) -> str:
    schemas = [media.get("schema", {}) for media in holder.get("content", {}).values()]
    return ", ".join(_kind(schema) for schema in schemas)


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(arm) for arm in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{html.escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return html.escape(str(schema.get("type", "any JSON")))
