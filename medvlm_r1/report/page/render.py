"""``report.html``: one file that needs no network, for a single run or for a comparison.

The page holds its styles (``page.css``, ``traces.css``) and its scripts (``report/traces/*.js``).
"""

import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from medvlm_r1.report.comparison import Comparison, compare
from medvlm_r1.report.figures import colour_numbers
from medvlm_r1.report.methods import method_title
from medvlm_r1.report.page.headline import caveat, headline, title
from medvlm_r1.report.page.sections import SECTIONS
from medvlm_r1.report.page.verdicts import traces_link
from medvlm_r1.report.tables.table import percent, set_name, span
from medvlm_r1.report.traces.pack import answer_set_name
from medvlm_r1.runs.durable import write_whole

STYLES = ("page/page.css", "traces/traces.css")
SCRIPTS = tuple(f"traces/{name}.js" for name in ("read", "search", "list", "show", "traces"))


def write_run_report(run_folder: Path) -> Path:
    """Write ``report.html`` into one finished run's folder, and return its path."""
    return write_comparison_report([run_folder], run_folder)


def write_comparison_report(folders: Sequence[Path], out: Path, baseline: str | None = None) -> Path:
    """Write ``out/report.html``, and return its path; see :func:`~medvlm_r1.report.comparison.compare`."""
    command = ["medvlm-r1", "compare", *map(str, folders)]
    command += ["--baseline", baseline] if baseline else []
    command += [] if [Path(f) for f in folders] == [Path(out)] else ["--out", str(out)]
    return write_page(compare(folders, baseline), Path(out), shlex.join(command))


def write_page(c: Comparison, out: Path, command: str) -> Path:
    """Write ``out/report.html``, and return its path; ``command`` writes the page, and ends it."""
    environment = Environment(
        loader=PackageLoader("medvlm_r1.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "span": span, "set_name": set_name}
    environment.filters |= {"tags": mark_tags, "clock": clock}
    environment.globals |= {"traces_link": traces_link, "answer_set_name": answer_set_name}
    environment.globals |= {"method_title": method_title, "colours": colour_numbers(c.groups)}
    sections = [section for make in SECTIONS if (section := make(c))]
    bodies = {s.id: Markup(environment.get_template(s.template).render(s.context)) for s in sections}
    page = environment.get_template("page/base.html").render(
        title=title(c),
        headline=headline(c),
        caveat=caveat(c),
        runs=c.runs,
        sections=sections,
        bodies=bodies,
        style=inline(STYLES),
        script=inline(SCRIPTS),
        command=command,
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_whole(path, page)
    return path


def inline(names: Sequence[str]) -> Markup:
    """Content of style sheets or scripts of this package, one after another."""
    folder = files("medvlm_r1.report")
    return Markup("\n".join((folder / name).read_text(encoding="utf-8") for name in names))


def mark_tags(text: str) -> Markup:
    """Escape model text and dim its think and answer tags; a note replaces four or more line breaks."""
    if not text.strip():
        return Markup('<span class="tag">(white space only)</span>')
    marked = str(escape(text))
    for name in ("think", "answer"):
        for tag in (f"&lt;{name}&gt;", f"&lt;/{name}&gt;"):
            marked = marked.replace(tag, f'<span class="tag">{tag}</span>')
    marked = re.sub(r"\n{4,}", lambda m: f'\n<span class="tag">({len(m[0])} line breaks)</span>\n', marked)
    return Markup(marked)  # text is escaped before the tags are added


def clock(seconds: float) -> str:
    """``64.3`` -> ``1 min 04 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
