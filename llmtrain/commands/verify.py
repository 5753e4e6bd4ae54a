"""`llmtrain verify`: train under each strategy and in one process, and compare every number.

RUN_DIR/reference/  RUN_DIR/<strategy>/ ...   a run directory each, with its records
RUN_DIR/verify.json                            every run and every comparison
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtrain.commands.compose import Composer, composer
from llmtrain.commands.freeze import freeze, run_folder
from llmtrain.commands.options import Options
from llmtrain.commands.train import plan_run
from llmtrain.config.paths import LOGS, make_run_dir
from llmtrain.config.plan import Plan
from llmtrain.config.result import read_result
from llmtrain.config.schema import RunConfig, VerifyRunConfig, run_of
from llmtrain.config.store import to_yaml
from llmtrain.config.verify import (
    REFERENCE,
    REPORT,
    Case,
    StrategyRun,
    Verification,
    chosen_cases,
    load_verification,
)
from llmtrain.errors import EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM, ConfigError, require
from llmtrain.launch import foreign
from llmtrain.launch.claim import claimed
from llmtrain.launch.failure import log_tail
from llmtrain.launch.local import launch, run_task
from llmtrain.panel import show_error, show_note
from llmtrain.units import counted, format_duration

OUTPUT = "output.log"
"""In logs/: what a run would print on a terminal."""

INSTEAD = {
    "strategy": "verify.strategies=[...] names the strategies, as presets or as overrides",
    "launcher.nproc_per_node": "each strategy has its own number; write it into its string in "
    "verify.strategies",
    "train.steps": "use verify.steps",
    "train.tokens": "use verify.steps",
    "train.epochs": "use verify.steps",
}
"""Settings that verify gives a value itself, and what to write in their place."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run that is known to be possible."""

    name: str
    overrides: list[str]
    run: RunConfig
    plan: Plan


def run_verify(options: Options) -> int:
    """Run `llmtrain verify`; return the exit code.

    0: every strategy computes what one process computes; 1: some do not; 130, 143: a signal came.

    Raises:
        UserError: for everything that can be told before a process starts.
    """
    if foreign.rank() is not None:
        raise ConfigError("llmtrain verify starts its own processes: run it without torchrun.")
    words = [*options.overrides, *(["json=true"] if options.has("--json") else [])]
    with composer("verify", options.config_dirs) as hydra:
        config: VerifyRunConfig = hydra.compose(words).config
        if options.has("--cfg"):
            print(to_yaml(config), end="")
            return EXIT_OK
        planned = plan_runs(hydra, words, config)
    folder = run_folder(config, marks=(REPORT,), leftovers=(LOGS,))
    with claimed(folder):
        _clear(folder)
        verification = Verification(
            precision=config.train.precision, steps=config.verify.steps,
            runs=[StrategyRun(p.name, p.overrides, p.plan.world_size) for p in planned],
        )  # fmt: skip
        count = counted(len(planned) - 1, "strategy", "strategies")
        show_note(f"{count} against one process, in {folder}")
        code = _run_all(planned, verification, folder)
        if code != EXIT_OK:
            return code
        request = {
            "folder": str(folder), "json_answer": config.json,
            "keep_records": config.verify.keep_records,
        }  # fmt: skip
        return run_task("verify", request)


def plan_runs(hydra: Composer, words: Sequence[str], config: VerifyRunConfig) -> list[Planned]:
    """Return the reference's run and every strategy's, composed and planned.

    Args:
        hydra: Composes `llmtrain verify`.
        words: The overrides as typed.
        config: What they compose to.

    Raises:
        ConfigError: when a strategy is not known, or the plan refuses one; names the strategy.
    """
    _require_same_numbers(config.sync.name)
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        key = "strategy" if key.startswith("strategy.") else key
        if key in INSTEAD:
            raise ConfigError(f"{word}: llmtrain verify sets {key} itself; {INSTEAD[key]}.")
    one = Case(REFERENCE, ("strategy=single", "launcher.nproc_per_node=1"), is_preset=False)
    planned = [_plan(hydra, words, one)]
    for case in chosen_cases(config.verify):
        with _named(case):
            planned.append(_plan(hydra, words, case))
            _require_same_numbers(planned[-1].run.sync.name)
            require(
                planned[-1].plan.world_size > 1,
                "one process is what it would be compared with; name a strategy of several.",
            )
    return planned


def _require_same_numbers(sync: str) -> None:
    require(
        sync == "allreduce",
        f"sync={sync} does not compute what one process computes: only sync=allreduce can be "
        "verified.",
    )


