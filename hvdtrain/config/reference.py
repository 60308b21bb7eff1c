"""The reference of every config field as Markdown, made from the schema itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from hvdtrain.config.schema import Config

HEAD = """# Config reference
Made by `hvdtrain config reference`; a test keeps it equal to the schema.

A run is one YAML file. `extends: other.yaml` takes everything from another file first: mappings
are merged key by key, lists and values are replaced. `key=value` on the command line replaces a
value last, for example `lr.base=0.2` or `phases.1.epochs=3`. Unknown keys are errors.
"""


def reference() -> str:
    """The whole reference."""
    schema = Config.model_json_schema()
    sections = [("", "The run", schema)]
    for name, field in schema["properties"].items():
        target = field.get("items", field).get("$ref") or field.get("$ref")
        if target:
            key = f"{name}[]" if "items" in field else name
            sections.append((key, "", schema["$defs"][target.rsplit("/", 1)[1]]))
    parts = [HEAD]
    for key, title, section in sections:
        parts.append(_section(key or title, section, prefix=f"{key}." if key else ""))
    return "\n".join(parts)


def _section(title: str, section: dict[str, Any], prefix: str) -> str:
    heading = f"## `{title}`" if prefix else f"## {title}"
    lines = [
        heading,
        section["description"].split("\n")[0],
        "",
        "| key | value | default | |",
        "|---|---|---|---|",
    ]
    for name, field in section["properties"].items():
        if "$ref" in field or "$ref" in field.get("items", {}):
            continue
        required = name in section.get("required", [])
        default = "required" if required else f"`{_plain(field.get('default'))}`"
        text = " ".join(field["description"].split())
        lines.append(f"| `{prefix}{name}` | {_kind(field)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    names = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    kind = names.get(field["type"], field["type"])
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in field
    ]
    return f"{kind} {', '.join(bounds)}".strip()


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return str(value.model_dump())
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)
