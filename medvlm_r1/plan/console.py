"""A plan as tables of at most 100 columns."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from medvlm_r1.plan.plan import Plan

_WIDTH = 100


def show(
    plan: Plan, name: str, remedies: Mapping[Sequence[str], Plan], console: Console | None = None
) -> None:
    """Print one plan.

    Args:
        name: what was planned, the command's overrides.
        remedies: overrides that make it fit, and the plans that they lead to.
    """
    console = console or Console(width=_WIDTH, highlight=False)
    workload, card = plan.workload, plan.card
    devices = f"{workload.world} x {card.name}" if workload.world > 1 else card.name
    console.print(
        f"\n[bold]Plan of {escape(name)}[/bold]: {escape(workload.path)} on {devices} ({workload.strategy})\n"
    )
    console.print(_parameters(plan))
    console.print(_memory(plan))
    if plan.fits:
        console.print(f"[bold green]Fits[/bold green]: {_gb(plan.peak)} of {_gb(card.memory)} GB.\n")
    console.print(_time(plan))
    for note in plan.notes:
        console.print(f"[dim]- {escape(note)}[/dim]")
    if not plan.fits:
        console.print(_warning(plan, remedies))


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters", "", "trained", "frozen")
    for count in plan.counts:
        if count.trained or count.frozen:
            table.add_row(count.name, f"{count.trained:,}", f"{count.frozen:,}")
    trained, frozen = (sum(getattr(c, kind) for c in plan.counts) for kind in ("trained", "frozen"))
    table.add_section()
    table.add_row("all", f"{trained:,}", f"{frozen:,}")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("Memory of one GPU by phase, GB (1e9 bytes)", "", *plan.phases)
    for part in plan.held:
        cells = [part.at.get(phase, 0) for phase in plan.phases]
        if any(cells):
            table.add_row(part.name, *(_gb(cell) if cell else "" for cell in cells))
    table.add_section()
    table.add_row("peak", *(_gb(peak) for peak in plan.peaks.values()), style="bold")
    return table


def _time(plan: Plan) -> Table:
    workload = plan.workload
    table = _table("Time, an estimate", "one step, on each GPU", "TFLOP", "seconds")
    for work in plan.work:
        table.add_row(work.phase, f"{work.flops / 1e12:,.1f}", f"{work.seconds:,.2f}")
    step = sum(work.seconds for work in plan.work)
    if plan.work:
        table.add_section()
        table.add_row("step", f"{sum(w.flops for w in plan.work) / 1e12:,.1f}", f"{step:,.2f}", style="bold")
    if plan.seconds is None:
        table.add_row("whole run", "", "unknown: the number of questions is in the data files")
        return table
    if workload.steps:
        table.add_row(f"{workload.steps:,} steps", "", _clock(workload.steps * step))
    answering = workload.evaluations * plan.answering / workload.world
    table.add_row(f"{workload.evaluations:,} answers in evaluation", "", _clock(answering))
    table.add_row("whole run", "", _clock(plan.seconds), style="bold")
    return table


def _warning(plan: Plan, remedies: Mapping[Sequence[str], Plan]) -> RenderableType:
    fullest = max(plan.peaks, key=plan.peaks.get)
    lines = [
        f"\n[bold red]Does not fit[/bold red]: {fullest} needs {_gb(plan.peak)} GB on each device, and "
        f"the {plan.card.name} has {_gb(plan.card.memory)}."
    ]
    for overrides, smaller in remedies.items():
        lines.append(f"  fits with [bold]{escape(' '.join(overrides))}[/bold] ({_gb(smaller.peak)} GB)")
    if not remedies:
        lines.append(
            "  No change of tuning, optimiser, checkpointing or trainer that was tried makes it fit."
        )
    return "\n".join(lines)


def _table(title: str, *heads: str) -> Table:
    width = max(len(title), 40)
    table = Table(
        title=title,
        min_width=width,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 1e10 else f"{size / 1e9:,.1f}"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    if not minutes:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
