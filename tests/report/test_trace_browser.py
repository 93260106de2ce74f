"""The trace browser in Chromium: it opens fast, filters at once, obeys the keyboard, fits and is legible."""

import json

import pytest
from large_run import write_large_run
from run_folders import audit, write_run, write_sweep

from medvlm_r1.report.comparison import compare
from medvlm_r1.report.page.render import write_comparison_report, write_run_report

pytestmark = pytest.mark.usefixtures("few_draws")

FITS = "document.documentElement.scrollWidth <= innerWidth"
COUNT = "document.getElementById('trace-count').textContent"
ACTIVE = "document.querySelector('.trace[aria-selected=true]')?.querySelector('.summary').textContent"
FOCUS = "document.activeElement.id || document.activeElement.name"

# WCAG contrast of every text that is drawn, against the first opaque ground behind it.
CONTRAST = r"""(() => {
  const parse = (c) => c.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.checkVisibility()) continue;
    if (e.closest("script, style, .skip, option")) continue;
    const style = getComputedStyle(e), ink = parse(e.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 80)}`);
  }
  return poor;
})()"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three methods with two seeds; the GRPO runs leak, and one was evaluated on hostile text."""
    folder = write_sweep(tmp_path_factory.mktemp("sweeps") / "main", seeds=2, n=30)
    for run in folder.glob("grpo*"):
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps(metrics | {"audit": audit(copies=18)}))
    return folder


@pytest.fixture(scope="module")
def page(sweep):
    return write_comparison_report([sweep], sweep)


@pytest.fixture(scope="module")
def large_page(tmp_path_factory):
    folder = write_large_run(tmp_path_factory.mktemp("large") / "grpo_600-seed0")
    return write_run_report(folder)


def choose(chromium, name, value):
    """Set a field of the form as a hand would; milliseconds until the page is laid out again."""
    return chromium.evaluate(
        f"""(() => {{
          const field = document.querySelector('#traces form').elements['{name}'];
          const started = performance.now();
          if (field instanceof RadioNodeList || field.type === 'radio')
            document.querySelector('#traces [name={name}][value={value or "none"}]').click();
          else {{
            field.value = {json.dumps(value)};
            if (field.value !== {json.dumps(value)}) throw new Error('no choice {value} in {name}');
            field.dispatchEvent(new Event('input', {{ bubbles: true }}));
          }}
          document.body.offsetHeight;
          return performance.now() - started;
        }})()"""
    )


def test_five_thousand_groups_open_within_two_seconds(chromium, large_page):
    times = []
    for _ in range(3):
        chromium.show(large_page)
        times.append(chromium.evaluate("performance.getEntriesByName('traces ready')[0].startTime"))
    print(f"ready after {sorted(times)} ms; page of {large_page.stat().st_size / 1e6:.1f} MB")
    choose(chromium, "view", "train")
    assert chromium.evaluate(COUNT) == "5,000 of 5,000 training groups"
    assert chromium.evaluate("document.querySelectorAll('.trace').length") < 60
    assert min(times) < 2000


def test_filters_take_effect_without_visible_delay(chromium, large_page):
    """A search is typed letter by letter, then pasted; the best of three rounds, as others compute too."""
    chromium.show(large_page, "#traces?view=train")
    typed = [("q", "calcified 0.12"[: k + 1]) for k in range(14)]
    pasted = [("q", ""), ("q", "pancreas 0.34"), ("q", "")]
    others = [("outcome", "mixed"), ("sort", "range"), ("order", "down"), ("step", "77")]
    settings = [*typed, *pasted, *others]
    rounds = []
    for _ in range(3):
        rounds.append([choose(chromium, name, value) for name, value in settings])
        assert chromium.evaluate(COUNT) != "5,000 of 5,000 training groups"
        chromium.evaluate("document.querySelector('#traces button[type=reset]').click()")
    for (name, value), *times in zip(settings, *rounds, strict=True):
        print(f"{name}={value}: {min(times):.0f} ms")
        assert min(times) < 100, (name, value, times)


