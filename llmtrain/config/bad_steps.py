"""Which runs can do something about a bad step other than stop."""

from llmtrain.config.schema import RunConfig
from llmtrain.errors import require


def judges(run: RunConfig) -> bool:
    """Return whether the numbers of a step are looked at before its update, on every device."""
    return run.train.on_bad_step != "stop" or run.train.spike_factor is not None


def check_bad_steps(run: RunConfig) -> None:
    """Refuse a policy that the run cannot keep to exactly.

    Raises:
        ConfigError: names keys, values and a fix.
    """
    if not judges(run):
        return
    policy, sync = run.train.on_bad_step, run.sync
    asked = f"train.on_bad_step={policy}"
    if policy == "stop":
        asked = f"train.spike_factor={run.train.spike_factor:g}"
    require(
        sync.name == "allreduce" and sync.simulate.workers is None,
        f"{asked} is one decision of all processes on one step, and under sync={sync.name} "
        "replicas step apart; use sync=allreduce, or train.on_bad_step=stop and "
        "train.spike_factor=null.",
    )
    compression = getattr(sync, "compression", "none")
    require(
        policy not in ("skip", "lower_lr") or compression != "powersgd",
        f"{asked} with sync.compression=powersgd: what a bad step has left in PowerSGD's memory of "
        "errors cannot be taken back; use train.on_bad_step=rollback, which restores it, or "
        "sync.compression=none.",
    )
    require(
        policy != "rollback" or run.checkpoint.every_steps is not None,
        f"{asked} goes back to a checkpoint, and checkpoint.every_steps=null saves none before the "
        "end; set checkpoint.every_steps=500, or train.on_bad_step=skip.",
    )
