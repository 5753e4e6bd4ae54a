"""A sweep as one Slurm job array: task k trains in folder k, as it was frozen here.

sweeps/<experiment_name>/<date>_<time>-<id>/
    0/  1/  ...            a run directory each
    code/                  the code as submitted, for all of them
    slurm/array.sh         the batch script          slurm/job.json   the array's id
"""

import collections
import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmtrain.commands.submit import launcher_of, read_status, task_of
from llmtrain.config.groups.slurm import SlurmLauncherConfig
from llmtrain.config.paths import CONFIG, LOGS
from llmtrain.config.plan import load_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import load_run_config
from llmtrain.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT, ConfigError
from llmtrain.launch import slurm
from llmtrain.launch.slurm_script import render
from llmtrain.panel import show_note
from llmtrain.units import counted


def submit_array(folder: Path, numbers: Sequence[int]) -> slurm.Submitted:
    """Submit the frozen runs `numbers` of a sweep as one array; return its job.

    Raises:
        ConfigError: when it cannot be submitted, or they ask for different jobs.
    """
    runs = {number: load_run_config(folder / str(number) / CONFIG) for number in numbers}
    tasks = {
        number: task_of(run, load_plan(folder / str(number)), folder / str(number))
        for number, run in runs.items()
    }
    output = Path(str(folder).replace("%", "%%")) / "%a" / LOGS / "slurm-%A_%a.out"
    text = render(
        common_launcher(runs.values()), tasks, job_name=runs[numbers[0]].experiment_name,
        code=folder / slurm.CODE, output=output, is_array=True,
    )  # fmt: skip
    slurm.snapshot(folder)
    script = folder / slurm.ARRAY
    script.parent.mkdir(exist_ok=True)
    script.write_text(text)
    job_id = slurm.submit(script)
    for number in numbers:
        slurm.keep(folder / str(number), f"{job_id}_{number}")
    return slurm.keep(folder, job_id)


def wait_for_array(folder: Path, numbers: Sequence[int], poll_s: float) -> int:
    """Wait for all runs of an array, telling how many do what; return the exit code.

    0: all completed; 1: some did not; 130: Ctrl-C, which leaves the array alone.
    """
    jobs = {number: slurm.find(folder / str(number)) for number in numbers}
    left, told, watch = dict(jobs), "", slurm.Watch()
    try:
        while left:
            states = {n: watch.ask(job.job_id) for n, job in left.items() if job is not None}
            left = {n: left[n] for n, state in states.items() if state.is_active}
            counts = collections.Counter(states[n].state.lower() for n in left)
            ended = {"ended": len(jobs) - len(left)} if len(left) < len(jobs) else {}
            now = ", ".join(f"{n} {what}" for what, n in (counts | ended).items())
            if now != told:
                show_note(now)
                told = now
            if left:
                time.sleep(poll_s)
    except KeyboardInterrupt:
        show_note(f"\nthe array goes on without this command; to end it: llmtrain cancel {folder}")
        return EXIT_SIGINT
    done = all(read_status(folder / str(number)) == "completed" for number in numbers)
    return EXIT_OK if done else EXIT_BUG


def tell_array(folder: Path, submitted: slurm.Submitted, count: int) -> None:
    """Print what was submitted, and how to look after it."""
    print(f"submitted Slurm job array {submitted.job_id}", flush=True)
    show_note(
        f"{counted(count, 'job')} in {folder}\nstates:  llmtrain jobs {folder}\n"
        f"follow:  llmtrain logs {folder}/0 -f\nend it:  llmtrain cancel {folder}"
    )


def common_launcher(runs: Iterable[RunConfig]) -> SlurmLauncherConfig:
    """Return the launcher that all `runs` have: an array asks for one kind of job.

    Raises:
        ConfigError: names what differs.
    """
    first, *others = (
        dataclasses.replace(launcher_of(run), nproc_per_node=None) for run in runs
    )  # fmt: skip
    for other in others:
        for field in dataclasses.fields(first):
            one, two = getattr(first, field.name), getattr(other, field.name)
            if one != two:
                raise ConfigError(
                    f"launcher.{field.name} is {one} in one job of the sweep and {two} in another, "
                    "and a job array asks for the same of all; make two sweeps of it."
                )
    return first
