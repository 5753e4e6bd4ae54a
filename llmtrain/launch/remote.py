"""What a host runs that a cloud brings up: the same overrides, under a launcher of its own."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import yaml

from llmtrain.config.groups.cloud import CloudLauncherConfig
from llmtrain.config.groups.launcher import LauncherConfig
from llmtrain.config.paths import default_run_dir
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import ConfigError

MOST_EXPERIMENT = 20
"""Characters of an experiment's name in the name of a job, which has to be short."""


def job_name(run: RunConfig, launcher: CloudLauncherConfig) -> str:
    """Return launcher.job_name, or one that no other run has."""
    if launcher.job_name is not None:
        return launcher.job_name
    words = re.sub(r"[^a-z0-9]+", "-", run.experiment_name.lower()).strip("-")
    label = f"run-{words}" if not words[:1].isalpha() else words
    stamp = default_run_dir(run.experiment_name).name.replace("_", "-")
    return f"{label[:MOST_EXPERIMENT].strip('-')}-{stamp}"


def remote_run_dir(run: RunConfig, launcher: CloudLauncherConfig, name: str) -> str:
    """Return the run directory on the storage that the hosts share.

    Raises:
        ConfigError: when run_dir is elsewhere.
    """
    mount = PurePosixPath(launcher.mount_path)
    path = mount / (run.run_dir or f"runs/{run.experiment_name}/{name}")
    if not path.is_relative_to(mount) or ".." in path.parts:
        raise ConfigError(
            f"run_dir={run.run_dir} is not in launcher.mount_path={mount}, which alone outlives "
            f"the hosts; try run_dir={mount / 'runs' / path.name}, or set launcher.mount_path."
        )
    return str(path)


def remote_words(
    launcher: CloudLauncherConfig,
    plan: Plan,
    overrides: Sequence[str],
    run_dir: str,
    endpoint: str | None,
) -> list[str]:
    """Return the overrides of a host; the same on every one.

    Args:
        launcher: The cloud's.
        plan: The plan of the run.
        overrides: As typed.
        run_dir: The run directory on the hosts.
        endpoint: HOST:PORT where several hosts meet; null: it is put behind these.
    """
    kept = [word for word in overrides if _group(word) not in ("launcher", "run_dir")]
    own = [f"launcher.nproc_per_node={plan.nproc_per_node}"]
    for field in dataclasses.fields(LauncherConfig):
        value = getattr(launcher, field.name)
        if field.name not in ("name", "nnodes", "nproc_per_node") and value != field.default:
            own.append(f"launcher.{field.name}={value}")
    if plan.nnodes == 1:
        return [*kept, f"run_dir={run_dir}", "launcher=local", *own]
    meeting = [
        f"launcher.nnodes={plan.nnodes}",
        f"launcher.connect_timeout_s={launcher.join_timeout_s}",
        f"launcher.join_timeout_s={launcher.join_timeout_s}",
    ]
    if endpoint is not None:
        meeting.append(f"launcher.rdzv_endpoint={endpoint}")
    return [*kept, f"run_dir={run_dir}", "launcher=torchrun", *own, *meeting]


def _group(word: str) -> str:
    """Return the first part of an override's key: launcher of `+launcher.port=1`."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0]


class _Dumper(yaml.SafeDumper):
    """YAML as a person writes it: scripts as blocks, nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        """Write what occurs twice twice."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(document: dict[str, object]) -> str:
    """Return `document` as one YAML document."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10**6, allow_unicode=True)
