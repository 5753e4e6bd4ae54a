"""A run as a task of SkyPilot: machines on whichever cloud has them.

The hosts share a volume, or one host has a bucket. When machines are taken away, a managed job
brings up others and runs the same line in the same run directory, which goes on from its newest
checkpoint. https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

import shlex
from collections.abc import Sequence

from llmtrain.config.groups.cloud import SkyPilotLauncherConfig
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import EXIT_SIGTERM, require
from llmtrain.launch.remote import as_yaml, job_name, remote_run_dir, remote_words

PROGRAM = "~/.llmtrain/bin/llmtrain"


def render_task(
    run: RunConfig, launcher: SkyPilotLauncherConfig, plan: Plan, overrides: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the task as YAML, and the overrides that its hosts are given.

    Raises:
        ConfigError: when something is missing that only the user can know.
    """
    require(
        launcher.volume is not None or launcher.bucket is not None,
        "launcher=skypilot needs launcher.volume=NAME (any number of hosts) or launcher.bucket="
        "NAME (one host), where the run directory is kept.",
    )
    name = job_name(run, launcher)
    run_dir = remote_run_dir(run, launcher, name)
    words = remote_words(launcher, plan, overrides, run_dir, None)
    task: dict[str, object] = {
        "name": name,
        "num_nodes": plan.nnodes,
        "workdir": ".",
        "resources": _resources(launcher),
    }
    if launcher.volume is not None:
        task["volumes"] = {launcher.mount_path: launcher.volume}
        task["envs"] = {"LLMTRAIN_CACHE": f"{launcher.mount_path}/cache"}
    else:
        # The cache of the data stays on the host's own disk: it is made again in minutes.
        bucket = {"name": launcher.bucket, "mode": "MOUNT_CACHED"}
        task["file_mounts"] = {launcher.mount_path: bucket}
    task["setup"] = "\n".join(["set -e", *launcher.setup, ""])
    task["run"] = _script(launcher, plan, words)
    return as_yaml(task), words


def _resources(launcher: SkyPilotLauncherConfig) -> dict[str, object]:
    gpus = f"{launcher.gpu_type}:{launcher.gpus_per_node}" if launcher.gpus_per_node else None
    asked = {
        "infra": launcher.infra,
        "accelerators": gpus,
        "cpus": launcher.cpus_per_node,
        "memory": launcher.mem,
        "disk_size": launcher.disk_gb,
    }
    return {
        **{key: value for key, value in asked.items() if value is not None},
        "use_spot": launcher.use_spot,
        "job_recovery": {
            "max_restarts_on_errors": launcher.max_requeues,
            "recover_on_exit_codes": [EXIT_SIGTERM],
        },
    }


def _script(launcher: SkyPilotLauncherConfig, plan: Plan, words: Sequence[str]) -> str:
    """Return what each host runs; its number it finds in SKYPILOT_NODE_RANK."""
    line = f"exec {PROGRAM} train {shlex.join(words)}"
    if plan.nnodes == 1:
        return f"{line}\n"
    first = 'first="$(head -n 1 <<< "$SKYPILOT_NODE_IPS")"'
    return f'{first}\n{line} "launcher.rdzv_endpoint=$first:{launcher.port}"\n'
