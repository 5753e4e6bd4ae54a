"""Whether a model can be cut as a strategy asks: rules between strategy, model and train."""

from collections.abc import Iterable, Mapping

from llmtrain.config.groups.model import LlamaConfig
from llmtrain.config.schema import RunConfig
from llmtrain.errors import require

V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
"""Schedules in which the first and the last stage lie on the first process."""

SPLIT_BACKWARD = ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
"""Schedules that compute the gradients of inputs first, and those of weights when there is time."""


def least_micro_batches(schedule: str, pp: int) -> tuple[int, int]:
    """Return how many micro-batches `schedule` needs at least, and of what a multiple."""
    least = {"1F1B": pp, "DualPipeV": 2 * pp}.get(schedule, 1)
    return least, pp if schedule.startswith("Interleaved") else 1


def check_split(
    run: RunConfig, axes: Mapping[str, int], *, micro_batches: int, micro_batch_size: int
) -> None:
    """Refuse a split that the model or the batch does not allow.

    Args:
        run: The configuration.
        axes: The size of every mesh axis.
        micro_batches: Micro-batches of a step, for each data-parallel process.
        micro_batch_size: Sequences in each.

    Raises:
        ConfigError: names keys, values and a fix.
    """
    if axes["tp"] > 1:
        _check_tp(run, axes["tp"])
    if axes["cp"] > 1:
        _check_cp(run, axes["cp"], axes["tp"])
    if axes["pp"] > 1:
        _check_pp(run, axes, micro_batches, micro_batch_size)
        if run.strategy.cut == "graph":
            _check_graph(run, axes)
    require(
        run.strategy.stage_memory_gib is None or axes["pp"] > 1,
        f"strategy.stage_memory_gib={run.strategy.stage_memory_gib} bounds the stages of a "
        "pipeline, and strategy.pp=1 makes none; set strategy.stage_memory_gib=null or raise "
        "strategy.pp.",
    )
    _check_sequence(run, axes)
    _check_zero(run, axes)
    kind, dropout = run.train.activation_checkpointing, run.model.dropout
    require(
        not run.train.compile or kind == "none" or dropout == 0.0,
        f"train.compile=true with train.activation_checkpointing={kind} and model.dropout={dropout}"
        ": dropout's masks stay out of what is compiled, and torch then compiles nothing of a "
        "block that is computed again; set model.dropout=0, or one of the other two off.",
    )


