"""Every derived integer of a run, and every rule that spans two groups.

`make_plan` needs neither torch nor the data, so a request that cannot work is refused before any
process starts. What only the data tells (vocabulary, length of an epoch) the workers add with
`Plan.with_data` once it is prepared.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from llmtrain.config.bad_steps import check_bad_steps
from llmtrain.config.footprint import Footprint
from llmtrain.config.groups.served import ServedConfig
from llmtrain.config.groups.strategy import StrategyConfig
from llmtrain.config.meetings import check_meetings, check_simulation
from llmtrain.config.paths import PLAN
from llmtrain.config.schema import RunConfig
from llmtrain.config.split import check_split, check_vocabulary, least_micro_batches
from llmtrain.config.stream import check_streamed
from llmtrain.durable import replace_text
from llmtrain.errors import ConfigError, require

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Mesh axes, outermost first."""

OWN_AXES = {
    "single": (),
    "data": ("dp_replicate", "dp_shard"),
    "model": ("tp",),
    "pipeline": ("pp",),
    "hybrid": AXES,
}
"""The axes that each strategy may give a size to."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arithmetic of a run; frozen, printed at the start, kept as plan.json."""

    nnodes: int
    nproc_per_node: int
    world_size: int
    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    dp: int
    """Parts the batch is cut into: dp_replicate * dp_shard."""
    global_batch_size: int
    """Sequences in a step."""
    micro_batch_size: int
    """Sequences in one forward of one data-parallel rank."""
    gradient_accumulation_steps: int
    """Micro-batches in a step, for each data-parallel rank."""
    stages_per_rank: int = 1
    """Stages of the pipeline that each process holds."""
    servers: int = 0
    """Processes beside those of the mesh that hold the weights between replicas."""
    tokens_per_step: int
    steps: int | None = None
    """Steps in the run; null until the length of an epoch is known."""
    vocab_size: int | None = None
    n_parameters: int | None = None
    flops_per_token: float | None = None
    """Floating-point operations of a forward and backward, per token (arXiv:2204.02311, app. B)."""

    @property
    def axes(self) -> dict[str, int]:
        """The size of every mesh axis."""
        return {axis: self.axis(axis) for axis in AXES}

    @property
    def replica_size(self) -> int:
        """Processes of a replica; virtual ones share one."""
        return max(1, self.world_size // self.dp_replicate)

    def one_replica(self) -> "Plan":
        """Return the plan of one replica by itself, with its part of the batch."""
        return dataclasses.replace(self, dp_replicate=1, world_size=self.replica_size)

    def axis(self, name: str) -> int:
        """Return the size of the mesh axis `name`."""
        return int(getattr(self, name))

    @property
    def total_steps(self) -> int:
        """Steps in the run, once the data is known."""
        assert self.steps is not None, "the plan has not been completed by with_data"
        return self.steps

    def with_data(
        self, run: RunConfig, *, samples: int, vocab_size: int, n_parameters: int,
        flops_per_token: float,
    ) -> "Plan":  # fmt: skip
        """Return the plan completed by what the data and the model tell.

        Args:
            run: The configuration.
            samples: Training samples in an epoch.
            vocab_size: Rows of the embedding.
            n_parameters: Parameters of the model, tied ones once.
            flops_per_token: See the field.

        Raises:
            ConfigError: when the vocabulary cannot be cut as asked.
        """
        check_vocabulary(run, self.axes, vocab_size)
        steps = self.steps
        if steps is None:
            assert run.train.epochs is not None
            steps = math.ceil(run.train.epochs * samples / self.global_batch_size)
        return dataclasses.replace(
            self, steps=steps, vocab_size=vocab_size, n_parameters=n_parameters,
            flops_per_token=flops_per_token,
        )  # fmt: skip

    def footprint(self, run: RunConfig) -> Footprint:
        """Return the modelled time and memory of the pipeline's stages."""
        return Footprint(run, self.axes, self.micro_batch_size, self.gradient_accumulation_steps)

    def save(self, path: Path) -> None:
        """Write the plan as JSON, whole or not at all: other ranks may be reading it."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def make_plan(run: RunConfig, *, gpus: int, world_size: int | None = None) -> Plan:
    """Return the plan of `run`, or refuse it.

    Args:
        run: The configuration.
        gpus: CUDA devices of this machine.
        world_size: Processes that exist already (under torchrun); null: the plan decides.

    Raises:
        ConfigError: when the parts do not fit together; names keys, values and a fix.
    """
    axes, total = _axis_sizes(run, gpus=gpus, world_size=world_size)
    dp = axes["dp_replicate"] * axes["dp_shard"]
    batch = run.train.global_batch_size
    nnodes, per_node = _hosts(run, total, gpus=gpus, world_size=world_size)
    require(
        batch % dp == 0,
        f"train.global_batch_size={batch} cannot be divided over {dp} data-parallel processes; "
        f"try {_nearest_multiples(batch, dp)}.",
    )
    share = batch // dp
    micro = run.train.micro_batch_size or share // _micro_batches(
        share, axes["pp"], run.strategy.schedule
    )
    require(
        share % micro == 0,
        f"train.micro_batch_size={micro} must divide the {share} sequences that each of {dp} "
        f"data-parallel processes has of train.global_batch_size={batch}; try "
        f"{', '.join(str(d) for d in range(1, share + 1) if share % d == 0)}.",
    )
    tokens_per_step = batch * run.model.seq_len
    plan = Plan(
        nnodes=nnodes,
        nproc_per_node=per_node,
        world_size=total,
        dp=dp,
        global_batch_size=batch,
        micro_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        stages_per_rank=run.strategy.stages if axes["pp"] > 1 else 1,
        servers=_servers(run),
        tokens_per_step=tokens_per_step,
        steps=_steps(run, tokens_per_step),
        **axes,
    )
    _check_schedule(run, plan)
    _check_trace(run, plan)
    check_meetings(run, axes, plan.steps)
    check_streamed(run)
    check_bad_steps(run)
    check_split(run, axes, micro_batches=plan.gradient_accumulation_steps, micro_batch_size=micro)
    if run.model.vocab_size is not None:
        check_vocabulary(run, axes, run.model.vocab_size)
    if run.strategy.stage_memory_gib is not None:
        plan.footprint(run).stages()
    return plan


def _hosts(run: RunConfig, total: int, *, gpus: int, world_size: int | None) -> tuple[int, int]:
    """Return hosts and processes on each; those that exist already are taken as of one host."""
    nnodes = run.launcher.nnodes if world_size is None else 1
    fitting = next(n for n in range(nnodes, 0, -1) if total % n == 0)
    require(
        fitting == nnodes,
        f"launcher.nnodes={nnodes} hosts cannot share the {total} processes of this strategy "
        f"evenly; try launcher.nnodes={fitting}, or other sizes of its axes.",
    )
    per_node = total // nnodes
    require(
        gpus == 0 or run.train.device == "cpu" or world_size is not None or per_node <= gpus,
        f"launcher.nproc_per_node={per_node} processes need a GPU each, and this machine has "
        f"{gpus}; try launcher.nproc_per_node={gpus} or train.device=cpu.",
    )
    return nnodes, per_node


def _servers(run: RunConfig) -> int:
    if not isinstance(run.sync, ServedConfig) or run.sync.simulate.workers is not None:
        return 0
    require(
        run.launcher.nnodes == 1,
        f"launcher.nnodes={run.launcher.nnodes}: sync={run.sync.name} has its server and replicas "
        "on one machine; use launcher=local, or another sync.",
    )
    return run.sync.servers


def _micro_batches(share: int, pp: int, schedule: str) -> int:
    """Return how many micro-batches to make of `share` sequences where nothing is asked for.

    One, or in a pipeline the fewest from 4 pp on that its schedule takes: its bubble is then at
    most a fifth.
    """
    if pp == 1:
        return 1
    _, multiple = least_micro_batches(schedule, pp)
    fits = (n for n in range(4 * pp, share + 1) if share % n == 0 and n % multiple == 0)
    return next(fits, share)


def _steps(run: RunConfig, tokens_per_step: int) -> int | None:
    if run.train.steps is not None:
        return run.train.steps
    if run.train.tokens is not None:
        return math.ceil(run.train.tokens / tokens_per_step)
    return None


def _axis_sizes(run: RunConfig, *, gpus: int, world_size: int | None) -> tuple[dict[str, int], int]:
    """Return the size of every mesh axis, open ones filled in, and their product."""
    strategy = run.strategy
    _check_strategy(strategy)
    sizes = {axis: getattr(strategy, axis) for axis in AXES}
    open_axis = _open_axis(strategy, sizes)
    fixed = math.prod(size for size in sizes.values() if size is not None and size > 0)
    nnodes, per_node = run.launcher.nnodes, run.launcher.nproc_per_node
    total = world_size or (per_node * nnodes if per_node else None)
    if total is None:
        on_gpus = gpus and run.train.device != "cpu"
        spare = max(gpus * nnodes // fixed, 1) if on_gpus else 2 * nnodes
        total = fixed * _fitting(run, open_axis, spare) if open_axis else fixed
    source = "there are" if world_size else f"launcher.nproc_per_node={total} starts"
    if nnodes > 1 and not world_size and per_node:
        source = f"launcher.nnodes={nnodes} x launcher.nproc_per_node={per_node} starts"
    shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size not in (None, 1))
    if open_axis:
        require(
            total % fixed == 0,
            f"{source} {total} processes, which strategy {shape} cannot divide; try "
            f"launcher.nproc_per_node={fixed * max(1, total // fixed)}.",
        )
        sizes[open_axis] = total // fixed
    filled = {axis: size if size is not None else 1 for axis, size in sizes.items()}
    if run.sync.simulate.workers is not None:
        check_simulation(run, total)
        return {**filled, "dp_replicate": run.sync.simulate.workers}, total
    product = math.prod(filled.values())
    if product != total:
        hint = (
            "use strategy=data to spread the batch over them, or one process"
            if strategy.name == "single"
            else f"start {product} processes, or set one axis to -1 for the rest"
        )
        raise ConfigError(
            f"{source} {total} processes, but strategy={strategy.name} "
            f"({' x '.join(f'{a}={s}' for a, s in filled.items())}) makes {product}; {hint}."
        )
    return filled, total


def _fitting(run: RunConfig, axis: str, spare: int) -> int:
    """Return the most processes, up to `spare`, that the model lets `axis` take."""
    if axis == "tp":
        return next(n for n in range(spare, 0, -1) if run.model.n_heads % n == 0)
    if axis == "pp":
        return max(1, min(spare, run.model.n_layers // run.strategy.stages))
    return spare


def _open_axis(strategy: StrategyConfig, sizes: dict[str, int | None]) -> str | None:
    """Return the axis that takes the rest of the processes: the one at -1, else data parallel's."""
    rest = [axis for axis, size in sizes.items() if size == -1]
    require(
        len(rest) <= 1,
        f"{' and '.join(f'strategy.{axis}=-1' for axis in rest)}: only one axis can take the rest.",
    )
    if rest:
        return rest[0]
    if strategy.name not in ("data", "hybrid"):
        return None
    default = "dp_shard" if strategy.zero else "dp_replicate"
    return default if sizes[default] is None else None


def _check_strategy(strategy: StrategyConfig) -> None:
    """Refuse sizes that the strategy's name does not speak of."""
    for axis in AXES:
        size = getattr(strategy, axis)
        instead = "data" if strategy.name == "single" and axis.startswith("dp") else "hybrid"
        require(
            axis in OWN_AXES[strategy.name] or size in (None, 1),
            f"strategy.{axis}={size}: strategy={strategy.name} does not split along {axis}; use "
            f"strategy={instead}, or leave strategy.{axis} alone.",
        )
    require(
        strategy.zero == 0 or strategy.name in ("data", "hybrid"),
        f"strategy.zero={strategy.zero} shards over data-parallel processes; use strategy=data or "
        "strategy=hybrid.",
    )
    if strategy.zero == 0:
        require(
            strategy.dp_shard in (None, 1),
            f"strategy.dp_shard={strategy.dp_shard} with strategy.zero=0: nothing is sharded; set "
            "strategy.zero=1, 2 or 3, or use strategy.dp_replicate.",
        )


def _check_schedule(run: RunConfig, plan: Plan) -> None:
    warmup = run.scheduler.warmup_steps or 0
    require(
        plan.steps is None or warmup < plan.steps or warmup == 0,
        f"scheduler.warmup_steps={warmup} must be under train.steps={plan.steps}; lower it, train "
        "longer, or set it to null for a tenth of training.",
    )


def _check_trace(run: RunConfig, plan: Plan) -> None:
    metrics = run.metrics
    needed = metrics.trace_after_steps + metrics.trace_steps
    require(
        not metrics.trace or plan.steps is None or needed <= plan.steps,
        f"metrics.trace_after_steps={metrics.trace_after_steps} and metrics.trace_steps="
        f"{metrics.trace_steps} trace up to step {needed}, and train.steps={plan.steps}; lower "
        "them, or train longer.",
    )


def _nearest_multiples(value: int, divisor: int) -> str:
    below, above = value // divisor * divisor, -(-value // divisor) * divisor
    return f"{below} or {above}" if below else str(above)


def load_plan(run_dir: Path) -> Plan:
    """Read RUN_DIR/plan.json.

    Raises:
        ConfigError: when it is missing or damaged.
    """
    try:
        return Plan(**json.loads((run_dir / PLAN).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{run_dir / PLAN} cannot be read: {error}") from None
