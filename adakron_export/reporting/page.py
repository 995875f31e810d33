"""The page of a report: one HTML file that needs no network and no script."""

from __future__ import annotations

from typing import Any

import jinja2

from adakron_export.reporting import plots

_SHOWN_FLIPS = 100


def render(content: dict[str, Any]) -> str:
    """Draw a report.

    Args:
        content: What `report_content` returned.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adakron_export.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parity, latency = content["parity"], content["latency"]
    return environment.get_template("report.html.j2").render(
        report=content,
        subject=_subject(content.get("subject")),
        parity=parity,
        latency=latency,
        verdicts=_verdicts(parity, latency),
        environment={**_machine(content["machine"]), **content["versions"]},
        flips=_SHOWN_FLIPS,
        **_parity_plots(parity),
        **_latency_plots(latency),
    )


def _subject(subject: dict[str, str] | None) -> str:
    """Model, task, target and dtype in a line; reports of earlier releases do not say."""
    if not subject:
        return ""
    rest = [value for name, value in subject.items() if name != "name"]
    return f"{subject['name']} ({', '.join(rest)})" if rest else subject["name"]


def _verdicts(parity: dict[str, Any] | None, latency: dict[str, Any] | None) -> list[tuple[str, bool | None, str]]:
    """What was asked, whether it held (``None``: there was no limit), and in a sentence why."""
    rows: list[tuple[str, bool | None, str]] = []
    if parity is not None:
        rows_held = bool(parity["rows"]) and all(row["passed"] for row in parity["rows"])
        same = not parity.get("mismatches") and (parity.get("weights") or {"passed": True})["passed"]
        held = rows_held and same and parity["overflow"] is None
        batches = len({row["batch"] for row in parity["rows"]})
        error = plots.number(parity["max_abs_error"])
        text = f"largest absolute error {error:.2e} on {batches} batches"
        rows.append(("Parity", held, text if same else f"another model; {text}"))
        accuracy = parity["accuracy"]
        if accuracy is not None:
            change = len(accuracy["flips"])
            text = f"{change} of {accuracy['examples']} answers changed on {accuracy['source']}"
            rows.append(("Accuracy", accuracy["passed"], text))
    if latency is not None:
        rows += [_latency_verdict(latency)]
    return rows


def _latency_verdict(latency: dict[str, Any]) -> tuple[str, bool | None, str]:
    if latency["regressions"]:
        worst = max(latency["regressions"], key=lambda row: row["slowdown"]["estimate"])
        change = 100 * (worst["slowdown"]["estimate"] - 1)
        return "Latency", latency["passed"], f"{change:+.1f} % since the baseline for {worst['side']} {worst['shape']}"
    ratios = [row["speedup"]["estimate"] for row in latency["latencies"] if row["speedup"]]
    if not ratios:
        return "Latency", None, "measured, with nothing to compare with"
    return "Latency", None, f"{min(ratios):.2f} to {max(ratios):.2f} times as fast as {latency['reference']}"


def _machine(machine: dict[str, Any]) -> dict[str, Any]:
    return {key: "each runtime's choice" if value is None else value for key, value in machine.items()}


def _parity_plots(parity: dict[str, Any] | None) -> dict[str, Any]:
    if parity is None:
        return {"parity_plots": [], "layer_plot": None}
    layers = (parity["divergence"] or parity)["layers"]
    return {
        "parity_plots": plots.parity_plots(parity["rows"]),
        "layer_plot": plots.layer_plot(layers) if layers else None,
    }


def _latency_plots(latency: dict[str, Any] | None) -> dict[str, Any]:
    if latency is None:
        return {"latency_plots": []}
    found = [
        plots.regression_plot(latency["regressions"]),
        plots.speedup_plot(latency["latencies"], latency["reference"]),
        *plots.latency_plots(latency["latencies"]),
        plots.load_plot(latency["loads"]),
    ]
    return {"latency_plots": [plot for plot in found if plot is not None]}
