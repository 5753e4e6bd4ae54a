"""A sweep as one Slurm job array: task k trains in folder k, as it was frozen here.

sweeps/<experiment_name>/<date>_<time>-<id>/
    0/  1/  ...            a run directory each
    code/                  the code as submitted, for all of them
    slurm/array.sh         the batch script          slurm/job.json   the array's id
"""

import collections
import dataclasses
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llmtrain.commands.submit import launcher_of, task_of
from llmtrain.config.groups.slurm import SlurmLauncherConfig
from llmtrain.config.paths import CONFIG, LOGS
from llmtrain.config.plan import Plan, load_plan
from llmtrain.config.result import read_result
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
    planned = {
        number: (load_run_config(folder / str(number) / CONFIG), load_plan(folder / str(number)))
        for number in numbers
    }
    text = array_script(planned, folder)
    slurm.snapshot(folder)
    script = folder / slurm.ARRAY
    script.parent.mkdir(exist_ok=True)
    script.write_text(text)
    job_id = slurm.submit(script)
    for number in numbers:
        slurm.keep(folder / str(number), f"{job_id}_{number}")
    return slurm.keep(folder, job_id)


def array_script(planned: Mapping[int, tuple[RunConfig, Plan]], folder: Path) -> str:
    """Return the batch script of runs of a sweep, by their numbers.

    Raises:
        ConfigError: when they ask for different jobs.
    """
    runs = [run for run, _ in planned.values()]
    tasks = {n: task_of(run, plan, folder / str(n)) for n, (run, plan) in planned.items()}
    output = Path(str(folder).replace("%", "%%")) / "%a" / LOGS / "slurm-%A_%a.out"
    return render(
        common_launcher(runs), tasks, job_name=runs[0].experiment_name,
        code=folder / slurm.CODE, output=output, is_array=True,
    )  # fmt: skip


def wait_for_array(folder: Path, numbers: Sequence[int], poll_s: float) -> int:
    """Wait for all runs of an array, telling how many do what; return the exit code.

    0: all completed; 1: some did not; 130: Ctrl-C, which leaves the array alone.

    Raises:
        ConfigError: when Slurm has not answered for long; the array goes on.
    """
    jobs = {number: slurm.find(folder / str(number)) for number in numbers}
    left = {n: slurm.Watch(job.job_id) for n, job in jobs.items() if job is not None}
    told = ""
    try:
        while left:
            states = {n: watch.look() for n, watch in left.items()}
            left = {n: watch for n, watch in left.items() if not watch.ended}
            counts = collections.Counter(states[n].state.lower() for n in left)
            ended = {"ended": len(jobs) - len(left)} if len(left) < len(jobs) else {}
            now = ", ".join(f"{n} {what}" for what, n in (counts | ended).items())
            if now != told:
                show_note(now)
                told = now
            if left:
                time.sleep(poll_s)
    except KeyboardInterrupt:
        show_note("\nthe array goes on without this command; to end it: "
                  f"llmtrain cancel {shlex.quote(str(folder))}")  # fmt: skip
        return EXIT_SIGINT
    done = all(read_result(folder / str(number)).get("status") == "completed" for number in numbers)
    return EXIT_OK if done else EXIT_BUG


def tell_array(folder: Path, submitted: slurm.Submitted, numbers: Sequence[int]) -> None:
    """Print what was submitted, and how to look after it."""
    print(f"submitted Slurm job array {submitted.job_id}", flush=True)
    shown, first = shlex.quote(str(folder)), shlex.quote(str(folder / str(numbers[0])))
    resume = shlex.quote(f"sweep.resume={folder}")
    show_note(
        f"{counted(len(numbers), 'job')} in {folder}\nstates:  llmtrain jobs {shown}\n"
        f"follow:  llmtrain logs {first} -f\nend it:  llmtrain cancel {shown}\n"
        f"results, and what is not done, when it has ended: llmtrain train -m {resume}"
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
