"""Where things are: the shipped `conf/`, and the names inside a run directory."""

import datetime
import os
import secrets
from pathlib import Path

from llmtrain.errors import ConfigError

CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
TOKENIZER = "tokenizer.json"
LOGS = "logs"
HANG_REPORT = "hang_report.txt"
"""In LOGS."""
BAD_STEPS = f"{LOGS}/bad_steps.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
RECORDS = "records"
PROFILE = "profile"


def place_path(run_dir: Path, rank: int) -> Path:
    """Return RUN_DIR/logs/rank_N.place: where in the run a rank is, or was last, in words."""
    return run_dir / LOGS / f"rank_{rank}.place"


def conf_dir() -> Path:
    """Return the folder of the shipped YAML: inside an installed wheel, or beside the package."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"conf/ is neither in {package} nor beside it; reinstall llmtrain.")


def default_run_dir(experiment_name: str) -> Path:
    """Return runs/<experiment>/<date>_<time>-<short id>; two starts in a second do not collide."""
    return Path("runs") / experiment_name / _stamp()


def default_sweep_dir(experiment_name: str) -> Path:
    """Return sweeps/<experiment>/<date>_<time>-<short id>."""
    return Path("sweeps") / experiment_name / _stamp()


def _stamp() -> str:
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return f"{now}-{secrets.token_hex(2)}"


def make_run_dir(run_dir: Path, *, logs: bool = True) -> Path:
    """Create `run_dir`, with its `logs/` unless it is a sweep's, and return it, absolute.

    Raises:
        ConfigError: when it cannot be created or written.
    """
    run_dir = run_dir.expanduser().absolute()
    try:
        (run_dir / LOGS if logs else run_dir).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"run_dir={run_dir}: a file stands in the way; name a folder with run_dir=DIR."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"run_dir={run_dir} cannot be created ({error.strerror}); name a folder you may write "
            "to with run_dir=DIR."
        ) from None
    if not os.access(run_dir, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run_dir={run_dir} is not writable; name a folder you may write to with run_dir=DIR."
        )
    return run_dir
