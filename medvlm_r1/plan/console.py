"""Print a plan as tables, at most 80 columns wide."""

import shutil
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from medvlm_r1.plan.devices import cheapest, device_hours, refused_counts
from medvlm_r1.plan.plan import Plan
from medvlm_r1.plan.times import PhaseCost, sum_phases
from medvlm_r1.plan.workload import Workload


def show(
    plan: Plan,
    name: str,
    remedies: Mapping[Sequence[str], Plan],
    others: Sequence[Plan] = (),
    console: Console | None = None,
) -> None:
    """Print the plan of the run with the overrides ``name``.

    Args:
        remedies: overrides that make it fit.
        others: the same run on other devices.
    """
    console = console or Console(width=min(100, shutil.get_terminal_size((100, 24)).columns), highlight=False)
    workload, card = plan.workload, plan.card
    devices = f"{workload.world_size} x {card.name}" if workload.world_size > 1 else card.name
    console.print(
        f"\n[bold]Plan of {escape(name)}[/bold]: {escape(workload.path)} on {devices} ({workload.strategy})\n"
    )
    console.print(_parameters(plan))
    console.print(_memory(plan))
    if plan.fits:
        console.print(f"[bold green]Fits[/bold green]: {_gb(plan.peak)} of {_gb(card.memory)} GB.\n")
    console.print(_host(plan))
    console.print(_time(plan))
    if len(others) > 1:
        console.print(_devices(others))
        _print_refused(workload, console)
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
    for part in plan.memory:
        cells = [part.bytes.get(phase, 0) for phase in plan.phases]
        if any(cells):
            table.add_row(part.name, *(_gb(cell) if cell else "" for cell in cells))
    table.add_section()
    table.add_row("peak", *(_gb(peak) for peak in plan.peaks.values()), style="bold")
    return table


def _host(plan: Plan) -> Table:
    table = _table("Disk and host memory, GB", "", "")
    table.show_header = False
    if plan.workload.checkpoints:
        last, best = plan.checkpoints
        table.add_row("last.ckpt, before.ckpt, and one while it is written", _gb(3 * last))
        table.add_row("best.ckpt", _gb(best))
    table.add_row("host memory of all processes while weights load", _gb(plan.host_memory))
    return table


def _time(plan: Plan) -> Table:
    workload, asked = plan.workload, plan.workload.questions
    columns = ("one step, on each GPU", "TFLOP", "GB moved", "kernels") if plan.step else ("",)
    table = _table("Time, an estimate", *columns, "seconds")
    table.show_header = bool(plan.step)

    def add(name: str, *costs: PhaseCost, style: str | None = None) -> None:
        total = sum_phases(name, costs)
        cells = (
            f"{total.flops / 1e12:,.1f}",
            f"{total.traffic / 1e9:,.0f}",
            f"{total.launches / 1e3:,.0f} k",
        )
        table.add_row(name, *cells, f"{total.seconds:,.2f}", style=style)

    def add_time(name: str, time: str, style: str | None = None) -> None:
        table.add_row(name, *[""] * (len(columns) - 1), time, style=style)

    for cost in plan.step:
        add(cost.phase, cost)
    if plan.step:
        table.add_section()
        add("step", *plan.step, style="bold")
    if plan.seconds is None:
        add_time("whole run", "unknown")
        return table
    if asked.steps:
        updates = f" of {workload.updates} updates" if workload.updates > 1 else ""
        add_time(f"{asked.steps:,} steps{updates}", _duration(asked.steps * plan.step_seconds))
    if workload.checkpoints:
        written = f"{workload.checkpoints} checkpoints of {_gb(plan.checkpoints[0])} GB"
        add_time(written, _duration(plan.checkpoint_seconds))
    add_time(f"{asked.evaluations:,} answers in evaluation", _duration(plan.evaluation_seconds))
    add_time("whole run", _duration(plan.seconds), style="bold")
    return table


def _devices(plans: Sequence[Plan]) -> Table:
    columns = ("trainer", "devices", "peak, GB", "step, s", "whole run", "GPU-hours")
    table = _table("Other GPUs of one machine, an estimate", *columns)
    table.add_column("", no_wrap=True)
    best = cheapest(plans)
    for made in plans:
        run, known = made.workload, made.seconds is not None
        mark = "cheapest" if made is best else "" if made.fits else "too large"
        cells = (
            run.strategy,
            str(run.world_size),
            _gb(made.peak),
            f"{made.step_seconds:.2f}" if made.step else "",
        )
        total = (_duration(made.seconds), f"{device_hours(made):.2f}") if known else ("unknown", "")
        table.add_row(*cells, *total, mark, style="bold" if made is best else "" if made.fits else "dim")
    return table


def _print_refused(workload: Workload, console: Console) -> None:
    if refused := refused_counts(workload):
        counts, prompts = " or ".join(map(str, refused)), workload.recipe.prompts_per_step
        console.print(
            f"{counts} devices cannot share {prompts} prompts per step evenly: raise "
            "model.recipe.prompts_per_step.\n"
        )


def _warning(plan: Plan, remedies: Mapping[Sequence[str], Plan]) -> RenderableType:
    fullest = max(plan.peaks, key=plan.peaks.get)
    lines = [
        f"\n[bold red]Does not fit[/bold red]: {fullest} needs {_gb(plan.peak)} GB on each device, and "
        f"the {plan.card.name} has {_gb(plan.card.memory)}."
    ]
    for overrides, smaller in remedies.items():
        lines.append(f"  fits with [bold]{escape(' '.join(overrides))}[/bold] ({_gb(smaller.peak)} GB)")
    if not remedies:
        lines.append("  No tried change of peft, optimizer, checkpointing or trainer makes it fit.")
    return "\n".join(lines)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        min_width=max(len(title), 40),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 1e10 else f"{size / 1e9:,.1f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if not minutes:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