def test_only_the_visible_rows_are_drawn(chromium, large_page):
    chromium.show(large_page, "#traces?view=train")
    chromium.evaluate("document.getElementById('trace-list').scrollTop = 2500 * 64")
    chromium.wait_for("[...document.querySelectorAll('.trace')].some((row) => row.dataset.at === '2500')")
    assert chromium.evaluate("document.querySelectorAll('.trace').length") < 60
    active = "document.getElementById('trace-list').getAttribute('aria-activedescendant')"
    # the active row is kept for screen readers
    assert chromium.evaluate(f"document.getElementById({active}).dataset.at") == "0"


def test_a_search_finds_what_a_reader_of_the_files_finds(chromium, large_page):
    rows = [
        json.loads(line)
        for path in (large_page.parent / "rollouts").iterdir()
        for line in path.read_text().splitlines()
    ]
    texts = {}
    for row in rows:
        asked = " ".join([row["question"], *row["options"]])
        texts.setdefault((row["step"], row["sample_id"]), [asked]).append(row["text"])
    expected = sum(
        any("calcified, 0.1" in t for t in group) and any("pancreas is" in t for t in group)
        for group in texts.values()
    )
    chromium.show(large_page, "#traces?view=train")
    choose(chromium, "q", '"CALCIFIED, 0.1" "pancreas is"')
    assert 0 < expected < 5000
    assert chromium.evaluate(COUNT) == f"{expected:,} of 5,000 training groups"
    assert chromium.evaluate("document.querySelectorAll('#trace-detail mark').length") > 0


def test_changes_between_two_runs_are_those_of_the_predictions(chromium, page, sweep):
    c = compare([sweep])
    sft, grpo = (row.runs[1] for row in c.groups[1:])
    won = lost = 0
    for name in c.test_sets:
        a, b = (run.answers(name)["correct"].astype(bool) for run in (sft, grpo))
        won, lost = won + (b & ~a).sum(), lost + (a & ~b).sum()
    assert won > 0
    assert lost > 0
    for change, expected in (("gained", won), ("lost", lost), ("changed", won + lost)):
        link = f"#traces?view=test&run={grpo.name}&against={sft.name}&change={change}"
        chromium.show(page, link)
        assert chromium.evaluate(COUNT) == f"{expected} of 180 test answers"


def test_filters_of_test_answers(chromium, page, sweep):
    chromium.show(page)
    assert chromium.evaluate(COUNT) == "90 of 180 test answers"  # the plain control is shown first
    choose(chromium, "set", "ct")
    assert chromium.evaluate(COUNT) == "30 of 180 test answers"
    choose(chromium, "control", "blank")
    assert chromium.evaluate(COUNT) == "30 of 180 test answers"
    assert "Control “blank”" in chromium.evaluate("document.getElementById('trace-detail').textContent")
    assert "uniform grey" in chromium.evaluate("document.getElementById('trace-detail').textContent")
    choose(chromium, "control", "image")
    run = compare([sweep]).groups[2].runs[0]
    choose(chromium, "run", run.name)
    choose(chromium, "outcome", "right")
    assert chromium.evaluate(COUNT) == f"{run.answers('ct')['correct'].sum():.0f} of 180 test answers"
    chromium.evaluate("document.querySelector('#traces button[type=reset]').click()")
    assert chromium.evaluate(COUNT) == "90 of 180 test answers"


def test_a_prior_that_cannot_decide_is_neither_right_nor_wrong(chromium, tmp_path):
    folder = write_run(tmp_path, "grpo", n=6)
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    torn = {"control": "prior", "text": "", "answer": None, "correct": 0.25, "correct_lenient": 0.25}
    path.write_text("".join(json.dumps(r | torn if r["control"] == "blank" else r) + "\n" for r in rows))
    chromium.show(write_run_report(folder))
    choose(chromium, "control", "prior")
    detail = chromium.evaluate("document.getElementById('trace-detail').textContent")
    assert "undecided, a chance of 0.25" in detail
    assert "several options are equally frequent" in detail
    for outcome, count in (("right", 0), ("wrong", 0), ("unparsed", 0), ("", 18)):
        choose(chromium, "outcome", outcome)
        assert chromium.evaluate(COUNT) == f"{count} of 36 test answers"


