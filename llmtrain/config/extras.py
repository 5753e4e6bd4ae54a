"""Packages that a configuration asks for, looked for before any process starts."""

import importlib.util
import os

from llmtrain.config.groups.metrics import MetricsConfig
from llmtrain.errors import require


def check_extras(metrics: MetricsConfig) -> None:
    """Refuse a configuration whose optional packages or keys are not there.

    Raises:
        ConfigError: names the setting and what to install or set.
    """
    for wanted, package in ((metrics.tensorboard, "tensorboard"), (metrics.wandb, "wandb")):
        require(
            not wanted or importlib.util.find_spec(package) is not None,
            f"metrics.{package}=true needs the package {package}: "
            f"pip install 'llmtrain[{package}]', or set metrics.{package}=false.",
        )
    require(
        not metrics.wandb
        or os.environ.get("WANDB_MODE") in ("offline", "disabled")
        or bool(os.environ.get("WANDB_API_KEY")),
        "metrics.wandb=true needs WANDB_API_KEY in the environment, or WANDB_MODE=offline.",
    )
