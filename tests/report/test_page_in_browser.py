"""The report page in a real browser: each section that its navigation names shows what it promises.

Whole-page screenshots go to the folder in ``MEDVLM_R1_SCREENSHOTS``, else to a temporary one.
"""

import os
from pathlib import Path

import pytest
from chromium import EXECUTABLE, Chromium
from run_folders import SETS, write_run, write_sweep

from medvlm_r1.report.page.render import write_comparison_report, write_run_report

pytestmark = [
    pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on this machine to open the page in"),
    pytest.mark.usefixtures("few_draws"),
]

READY = "performance.getEntriesByName('traces ready').length > 0"
NAVIGATION = "[...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href').slice(1))"
SECTIONS = "[...document.querySelectorAll('main > section')].map((section) => section.id)"
# Markup that reached the page as text: scripts hold source by right.
LEAKED = """(() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), leaked = [];
  while (walk.nextNode()) {
    const text = walk.currentNode;
    if (text.parentElement.closest('script, style')) continue;
    if (/<svg|<\\/g>|{{|{%|&lt;|&amp;/.test(text.data)) leaked.push(text.data.slice(0, 80));
  }
  return leaked;
})()"""
# What each section has to show, at least: a CSS selector.
SHOWN = {
    "verdicts": ".card .findings li",
    "accuracy": "table tbody td",
    "differences": "table tbody td",
    "controls": "table tbody td",
    "matrix": "table tbody td",
    "fairness": "h3",
    "curves": ".panel .ends",
    "traces": ".trace",
    "questions": ".card .question",
    "groups": ".card",
    "audit": "table tbody td",
    "alarms": "li, p",
    "provenance": "table tbody td",
}


def visible(section: str, selector: str) -> str:
    """Heights in pixels of what is drawn in a section."""
    return (
        f"[...document.querySelectorAll('#{section} {selector}')].filter((e) => e.checkVisibility())"
        ".map((e) => e.getBoundingClientRect().height)"
    )


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    named = os.environ.get("MEDVLM_R1_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The four kinds of page by name: the file, and how many figures stand under which section."""
    home = tmp_path_factory.mktemp("pages")
    comparison = write_sweep(home / "comparison", n=30)
    run = write_run(home / "single", "grpo", n=30)
    for method in ("sft", "grpo"):  # a sweep of one factor
        for beta in (0.0, 0.04):
            write_run(home / "sweep", method, n=30, name=f"{method}-{beta}", changes={"method.beta": beta})
    for domain in SETS:
        changes = {"data.domain": domain, "data.train.modality": domain}
        write_run(home / "matrix", "grpo", n=30, name=domain, changes=changes)
    scopes = len(SETS) + 1  # the test sets and their mean
    return {
        "comparison": (write_comparison_report([comparison], comparison), {"accuracy": scopes + 1}),
        "run": (write_run_report(run), {"accuracy": scopes}),
        "sweep": (write_comparison_report([home / "sweep"], home / "sweep"), {"accuracy": scopes + 1}),
        "matrix": (write_comparison_report([home / "matrix"], home / "matrix"), {"matrix": 1}),
    }


@pytest.mark.parametrize("kind", ["comparison", "run", "sweep", "matrix"])
def test_every_section_shows_what_the_navigation_promises(pages, shots, kind):
    page, figures = pages[kind]
    with Chromium() as chromium:
        for width in (1440, 390):
            chromium.look(width)
            chromium.open(page)
            chromium.wait_for(READY)
            named = chromium.evaluate(NAVIGATION)
            assert named == chromium.evaluate(SECTIONS)
            assert {"verdicts", "accuracy", "traces", "alarms", "provenance", *figures} <= set(named)
            for section in named:
                heights = chromium.evaluate(visible(section, SHOWN[section]))
                assert heights, f"section {section} shows no {SHOWN[section]}"
                assert max(heights) > 0
            for section, least in figures.items():
                drawn = chromium.evaluate(visible(section, "svg"))
                assert len(drawn) >= least
                assert min(drawn) > 40, (section, drawn)
            if "curves" in named:
                assert min(chromium.evaluate(visible("curves", "svg"))) > 40
            assert chromium.evaluate(LEAKED) == []
            assert chromium.complaints == []
            shot = chromium.screenshot(shots / f"{kind}-{width}.png", whole=True)
            assert shot.stat().st_size > 50_000