def test_a_choice_of_what_to_compare_with_takes_the_other_run(chromium, page):
    chromium.show(page)
    choose(chromium, "against", "sft_600-seed0")
    assert chromium.evaluate("document.querySelector('#traces form').elements.run.value") == "grpo_600-seed1"
    chromium.wait_for("location.hash.includes('against=sft_600-seed0')")
    assert "change=" not in chromium.evaluate("location.hash")  # the usual one stays unsaid


def test_groups_show_every_completion(chromium, page, shots):
    chromium.show(page, "#traces?view=train&step=25")
    assert chromium.evaluate(COUNT) == "4 of 16 training groups"
    heads = "[...document.querySelectorAll('#trace-detail thead th')].map((head) => head.textContent)"
    heads = chromium.evaluate(heads)
    assert heads == ["#", "Completion", "Answer", "format", "accuracy", "Total", "Advantage"]
    assert chromium.evaluate("document.querySelectorAll('#trace-detail tbody tr').length") == 8
    choose(chromium, "sort", "mean")
    choose(chromium, "order", "down")
    means = chromium.evaluate(
        "[...document.querySelectorAll('.trace')].sort((a, b) => a.dataset.at - b.dataset.at)"
        ".map((row) => parseFloat(row.textContent.match(/mean ([\\d.]+)/)[1]))"
    )
    assert means == sorted(means, reverse=True)


def test_the_keyboard_is_enough(chromium, page):
    chromium.show(page)
    first = chromium.evaluate(ACTIVE)
    chromium.press("j", "j")
    assert chromium.evaluate(FOCUS) == "trace-list"
    chromium.press("k", "k")
    assert chromium.evaluate(ACTIVE) == first
    chromium.press("End")
    assert chromium.evaluate("document.querySelector('.trace[aria-selected=true]').dataset.at") == "89"
    chromium.press("Home", "PageDown", "ArrowUp", "ArrowDown", "Enter")
    assert chromium.evaluate(FOCUS) == "trace-detail"
    chromium.press("Escape", "/")
    assert chromium.evaluate(FOCUS) == "q"
    chromium.press(*"jk?")
    assert chromium.evaluate("document.activeElement.value") == "jk?"  # typed, not obeyed
    assert chromium.evaluate(COUNT) == "0 of 180 test answers"
    chromium.press("Escape", "?")
    assert chromium.evaluate("document.getElementById('trace-help').open")
    chromium.press("Escape")
    assert not chromium.evaluate("document.getElementById('trace-help').open")
    chromium.press("t")
    assert chromium.evaluate(COUNT) == "0 of 16 training groups"  # the search goes along


def test_keys_of_one_letter_can_be_switched_off(chromium, page):
    chromium.show(page)
    chromium.evaluate("document.getElementById('trace-keys').click()")
    chromium.press("j", "?")
    assert chromium.evaluate("document.querySelector('.trace[aria-selected=true]').dataset.at") == "0"
    assert not chromium.evaluate("document.getElementById('trace-help').open")
    chromium.evaluate("document.getElementById('trace-list').focus()")
    chromium.press("ArrowDown")
    assert chromium.evaluate("document.querySelector('.trace[aria-selected=true]').dataset.at") == "1"


def test_focus_is_seen(chromium, page):
    chromium.show(page)
    for _ in range(40):
        chromium.press("Tab")
        seen = chromium.evaluate(
            "(() => { const e = document.activeElement, ring = e.name === 'view' ? e.closest('fieldset') : e;"
            " return [getComputedStyle(ring).outlineStyle, e.outerHTML.slice(0, 80)]; })()"
        )
        assert seen[0] != "none", seen[1]


