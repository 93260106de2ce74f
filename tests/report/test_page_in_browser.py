"""The report page in Chromium: it has every section that its runs have data for, with everything drawn.

The expected sections and counts come from the files of the run folders, not from the package.
"""

import json

import pandas as pd
import pytest
from omegaconf import OmegaConf
from run_folders import SETS, write_run, write_sweep

from medvlm_r1.report.page.render import write_comparison_report, write_run_report

pytestmark = pytest.mark.usefixtures("few_draws")

# id, name in the navigation, heading
SECTIONS = {
    "verdicts": ("Verdicts", "Verdicts"),
    "accuracy": ("Accuracy", "Accuracy"),
    "differences": ("Differences", "Differences on the same questions"),
    "controls": ("Controls", "Controls"),
    "matrix": ("Matrix", "Matrix"),
    "fairness": ("Fairness", "Fairness"),
    "curves": ("Training", "Training"),
    "traces": ("Traces", "Every trace"),
    "questions": ("Questions", "Questions and answers"),
    "groups": ("Inside training", "Inside training: groups of completions"),
    "audit": ("Audit", "Audit of the data"),
    "alarms": ("Alarms", "Alarms"),
    "provenance": ("Provenance", "Provenance"),
}
NAVIGATION = (
    "[...document.querySelectorAll('nav a')].map((a) => [a.getAttribute('href').slice(1), a.innerText])"
)
HEADINGS = (
    "[...document.querySelectorAll('main > section')].map((s) => [s.id, s.querySelector('h2').innerText])"
)
# Text that is markup or template source; scripts and styles may contain it.
LEAKED = """(() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), leaked = [];
  while (walk.nextNode()) {
    const text = walk.currentNode;
    if (text.parentElement.closest('script, style')) continue;
    if (/<svg|<\\/g>|{{|{%|&lt;|&amp;/.test(text.data)) leaked.push(text.data.slice(0, 80));
  }
  return leaked;
})()"""
NAMELESS = """[...document.querySelectorAll('img, figure')].filter((e) => e.checkVisibility())
  .filter((e) => !(e.alt ?? e.getAttribute('aria-label'))?.trim()).map((e) => e.outerHTML.slice(0, 80))"""


def sizes(selector):
    """Sizes in pixels of the visible elements, as an expression."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.checkVisibility())"
        ".map((e) => e.getBoundingClientRect()).map((box) => [box.width, box.height])"
    )


def expected(folders, groups):
    """Section id -> number of visible elements by selector, for the page of these run folders.

    Args:
        folders: of the runs.
        groups: number of configurations, each over its seeds.
    """
    metrics = [json.loads((run / "metrics.json").read_text()) for run in folders]
    predictions = pd.concat([pd.read_json(run / "predictions.jsonl", lines=True) for run in folders])
    domains = {OmegaConf.load(run / "config.yaml").data.get("domain") for run in folders} - {None}
    methods = [entry["run"]["method"] for entry in metrics]
    seeds = len(folders) // groups
    zero_shot, sft, grpo = (methods.count(name) // seeds for name in ("zero_shot", "sft", "grpo"))
    logged = {
        run: pd.read_csv(run / "metrics.csv").columns for run in folders if (run / "metrics.csv").is_file()
    }
    shared = set().union(*logged.values()) - {"step", "epoch", "train/lr", "train/loss", "train/tokens_seen"}
    shared = {metric for metric in shared if not metric.endswith(("_right", "_wrong"))}
    alarms = sum(len(path.read_text().splitlines()) for run in folders for path in run.glob("alarms.jsonl"))
    scopes = len(SETS) + (1 if domains else 2)  # the test sets, their mean, and the mean out of domain
    pairs = zero_shot * (groups - zero_shot) + grpo * sft
    sections = {
        "verdicts": {".card": groups},
        "accuracy": {"svg": scopes, "tbody tr": groups + zero_shot + 1},
        "differences": {"tbody tr": pairs} if pairs else None,
        "controls": {"table": 1} if predictions["control"].nunique() > 1 else None,
        "matrix": {"svg": 1, "tbody tr": len(domains)} if len(domains) > 1 else None,
        "fairness": {"h3": grpo * sft} if grpo * sft else None,
        "curves": {"svg": len(shared) + sft + grpo} if logged else None,
        "traces": {"#trace-detail .question": 1},
        "questions": {".cards > .card": 2 * len(SETS), ".answer": 2 * len(SETS) * groups},
        "groups": {".card": 2, "tbody tr": 16}
        if any(run.glob("rollouts/*") for run in folders if grpo)
        else None,
        "audit": {"table": 2} if any(entry["audit"] for entry in metrics) else None,
        "alarms": {"li": alarms},
        "provenance": {"tbody tr": len(folders)},
    }
    return {name: counts for name, counts in sections.items() if counts}, alarms


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The four kinds of page: the file, its run folders, and the number of configurations."""
    home = tmp_path_factory.mktemp("pages")
    write_sweep(home / "comparison", seeds=2, n=30)
    write_run(home / "run", "grpo", n=30)
    for method in ("sft", "grpo"):  # a sweep of one factor
        for beta in (0.0, 0.04):
            write_run(home / "sweep", method, n=30, name=f"{method}-{beta}", changes={"method.beta": beta})
    for domain in SETS:
        changes = {"data.domain": domain, "data.train.modality": domain}
        write_run(home / "matrix", "grpo", n=30, name=domain, changes=changes)
    groups = {"comparison": 3, "run": 1, "sweep": 4, "matrix": 3}
    runs = {kind: sorted((home / kind).iterdir()) for kind in groups}
    written = {
        kind: write_comparison_report([home / kind], home / kind)
        for kind in ("comparison", "sweep", "matrix")
    }
    written["run"] = write_run_report(*runs["run"])
    return {kind: (written[kind], runs[kind], groups[kind]) for kind in groups}


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("kind", ["comparison", "run", "sweep", "matrix"])
def test_every_section_is_there_and_drawn(pages, shots, chromium, kind, width):
    page, folders, groups = pages[kind]
    sections, alarms = expected(folders, groups)
    chromium.show(page, width=width)
    names = {name: SECTIONS[name][0] for name in sections} | {"alarms": f"Alarms ({alarms})"}
    assert chromium.evaluate(NAVIGATION) == [[name, names[name]] for name in sections]
    assert chromium.evaluate(HEADINGS) == [[name, SECTIONS[name][1]] for name in sections]
    for section, counts in sections.items():
        for selector, count in counts.items():
            boxes = chromium.evaluate(sizes(f"#{section} {selector}"))
            assert len(boxes) == count, f"section {section} has {len(boxes)} {selector}, not {count}"
            least = 40 if selector == "svg" else 10
            assert all(min(box) > least for box in boxes), (section, selector, boxes)
    figures = chromium.evaluate("[...document.querySelectorAll('svg')].map((s) => s.textContent.trim())")
    assert all(figures)
    assert len(figures) == sum(counts.get("svg", 0) for counts in sections.values())
    assert chromium.evaluate(NAMELESS) == []
    assert chromium.evaluate(LEAKED) == []
    shot = chromium.screenshot(shots / f"{kind}-{width}.png", whole=True)
    assert shot.stat().st_size > 50_000
