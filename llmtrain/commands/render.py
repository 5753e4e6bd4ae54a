"""`llmtrain train launcher=kubernetes | skypilot --dry-run`: a file on stdout, for another tool."""

import dataclasses
import shlex

from llmtrain.commands.compose import composer
from llmtrain.commands.options import Options
from llmtrain.commands.show import print_plan
from llmtrain.config.groups.cloud import CloudLauncherConfig, KubernetesLauncherConfig
from llmtrain.config.groups.cloud import SkyPilotLauncherConfig as SkyPilot
from llmtrain.config.plan import Plan, make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import EXIT_OK, ConfigError, require
from llmtrain.launch.kubernetes import render_jobset
from llmtrain.launch.skypilot import render_task

TAKERS = {
    "kubernetes": "| kubectl apply -f -",
    "skypilot": "> task.yaml && sky jobs launch task.yaml",
}
"""What the file is for."""


def run_render(options: Options, run: RunConfig) -> int:
    """Print the plan on stderr and the file on stdout; return the exit code.

    What only the hosts have, such as data and tokenizer files, is not looked for.

    Raises:
        ConfigError: when it is more than a dry run, or cannot run there.
    """
    launcher = run.launcher
    assert isinstance(launcher, CloudLauncherConfig)
    require(
        not options.config_dirs,
        f"--config-dir: launcher={launcher.name} passes the overrides on to hosts that do not have "
        "this folder; give its values as overrides.",
    )
    require(
        getattr(run.data, "path", None) != "-",
        f"data.path=-: launcher={launcher.name} cannot pass the standard input on; put the data "
        f"into launcher.mount_path={launcher.mount_path} and name it with data.path.",
    )
    require(
        run.train.device != "cuda" or launcher.gpus_per_node > 0,
        "train.device=cuda: say how many GPUs a host has, launcher.gpus_per_node=8.",
    )
    plan = make_plan(run, gpus=0 if run.train.device == "cpu" else launcher.gpus_per_node)
    text, words = _rendered(run, launcher, plan, options.overrides)
    _check_words(run, words)
    if not options.has("--dry-run"):  # last: the line that it gives has to work
        raise starts_nothing(launcher, options.overrides)
    print_plan(run, plan, stderr=True)
    print(text, end="")
    return EXIT_OK


def starts_nothing(launcher: CloudLauncherConfig, overrides: list[str]) -> ConfigError:
    """Return the refusal to start anything, with the line to type instead."""
    line = shlex.join(["llmtrain", "train", *overrides, "--dry-run"])
    return ConfigError(
        f"launcher={launcher.name} starts nothing, it prints a file: {line} {TAKERS[launcher.name]}"
    )


def _rendered(
    run: RunConfig, launcher: CloudLauncherConfig, plan: Plan, overrides: list[str]
) -> tuple[str, list[str]]:
    if isinstance(launcher, KubernetesLauncherConfig):
        return render_jobset(run, launcher, plan, overrides)
    assert isinstance(launcher, SkyPilot)
    return render_task(run, launcher, plan, overrides)


def _check_words(run: RunConfig, words: list[str]) -> None:
    """Refuse when the overrides of a host do not compose to this run.

    An experiment may set values of the launcher, which the one on the hosts does not have.
    """
    endpoint = [] if "launcher=local" in words else ["launcher.rdzv_endpoint=first"]
    try:
        with composer("train") as hydra:
            there: RunConfig = hydra.compose([*words, *endpoint]).config
    except ConfigError as error:
        raise ConfigError(
            f"launcher={run.launcher.name}: the hosts would refuse `{shlex.join(words)}`: {error} "
            "Give settings of the launcher as overrides, not in an experiment."
        ) from None
    there = dataclasses.replace(there, launcher=run.launcher, run_dir=run.run_dir)
    require(there == run, f"launcher={run.launcher.name}: the hosts would train something else.")
