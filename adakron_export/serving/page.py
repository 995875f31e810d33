"""The page of a server, where its models can be tried; it loads nothing from elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import jinja2


def page(models: Mapping[str, Sequence[str]], *, needs_key: bool) -> tuple[str, dict[str, str]]:
    """The page, and the headers that it goes with.

    Args:
        models: The adapters of each model by name; none of what is no bank.
        needs_key: Whether a caller must show an API key.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adakron_export.serving", "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    nonce = secrets.token_urlsafe(16)
    html = environment.get_template("try.html.j2").render(models=models, needs_key=needs_key, nonce=nonce)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {"content-security-policy": policy, "x-content-type-options": "nosniff", "cache-control": "no-store"}
