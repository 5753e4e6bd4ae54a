"""`llmtrain logs RUN [-f]`: a rank's log and what the run's job has printed, as they grow."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmtrain.commands.compose import composer
from llmtrain.commands.options import Options
from llmtrain.commands.task import check_run
from llmtrain.config.groups.logs import LogsConfig
from llmtrain.config.paths import LOGS
from llmtrain.config.plan import load_plan
from llmtrain.config.result import read_result
from llmtrain.errors import EXIT_OK, ConfigError
from llmtrain.launch import slurm
from llmtrain.launch.claim import holder
from llmtrain.launch.failure import output_path
from llmtrain.log import log_path
from llmtrain.panel import show_note

LOOK_S = 0.3
"""How often files are looked at."""

ASK_S = 3.0
"""How often it is asked whether the run has ended."""


class Tail:
    """Prints what files grow by, under a line that names the file, as `tail -f` does."""

    def __init__(self, paths: Callable[[], list[Path]]) -> None:
        """Set up.

        Args:
            paths: Which files there are now.
        """
        self._paths = paths
        self._read: dict[Path, int] = {}
        self._shown: Path | None = None

    def __call__(self) -> bool:
        """Print what is new; return whether there was anything."""
        any_new = False
        for path in self._paths():
            try:
                with path.open("rb") as stream:
                    stream.seek(self._read.get(path, 0))
                    new = stream.read()
            except OSError:
                continue
            if not new:
                continue
            self._read[path] = self._read.get(path, 0) + len(new)
            any_new = True
            if path != self._shown:
                print(f"{'' if self._shown is None else chr(10)}==> {path} <==")
                self._shown = path
            sys.stdout.write(new.decode("utf-8", errors="replace"))
        sys.stdout.flush()
        return any_new


def run_logs(options: Options) -> int:
    """Print the logs of a run; return the exit code.

    Raises:
        ConfigError: when there is no such run, it has no such rank, or Slurm has not answered for
            long.
    """
    with composer("logs") as hydra:
        rank = hydra.compose(options.overrides).config
    assert isinstance(rank, LogsConfig)
    [run] = options.folders
    check_run(run)
    run_dir = Path(run).expanduser()
    tail = Tail(lambda: list(files(run_dir, rank.rank)))
    any_shown = tail()
    if not options.has("--follow"):
        if not any_shown:
            raise _no_log(run, rank.rank)
        return EXIT_OK
    asked = time.monotonic() - ASK_S
    job = slurm.find(run_dir)
    is_active, watch = True, None if job is None else slurm.Watch(job.job_id)
    try:
        while is_active:
            if time.monotonic() - asked >= ASK_S:
                is_active, asked = is_running(run_dir, watch), time.monotonic()
            any_shown |= tail()
            time.sleep(LOOK_S if is_active else 0)
    except KeyboardInterrupt:
        show_note("\nthe run goes on")
        return EXIT_OK
    if not any_shown:
        raise _no_log(run, rank.rank)
    return EXIT_OK


def files(run_dir: Path, rank: int) -> Iterator[Path]:
    """Yield the files in which a rank speaks; with rank 0's what jobs have printed.

    Where a server tells how training goes, its log stands beside rank 0's.
    """
    if rank == 0:
        outputs = (run_dir / LOGS).glob("slurm-*.out")
        yield from sorted(outputs, key=lambda path: path.stat().st_mtime)
    else:
        yield output_path(run_dir, rank, "out")
        yield output_path(run_dir, rank, "err")
    yield log_path(run_dir, rank)
    server = _server(run_dir)
    if rank == 0 and server is not None:
        yield log_path(run_dir, server)


def _server(run_dir: Path) -> int | None:
    """Return the number of a run's first server, which is counted after its ranks; None: none."""
    try:
        plan = load_plan(run_dir)
    except ConfigError:
        return None
    return plan.world_size if plan.servers else None


def is_running(run_dir: Path, watch: slurm.Watch | None) -> bool:
    """Whether a run trains outside Slurm, or waits or runs under it.

    Args:
        run_dir: The run.
        watch: Its job; null: it was not submitted.

    Raises:
        ConfigError: when Slurm has not answered for long.
    """
    if holder(run_dir) is not None:
        return True
    if watch is None:
        return False
    watch.look()
    return not watch.ended


def _no_log(run: str, rank: int) -> ConfigError:
    """Return the refusal of a rank that has logged nothing, with the run's end where it has one."""
    run_dir = Path(run).expanduser()
    result = read_result(run_dir)
    if not result:
        return ConfigError(
            f"{run} has no log of rank {rank} yet; its folder has {_ranks(run_dir)}."
        )
    error = f": {result['error']}" if result.get("error") else "."
    return ConfigError(
        f"{run} has no log of rank {rank}; its folder has {_ranks(run_dir)}. "
        f"The run has ended, {result.get('status')}{error}"
    )


def _ranks(run_dir: Path) -> str:
    names = sorted(path.name for path in (run_dir / LOGS).glob("rank_*.log"))
    return ", ".join(names) or "none"