@contextlib.contextmanager
def _named(case: Case) -> Iterator[None]:
    """Say of which strategy a refusal speaks.

    Raises:
        ConfigError: what was raised inside, with the strategy before it.
    """
    try:
        yield
    except ConfigError as error:
        told = f"{case.name} ({' '.join(case.overrides)})" if case.is_preset else case.name
        raise ConfigError(
            f"verify.strategies: {told} cannot run: {error}\nOr leave it out of verify.strategies."
        ) from None


def _plan(hydra: Composer, words: Sequence[str], case: Case) -> Planned:
    """Compose and plan one run. What is typed wins over a preset, a custom strategy over both."""
    typed = {word.lstrip("+").partition("=")[0] for word in words}
    own = [word for word in case.overrides
           if not (case.is_preset and word.partition("=")[0] in typed)]  # fmt: skip
    keys = {word.partition("=")[0] for word in own}
    given = [word for word in words if word.lstrip("+").partition("=")[0] not in keys]
    composed = hydra.compose([*given, *own]).config
    run = _forced(run_of(composed), composed.verify.steps)
    return Planned(case.name, [*given, *own], run, plan_run(run))


def _forced(run: RunConfig, steps: int) -> RunConfig:
    """Return `run` with what a comparison needs, and without what it does not."""
    return dataclasses.replace(
        run,
        train=dataclasses.replace(
            run.train, steps=steps, tokens=None, epochs=None, log_every_steps=1,
            eval_every_steps=None, early_stop_evals=None, sample_tokens=0,
            eval_tokens=run.train.eval_tokens or run.train.global_batch_size * run.model.seq_len,
        ),
        checkpoint=dataclasses.replace(run.checkpoint, every_steps=None, save_best=False),
        metrics=dataclasses.replace(
            run.metrics, record=True, progress=False, tensorboard=False, wandb=False,
            peak_tflops=run.metrics.peak_tflops or 1.0,
        ),
    )  # fmt: skip


def _clear(folder: Path) -> None:
    """Remove the runs of an earlier verification: training would go on from where they ended.

    Raises:
        ConfigError: when its verify.json cannot be read.
    """
    if not (folder / REPORT).is_file():
        return
    for run in load_verification(folder).runs:
        if Path(run.name).name == run.name and (folder / run.name).is_dir():
            shutil.rmtree(folder / run.name)
    (folder / REPORT).unlink()


def _run_all(planned: Sequence[Planned], verification: Verification, folder: Path) -> int:
    """Run everything, one after the other; return the exit code that ends it, 0 to go on."""
    code = EXIT_OK
    verification.save(folder)
    for number, (one, run) in enumerate(zip(planned, verification.runs, strict=True)):
        what = next(iter(one.run.strategy.name.split()))
        processes = counted(run.processes, "process", "processes")
        show_note(f"{number}/{len(planned) - 1} {run.name}: strategy={what}, {processes}")
        began = time.monotonic()
        try:
            run.exit_code = _run_one(one, folder / run.name)
        except KeyboardInterrupt:
            run.exit_code = EXIT_SIGINT
        run.wall_s = time.monotonic() - began
        stopped = run.exit_code in (EXIT_SIGINT, EXIT_SIGTERM)
        run.status = "stopped" if stopped else "failed" if run.exit_code else "completed"
        run.error = _error(folder / run.name) if run.status == "failed" else None
        if stopped or (run.name == REFERENCE and run.exit_code):
            code = run.exit_code
            verification.status = "stopped" if stopped else "failed"
        verification.save(folder)
        if code != EXIT_OK:
            _tell_end(run, folder, stopped=stopped)
            break
        if run.status == "failed":
            show_note(f"  failed after {format_duration(run.wall_s)}: {run.error}")
    return code


def _run_one(one: Planned, run_dir: Path) -> int:
    """Train one run in its own folder, silently; return its exit code."""
    run = dataclasses.replace(one.run, run_dir=str(make_run_dir(run_dir)))
    freeze(run, one.plan, one.overrides, run_dir)
    return launch(run_dir, run, one.plan, output=run_dir / LOGS / OUTPUT)


def _error(run_dir: Path) -> str:
    """Return what result.json says of a failure."""
    return str(read_result(run_dir).get("error") or "it ended without a word")


def _tell_end(run: StrategyRun, folder: Path, *, stopped: bool) -> None:
    """Say why the verification ends before its comparison."""
    if stopped:
        show_note(f"stopped in {run.name}; nothing was compared")
        return
    tail = log_tail(folder / run.name, 0)
    body = [run.error or "", *(["", "Last lines of its log:", *tail] if tail else [])]
    show_error("the reference failed", "\n".join(body), footer=str(folder / run.name / LOGS))
