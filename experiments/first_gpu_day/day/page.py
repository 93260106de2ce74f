"""``index.html``: the results on one page that needs no network, in the style of the project's reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup

from medvlm_r1.report.page.render import clock, inline

WORDS = {"passed": "passed", "failed": "failed", "skipped": "skipped"}


@dataclass(frozen=True)
class Section:
    """One section of the page; see :class:`medvlm_r1.report.page.sections.Section`."""

    id: str
    title: str
    label: str
    wide: bool = False


def render(results: dict[str, Any]) -> str:
    """The page of ``results.json``."""
    loaders = ChoiceLoader([FileSystemLoader(Path(__file__).parent), PackageLoader("medvlm_r1.report", ".")])
    environment = Environment(
        loader=loaders, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"clock": clock, "number": number}
    environment.globals |= {"colours": {}}
    checks = results["checks"]
    for check in checks:
        check |= {"tables": tables(check["figures"]), "facts": facts(check["figures"])}
    template = environment.get_template("page.html").module
    sections = [Section("checks", "Checks", "All checks")]
    bodies = {"checks": Markup(template.overview(checks))}
    for check in checks:
        sections.append(Section(check["name"], check["title"], check["name"].replace("_", " ")))
        bodies[check["name"]] = Markup(template.check(check))
    return environment.get_template("page/base.html").render(
        title="First GPU day",
        headline=headline(results),
        caveat=caveat(results),
        runs=[{"name": f"of {results['started']}"}],
        sections=sections,
        bodies=bodies,
        style=inline(("page/page.css",)) + "\n.findings + h3 { margin-top: 1.2rem; }",
        script="",
        command=results["command"],
    )


def headline(results: dict[str, Any]) -> str:
    """The verdicts in one sentence."""
    verdicts = [check["verdict"] for check in results["checks"]]
    counts = [f"{verdicts.count(word)} {word}" for word in WORDS if word in verdicts]
    where = card_of(results)
    return f"{', '.join(counts)} of {len(verdicts)} checks in {clock(results['seconds'])}, {where}."


def card_of(results: dict[str, Any]) -> str:
    if results["rehearsal"]:
        return "on a CPU"
    environment = next((c["figures"] for c in results["checks"] if c["name"] == "environment"), {})
    names = [card["card"] for card in environment.get("cards", [])]
    return f"on {len(names)} x {names[0]}" if names else "on an unknown card"


def caveat(results: dict[str, Any]) -> str:
    if results["rehearsal"]:
        return "A rehearsal with the embedded model on a CPU: no figure here shows anything about a GPU."
    if results["weights"] == "random":
        return (
            "Random weights of the genuine size: the figures show memory, time and agreement, not accuracy."
        )
    return ""


def tables(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures that are lists of dictionaries: their columns and rows."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(key for row in value for key in row))
            found[name] = {"columns": columns, "rows": [[row.get(c, "") for c in columns] for row in value]}
    return found


def facts(figures: dict[str, Any]) -> dict[str, Any]:
    """All other figures; entries of a dictionary get its name in front."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= {f"{name}: {key}": entry for key, entry in value.items()}
        elif not (isinstance(value, list) and value and isinstance(value[0], dict)):
            found[name] = value
    return found


def number(value: Any) -> str:
    """A figure as text: at most four digits of a fraction."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(number, value)) or "none" if isinstance(value, list) else str(value)