def check_vocabulary(run: RunConfig, axes: Mapping[str, int], vocab_size: int) -> None:
    """Refuse a vocabulary that cannot be cut as asked; the data may have to tell its size first.

    Raises:
        ConfigError: names keys, values and a fix.
    """
    tp = axes["tp"]
    if vocab_size % tp == 0:
        return
    wider = -(-vocab_size // tp) * tp
    fix = f"set model.vocab_size={wider} (the rows that are added are never asked for)."
    require(
        -(-vocab_size // tp) * (tp - 1) < vocab_size,
        f"a vocabulary of {vocab_size} leaves one of strategy.tp={tp} processes without a row; "
        + fix,
    )
    shards = axes["dp_shard"] * axes["cp"] if run.strategy.zero else 1
    require(
        shards <= 2,
        f"a vocabulary of {vocab_size}, which strategy.tp={tp} does not divide, cannot be saved by "
        f"strategy.zero={run.strategy.zero} over {shards} processes more (strategy.dp_shard="
        f"{axes['dp_shard']} x strategy.cp={axes['cp']}): torch 2.13 misplaces uneven rows that "
        f"are cut twice; {fix}",
    )


def _check_graph(run: RunConfig, axes: Mapping[str, int]) -> None:
    """Refuse what would have to reach inside a traced model."""
    for axis, why in (("tp", "cut layers"), ("cp", "cut sequences")):
        require(
            axes[axis] == 1,
            f"strategy.cut=graph with strategy.{axis}={axes[axis]}: a traced model has no layers "
            f"left to {why} in; set strategy.{axis}=1, or strategy.cut=balanced.",
        )
    require(
        run.strategy.zero == 0,
        f"strategy.cut=graph with strategy.zero={run.strategy.zero}: a traced model has no blocks "
        "left to shard one by one; set strategy.zero=0, or strategy.cut=balanced.",
    )
    require(
        run.train.activation_checkpointing == "none",
        "strategy.cut=graph with train.activation_checkpointing="
        f"{run.train.activation_checkpointing}: a traced model has no blocks left to compute "
        "again; set train.activation_checkpointing=none, or strategy.cut=balanced.",
    )
    require(
        not run.train.compile,
        "strategy.cut=graph with train.compile=true: a traced model has no blocks left to "
        "compile; set train.compile=false, or strategy.cut=balanced.",
    )


def _check_tp(run: RunConfig, tp: int) -> None:
    model = run.model
    require(
        model.n_heads % tp == 0,
        f"strategy.tp={tp} must divide model.n_heads={model.n_heads}; try "
        f"{_divisors(model.n_heads)}.",
    )
    if isinstance(model, LlamaConfig):
        kv = model.n_kv_heads or model.n_heads
        require(
            kv % tp == 0 or tp % kv == 0,
            f"strategy.tp={tp} must divide model.n_kv_heads={kv} or be a multiple of it (each "
            f"key/value head is then held by several processes); try {_divisors(kv)}.",
        )
    require(
        model.ffn_width % tp == 0,
        f"strategy.tp={tp} must divide the feed-forward width {model.ffn_width}; set "
        f"model.ffn_dim={-(-model.ffn_width // tp) * tp} or another tp.",
    )


def _check_cp(run: RunConfig, cp: int, tp: int) -> None:
    heads = run.model.n_heads // tp
    require(
        heads % cp == 0,
        f"strategy.cp={cp} must divide the heads of a process, model.n_heads={run.model.n_heads} "
        f"/ strategy.tp={tp} = {heads}: attention trades positions for heads; try "
        f"{_divisors(heads)}.",
    )


def _check_zero(run: RunConfig, axes: Mapping[str, int]) -> None:
    zero, replicas = run.strategy.zero, axes["dp_replicate"]
    single = run.strategy.name == "data" and replicas == 1  # one process has nothing to share
    require(
        zero == 0 or single or axes["dp_shard"] * axes["cp"] > 1,
        f"strategy.zero={zero} shards over strategy.dp_shard={axes['dp_shard']} x strategy.cp="
        f"{axes['cp']} = 1 process, which is nothing; set "
        + (f"strategy.dp_shard={replicas}, " if replicas > 1 else "strategy.dp_shard=2, ")
        + "or strategy.zero=0.",
    )


def _check_sequence(run: RunConfig, axes: Mapping[str, int]) -> None:
    sequence_parallel = axes["tp"] > 1 and run.strategy.sequence_parallel
    parts = axes["cp"] * (axes["tp"] if sequence_parallel else 1)
    require(
        run.model.seq_len % parts == 0,
        f"model.seq_len={run.model.seq_len} cannot be cut into strategy.cp={axes['cp']}"
        f"{' x strategy.tp=' + str(axes['tp']) if sequence_parallel else ''} equal parts; try "
        f"model.seq_len={-(-run.model.seq_len // parts) * parts}"
        f"{' or strategy.sequence_parallel=false' if sequence_parallel else ''}.",
    )


def _check_pp(
    run: RunConfig, axes: Mapping[str, int], micro_batches: int, micro_batch_size: int
) -> None:
    strategy, layers, pp = run.strategy, run.model.n_layers, axes["pp"]
    stages, schedule = pp * strategy.stages, strategy.schedule
    require(
        stages <= layers,
        f"strategy.pp={pp} with strategy.schedule={schedule} ({strategy.stages} a process) makes "
        f"{stages} stages, and model.n_layers={layers}; try strategy.pp="
        f"{max(1, layers // strategy.stages)}, another schedule or more layers.",
    )
    least, multiple = least_micro_batches(schedule, pp)
    share, dp = micro_batches * micro_batch_size, axes["dp_replicate"] * axes["dp_shard"]
    fits = [n for n in _divisor_list(share) if n >= least and n % multiple == 0]
    fix = (
        f"try train.micro_batch_size={share // fits[0]}"
        if fits
        else f"try train.global_batch_size={-(-max(share, least) // multiple) * multiple * dp}"
    )
    require(
        micro_batches >= least,
        f"strategy.schedule={schedule} needs {least} micro-batches for strategy.pp={pp}, and a "
        f"step has {micro_batches}; {fix}.",
    )
    require(
        micro_batches % multiple == 0,
        f"strategy.schedule={schedule} needs a multiple of strategy.pp={pp} micro-batches, and a "
        f"step has {micro_batches}; {fix}.",
    )
    require(
        run.train.activation_checkpointing != "selective" or schedule not in SPLIT_BACKWARD,
        f"train.activation_checkpointing=selective with strategy.schedule={schedule}: what is kept "
        "can be gone through once, and this schedule's backward goes through twice; set "
        "train.activation_checkpointing=full or none, or another schedule.",
    )
    require(
        not run.train.compile or schedule not in SPLIT_BACKWARD,
        f"train.compile=true with strategy.schedule={schedule}: torch cannot split a compiled "
        "backward; set train.compile=false, or a schedule with whole backwards (GPipe, 1F1B, "
        "Interleaved1F1B).",
    )
    require(
        strategy.zero < 3 or schedule not in SPLIT_BACKWARD,
        f"strategy.zero=3 frees weights between the two halves of a backward, and "
        f"strategy.schedule={schedule} then computes wrong gradients (torch 2.13); set "
        "strategy.zero=2, or a schedule with whole backwards (GPipe, 1F1B, Interleaved1F1B).",
    )
    require(
        schedule not in V_SHAPED or not run.model.tie_embeddings or strategy.zero == 0,
        f"strategy.schedule={schedule} holds both ends of a tied model on one process, which "
        f"strategy.zero={strategy.zero} cannot shard as one weight; set "
        "model.tie_embeddings=false, strategy.zero=0 or another schedule.",
    )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in _divisor_list(number))


def _divisor_list(number: int) -> Iterable[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
