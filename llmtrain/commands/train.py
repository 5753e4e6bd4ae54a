"""`llmtrain train`: compose, plan, check, freeze, start."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from llmtrain.commands.freeze import drop, dropped_if_refused, freeze, is_made, run_folder
from llmtrain.commands.options import Options
from llmtrain.commands.show import print_hosts, print_plan
from llmtrain.commands.submit import in_time, planned_dir, script_of, submit
from llmtrain.config.extras import check_extras
from llmtrain.config.groups.cloud import CloudLauncherConfig
from llmtrain.config.groups.launcher import TorchrunLauncherConfig
from llmtrain.config.groups.slurm import SlurmLauncherConfig
from llmtrain.config.paths import METRICS, RESULT
from llmtrain.config.plan import Plan, make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import to_yaml
from llmtrain.data.stdin import keep_stdin
from llmtrain.distributed.node import Node, this_node
from llmtrain.errors import EXIT_OK, EXIT_USER, ConfigError, require
from llmtrain.launch import foreign
from llmtrain.launch.claim import claimed
from llmtrain.launch.local import join, launch
from llmtrain.launch.slurm import refuse_active
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
    if isinstance(run.launcher, CloudLauncherConfig):
        from llmtrain.commands.render import run_render

        return run_render(options, run)
    return _run_one(options, run)


def _run_one(options: Options, run: RunConfig) -> int:
    """Plan `run`, and start, join or submit it, or become its rank 0."""
    rank = foreign.rank()
    if isinstance(run.launcher, SlurmLauncherConfig):
        if rank is not None:
            raise ConfigError("launcher=slurm submits a job: run it without torchrun or srun.")
        run = in_time(run)
    if rank is None and not options.has("--dry-run"):
        run = dataclasses.replace(run, data=keep_stdin(run.data))
    plan = plan_run(run, None if rank is None else foreign.world_size())
    if rank is not None and plan.servers:
        raise ConfigError(
            f"sync={run.sync.name} starts a server and replicas that live and die on their own, "
            "which ranks of another launcher cannot; run `llmtrain train ...` without it."
        )
    if options.has("--dry-run"):
        print_plan(run, plan)
        if isinstance(run.launcher, TorchrunLauncherConfig):
            print_hosts(run.launcher, options.typed)
        if isinstance(run.launcher, SlurmLauncherConfig):
            print(f"\n{script_of(run, plan, planned_dir(run))}", end="")
        return EXIT_OK
    if isinstance(run.launcher, SlurmLauncherConfig):
        return submit(run, plan, options.typed)
    if isinstance(run.launcher, TorchrunLauncherConfig) and rank is None:
        node = this_node(run.launcher)
        if not node.leads:
            return join(run, plan, node, digest(run))
        return start(run, plan, options.typed, node=node)
    return start(run, plan, options.typed, is_rank=rank is not None)


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

    require(
        not isinstance(run.launcher, CloudLauncherConfig),
        f"launcher={run.launcher.name} is for `llmtrain train` of one run, with --dry-run.",
    )
    present = _gpus(run) if gpus is None else gpus
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


def _gpus(run: RunConfig) -> int:
    """Return the GPUs of each machine that the run is for."""
    if isinstance(run.launcher, SlurmLauncherConfig):
        return run.launcher.gpus_per_node or 0
    return gpu_count()


def digest(run: RunConfig) -> str:
    """Return a digest of what all hosts of a run must have in common."""
    launcher = run.launcher
    if isinstance(launcher, TorchrunLauncherConfig):
        launcher = dataclasses.replace(launcher, node_rank=None)
    common = dataclasses.replace(run, run_dir=None, launcher=launcher)
    return hashlib.sha256(to_yaml(common).encode()).hexdigest()[:16]


def start(
    run: RunConfig,
    plan: Plan,
    overrides: Sequence[str],
    *,
    is_rank: bool = False,
    node: Node | None = None,
) -> int:
    """Freeze the run directory and train from it; return the exit code.

    Args:
        run: The configuration.
        plan: Its plan.
        overrides: As typed.
        is_rank: Whether this process is a rank and becomes its worker.
        node: This host, the first of several; null: it is alone.

    Raises:
        ConfigError: when the run directory cannot be had.
    """
    is_new = is_made(run)
    run_dir = run_folder(run)
    refuse_active(run_dir)
    with claimed(run_dir), dropped_if_refused(run_dir, is_new=is_new):
        if node is not None:
            node.check_port()  # before a run that was there is frozen anew
        if freeze(run, plan, overrides, run_dir) and (run_dir / METRICS).is_file():
            show_note(f"resuming {run_dir}")
        if not is_rank:
            told = "" if node is None else digest(run)
            code = launch(run_dir, run, plan, node=node, digest=told)
            if is_new and node and code == EXIT_USER and not (run_dir / RESULT).exists():
                # The agent was refused before the hosts met: the port was taken meanwhile.
                drop(run_dir)
            return code
        # Inside: the claim is passed on to the worker that this process becomes.
        return foreign.become_worker(run_dir, run.launcher)
