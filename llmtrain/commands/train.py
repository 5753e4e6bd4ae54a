"""`llmtrain train`: compose, plan, check, freeze, start."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from llmtrain.checkpoint.compatible import check_newest
from llmtrain.commands.freeze import freeze, run_folder
from llmtrain.commands.options import Options
from llmtrain.commands.show import print_plan
from llmtrain.config.extras import check_extras
from llmtrain.config.paths import CHECKPOINTS, METRICS
from llmtrain.config.plan import Plan, make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import to_yaml
from llmtrain.data.stdin import keep_stdin
from llmtrain.errors import EXIT_OK, ConfigError, require
from llmtrain.launch import torchrun
from llmtrain.launch.claim import claimed
from llmtrain.launch.local import launch
from llmtrain.machine import gpu_count
from llmtrain.panel import show_note
from llmtrain.train.push_log import read_pushes


def run_train(options: Options) -> int:
    """Run `llmtrain train`; return the exit code.

    Raises:
        UserError: for everything that can be told before a process starts.
    """
    # Imported here: what starts a frozen run (llmtrain/start.py) does without Hydra.
    from llmtrain.commands.compose import composer

    rank = torchrun.rank()
    if rank and (options.has("--cfg") or options.has("--dry-run")):
        return EXIT_OK  # rank 0 answers
    with composer("train", options.config_dirs) as hydra:
        composed = hydra.compose(options.overrides)
        if options.has("--cfg"):
            print(to_yaml(composed.config), end="")
            return EXIT_OK
    if composed.sweep is not None:  # an experiment's YAML may be one
        from llmtrain.commands.sweep import run_sweep

        return run_sweep(options)
    for word in options.overrides:
        require(
            not word.lstrip("+").startswith("sweep."),
            f"{word} is for several runs: put -m first (llmtrain train -m ...), or leave it out.",
        )
    run: RunConfig = composed.config
    if rank is None and not options.has("--dry-run"):
        run = dataclasses.replace(run, data=keep_stdin(run.data))
    plan = plan_run(run, None if rank is None else torchrun.world_size())
    if rank is not None and plan.servers:
        raise ConfigError(
            f"sync={run.sync.name} starts a server and replicas that live and die on their own, "
            "which torchrun's workers cannot; run `llmtrain train ...` without torchrun."
        )
    if rank:
        # It has composed too, so that what is refused ends every rank at once.
        return torchrun.become_worker("-", run.launcher)
    if options.has("--dry-run"):
        print_plan(run, plan)
        return EXIT_OK
    return start(run, plan, options.overrides, under_torchrun=rank is not None)


def plan_run(run: RunConfig, world_size: int | None = None, *, gpus: int | None = None) -> Plan:
    """Return the plan of `run`, its data source looked at.

    Args:
        run: The configuration.
        world_size: Processes that exist already (under torchrun).
        gpus: CUDA devices that it may have; null: those of this machine.

    Raises:
        UserError: when it cannot run here.
    """
    from llmtrain.data.locate import check_source
    from llmtrain.tokenizer.pretrained import check_tokenizer

    present = gpu_count() if gpus is None else gpus
    used = 0 if run.train.device == "cpu" else present
    plan = make_plan(run, gpus=used, world_size=world_size)
    check_source(run.data)
    check_tokenizer(run.tokenizer)
    check_extras(run.metrics)
    simulate = run.sync.simulate
    if simulate.log is not None:
        assert simulate.workers is not None
        read_pushes(Path(simulate.log), simulate.workers)
    return plan


def start(
    run: RunConfig, plan: Plan, overrides: Sequence[str], *, under_torchrun: bool = False
) -> int:
    """Freeze the run directory and train from it; return the exit code.

    Raises:
        ConfigError: when the run directory cannot be had.
    """
    run_dir = run_folder(run)
    with claimed(run_dir):
        # Before the folder's config is replaced: a refused start must leave the run as it was.
        check_newest(
            run_dir / CHECKPOINTS,
            model=dataclasses.asdict(run.model),
            optimizer=run.optimizer.name,
            tokenizer=run.tokenizer.name,
        )
        if freeze(run, plan, overrides, run_dir) and (run_dir / METRICS).is_file():
            show_note(f"resuming {run_dir}")
        if not under_torchrun:
            return launch(run_dir, run, plan)
        # Inside: the claim is passed on to the worker that this process becomes.
        return torchrun.become_worker(str(run_dir), run.launcher)