def test_the_address_brings_a_trace_back(chromium, page):
    chromium.show(page)
    choose(chromium, "set", "xray")
    choose(chromium, "q", "lesion")
    chromium.press("Escape")
    chromium.evaluate("document.getElementById('trace-list').focus()")
    chromium.press("ArrowDown", "ArrowDown", "ArrowDown")
    chromium.wait_for("location.hash.includes('item=')")
    address, shown = chromium.evaluate("location.hash"), chromium.evaluate(ACTIVE)
    count = chromium.evaluate(COUNT)
    chromium.show(page, address)
    assert (chromium.evaluate(ACTIVE), chromium.evaluate(COUNT)) == (shown, count)
    assert chromium.evaluate("document.querySelector('.trace[aria-selected=true]').dataset.at") == "3"
    chromium.show(page, "#traces?view=nonsense&set=nowhere&item=lost&q=%3Cb%3E")
    assert chromium.evaluate(COUNT) == "0 of 180 test answers"


def test_a_verdict_leads_into_the_traces(chromium, page):
    chromium.show(page)
    chromium.evaluate("document.querySelector('#verdicts a[href*=\"outcome=unparsed\"]').click()")
    chromium.wait_for(f"{COUNT} !== '90 of 180 test answers'")
    chromium.wait_for("Math.abs(document.getElementById('traces').getBoundingClientRect().top) < 100")
    assert "no answer parsed" in chromium.evaluate("document.getElementById('trace-detail').textContent")


def test_model_output_stays_text(chromium, tmp_path, sweep):
    attack = "</script><img src=x onerror='window.attacked=1'><script>window.attacked=1</script>"
    folder = write_sweep(tmp_path / "hostile", n=6) / "grpo_600-seed0"
    for path in [folder / "predictions.jsonl", *(folder / "rollouts").iterdir()]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        hostile = [row | {"text": attack, "question": attack} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in hostile))
    report = write_run_report(folder)
    for view in ("test", "train"):
        chromium.show(report, f"#traces?view={view}")
        assert attack in chromium.evaluate("document.querySelector('#trace-detail .response').textContent")
        assert chromium.evaluate("window.attacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_can_be_read(chromium, page, shots, width, scheme):
    for view in ("test", "train"):
        chromium.show(page, f"#traces?view={view}", width, scheme=scheme)
        assert chromium.evaluate(FITS)
        assert chromium.evaluate(CONTRAST) == []
        chromium.screenshot(shots / f"traces-{view}-{width}-{scheme}.png")
    chromium.show(page, "", width, scheme=scheme)
    dark = chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    assert dark == (scheme == "dark")
    shot = chromium.screenshot(shots / f"page-{width}-{scheme}.png", whole=True)
    assert shot.stat().st_size > 50_000
    chromium.evaluate("document.getElementById('trace-help').showModal()")
    assert chromium.evaluate(FITS)
    chromium.screenshot(shots / f"help-{width}-{scheme}.png")


def test_every_control_has_an_accessible_name(chromium, page):
    chromium.show(page)
    tree = chromium.call("Accessibility.getFullAXTree")["nodes"]
    named = {"link", "button", "textbox", "searchbox", "combobox", "radio", "listbox", "option", "region"}
    roles = [(n["role"]["value"], n.get("name", {}).get("value")) for n in tree if not n["ignored"]]
    assert [role for role, name in roles if role in named and not name] == []
    assert {role for role, _ in roles} >= {"banner", "navigation", "main", "contentinfo", "search", "listbox"}


def test_the_page_prints_without_the_browser(chromium, page, shots):
    chromium.show(page, scheme="dark")
    chromium.look(1000, media="print", scheme="dark")
    assert chromium.evaluate("getComputedStyle(document.getElementById('traces')).display") == "none"
    assert chromium.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    chromium.look(720, media="print")
    assert chromium.evaluate(FITS)
    chromium.screenshot(shots / "print.png", whole=True)
    chromium.look(1000)
    assert chromium.pdf(shots / "page.pdf").read_bytes()[:5] == b"%PDF-"


def test_a_browser_that_cannot_unpack_gets_a_message(chromium, page):
    source = "delete window.DecompressionStream"
    script = chromium.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    try:
        chromium.look(1440)
        chromium.open(page)
        assert "cannot unpack" in chromium.evaluate("document.getElementById('trace-wait').textContent")
    finally:
        chromium.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
