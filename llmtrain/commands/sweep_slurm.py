"""A sweep that goes to Slurm: frozen here, submitted as one job array."""

from llmtrain.commands.compose import Composer
from llmtrain.commands.submit import launcher_of
from llmtrain.commands.submit_array import submit_array, tell_array, wait_for_array
from llmtrain.commands.sweep_jobs import freeze_job
from llmtrain.config.paths import CONFIG
from llmtrain.config.store import load_run_config
from llmtrain.config.sweep import SweepRecord, to_do
from llmtrain.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT, EXIT_USER
from llmtrain.launch import slurm
from llmtrain.launch.shares import Shares
from llmtrain.panel import show_user_error


def submit_sweep(hydra: Composer, sweep: SweepRecord, shares: Shares) -> int:
    """Submit the jobs that are not done; return the exit code, where it waits that of the jobs.

    Raises:
        ConfigError: when they cannot be submitted; what is frozen stays.
    """
    slurm.check_commands()
    slurm.check_folder(sweep.folder)
    numbers = []
    for job in to_do(sweep.jobs):
        error = freeze_job(hydra, sweep, job, shares)
        if error is None:
            numbers.append(job.number)
        else:
            show_user_error(error)
    sweep.save()
    if not numbers:
        return EXIT_USER
    submitted = submit_array(sweep.folder, sorted(numbers))
    for number in numbers:
        sweep.jobs[number].status = "submitted"
    sweep.save()
    tell_array(sweep.folder, submitted, sorted(numbers))
    refused = any(job.status == "refused" for job in sweep.jobs)
    launcher = launcher_of(load_run_config(sweep.folder / str(numbers[0]) / CONFIG))
    if not launcher.wait:
        return EXIT_BUG if refused else EXIT_OK
    code = wait_for_array(sweep.folder, sorted(numbers), launcher.poll_s)
    for number in numbers:
        job = sweep.jobs[number]
        sweep.collect(job, since=submitted.submitted)
        if job.status == "submitted" and code != EXIT_SIGINT:
            job.status, job.error = "failed", "has ended without a word; see logs/slurm-*.out"
    sweep.save()
    return EXIT_BUG if refused and code == EXIT_OK else code
