"""The task `verify`: compare the recorded runs of a verification, in one process."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from llmtrain.config.paths import CONFIG, LOGS, PLAN, RECORDS
from llmtrain.config.plan import Plan
from llmtrain.config.store import load_run_config
from llmtrain.config.verify import REPORT, StrategyRun, Verification, load_verification
from llmtrain.console import PLAIN_WIDTH, make_console
from llmtrain.errors import EXIT_BUG, EXIT_OK
from llmtrain.train.compare import (
    GRADIENT,
    LOSS,
    NORM,
    SPOKEN,
    WEIGHT,
    Comparison,
    Recording,
    compare,
)
from llmtrain.train.tolerance import Tolerance, make_tolerance
from llmtrain.units import counted


def run_verify(folder: str, *, json_answer: bool, keep_records: bool) -> int:
    """Compare every run of `folder` with its reference, and tell; return the exit code.

    Args:
        folder: That of the verification, with its verify.json.
        json_answer: Print verify.json instead of a table.
        keep_records: Keep all tensors; else those of runs that pass go, and where all pass the
            reference's too.

    Raises:
        ConfigError: when verify.json cannot be read.
    """
    root = Path(folder)
    verification = load_verification(root)
    one, *others = verification.runs
    reference = Recording(root / one.name)
    tolerance = tolerance_of(root / one.name)
    rows = []
    for run in others:
        comparison = compare(reference, Recording(root / run.name), tolerance)
        row = _row(run, comparison, root)
        rows.append(row)
        if row["passed"] and not keep_records:
            shutil.rmtree(root / run.name / RECORDS)
    passed = all(row["passed"] for row in rows)
    if passed and not keep_records:
        shutil.rmtree(root / one.name / RECORDS)
    verification.comparisons = rows
    verification.tolerance = _tolerance(tolerance, verification.steps)
    verification.status = "passed" if passed else "failed"
    verification.save(root)
    if json_answer:
        print((root / REPORT).read_text(), end="")
    else:
        show(verification, root)
    return EXIT_OK if passed else EXIT_BUG


def tolerance_of(reference: Path) -> Tolerance:
    """Return what rounding may do in the run of the folder `reference`.

    Raises:
        ConfigError: when its configuration cannot be read.
    """
    run = load_run_config(reference / CONFIG)
    plan = Plan(**json.loads((reference / PLAN).read_text()))
    return make_tolerance(run, plan, Recording(reference).weights_rms)


def _tolerance(tolerance: Tolerance, steps: int) -> dict[str, Any]:
    """Return the bounds for verify.json: the formula's numbers, and a bound for each step."""
    return {
        "one_pass": "P = 8 u sqrt(n d)",
        "gradients_in_step_k": "P + sqrt(d) (k - 1) r * mean_gain",
        "weights_after_step_k": "P + k r * weight_gain",
        "numbers": dataclasses.asdict(tolerance),
        "gradients": [tolerance.of(GRADIENT, step) for step in range(1, steps + 1)],
        "weights": [tolerance.of(WEIGHT, step) for step in range(1, steps + 1)],
    }


def _row(run: StrategyRun, comparison: Comparison, root: Path) -> dict[str, Any]:
    """Return the row of verify.json for one strategy; what is not finite is null there."""
    row: dict[str, Any] = {
        "name": run.name, "processes": run.processes,
        "passed": comparison.passed and run.status == "completed", "error": run.error,
        "wall_s": run.wall_s,
    }  # fmt: skip
    for quantity, worst in comparison.worst.items():
        row[quantity] = {
            **dataclasses.asdict(worst), "error": _finite(worst.error),
            "share": _finite(worst.share),
        }  # fmt: skip
    divergence = comparison.divergence
    row["divergence"] = None
    if divergence is not None:
        row["divergence"] = dataclasses.asdict(divergence)
        row["divergence"]["error"] = _finite(divergence.error)
    if not row["passed"]:
        row["log"] = str(root / run.name / LOGS)
    return row


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(verification: Verification, root: Path) -> None:
    """Print the table of strategies, and under it where each that fails parts from one process."""
    console = make_console()
    assert verification.tolerance is not None
    first = verification.tolerance["gradients"][0]
    table = _table(verification, wide=True)
    boundless = console.options.update(max_width=PLAIN_WIDTH)
    fits = console.measure(table, options=boundless).maximum <= console.width
    console.print(table if fits else _table(verification, wide=False))
    steps = verification.steps
    console.print(
        f"Largest relative errors of {counted(steps, 'step')} in {verification.precision}, "
        "beside one process. "
        f"Tolerance: {first:.1e} in step 1, as above in step {steps}.", style="dim",
    )  # fmt: skip
    for row in verification.comparisons:
        if not row["passed"]:
            console.print()
            console.print(Text(_told(row)), soft_wrap=True)
    failed = sum(not row["passed"] for row in verification.comparisons)
    total = len(verification.comparisons)
    names = [row["name"] for row in verification.comparisons]
    of = counted(total, "strategy", "strategies")
    passed = f"All {total} strategies compute" if total > 1 else f"{names[0]} computes"
    console.print(
        f"\n{failed} of {of} FAIL; {root / REPORT} has every number."
        if failed else f"\n{passed} what one process computes.",
        soft_wrap=True,
    )  # fmt: skip


def _table(verification: Verification, *, wide: bool) -> Table:
    """Return the table of strategies: `wide`, with the parameters whose errors are the largest."""
    gap, between, parameter = (2, " ", ("of",)) if wide else (1, "\n", ())
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    for column in ("strategy", ">processes", ">loss", f">gradient{between}norm", ">gradient",
                   *parameter, ">weight", *parameter, f">of{between}tolerance", "",
                   ">wall"):  # fmt: skip
        table.add_column(
            column.lstrip(">"), justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )  # fmt: skip
    for row in verification.comparisons:
        verdict = Text("pass", "green") if row["passed"] else Text("FAIL", "bold red")
        worst: list[str] = []
        for quantity in (GRADIENT, WEIGHT):
            told = _size(row[quantity]["error"]), row[quantity]["parameter"] or ""
            worst += told[: 1 + len(parameter)]
        table.add_row(
            row["name"], str(row["processes"]), _size(row[LOSS]["error"]),
            _size(row[NORM]["error"]), *worst, _percent(_share(row)), verdict,
            f"{row['wall_s'] or 0:.0f}s",
        )  # fmt: skip
    assert verification.tolerance is not None
    last, weights = (_size(verification.tolerance[name][-1]) for name in ("gradients", "weights"))
    blank = [""] * len(parameter)
    table.add_row("tolerance", "", last, last, last, *blank, weights, style="dim")
    return table


def _told(row: dict[str, Any]) -> str:
    """Return what is to be said of a strategy that fails."""
    lines = [f"FAIL {row['name']}"]
    if row["error"] is not None:
        lines.append(f"  It ended with an error: {row['error']}")
    if row["divergence"] is not None:
        lines.append(f"  {row['divergence']['text']}")
    return "\n".join([*lines, f"  Logs: {row['log']}"])


def _size(error: float | None) -> str:
    return "inf" if error is None else f"{error:.1e}"


def _share(row: dict[str, Any]) -> float:
    shares = [row[quantity]["share"] for quantity in SPOKEN]
    return math.inf if None in shares else max(shares)


def _percent(share: float) -> str:
    return "over" if share > 1 else f"{share:.1%}"
