"""Whether a model can be cut as a strategy asks: rules between strategy, model and train."""

from collections.abc import Iterable, Mapping

from llmtrain.config.groups.model import LlamaConfig
from llmtrain.config.schema import RunConfig
from llmtrain.errors import require

V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
"""Schedules in which the first and the last stage lie on the first process."""

SPLIT_BACKWARD = ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
"""Schedules that compute the gradients of inputs first, and those of weights when there is time."""


def check_split(run: RunConfig, axes: Mapping[str, int], micro_batches: int) -> None:
    """Refuse a split that the model or the batch does not allow.

    Args:
        run: The configuration.
        axes: The size of every mesh axis.
        micro_batches: Micro-batches of a step, for each data-parallel process.

    Raises:
        ConfigError: names keys, values and a fix.
    """
    if axes["tp"] > 1:
        _check_tp(run, axes["tp"])
    if axes["cp"] > 1:
        _check_cp(run, axes["cp"], axes["tp"])
    if axes["pp"] > 1:
        _check_pp(run, axes["pp"], micro_batches)
    _check_sequence(run, axes)


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


def _check_pp(run: RunConfig, pp: int, micro_batches: int) -> None:
    strategy, layers = run.strategy, run.model.n_layers
    stages, schedule = pp * strategy.stages, strategy.schedule
    require(
        stages <= layers,
        f"strategy.pp={pp} with strategy.schedule={schedule} ({strategy.stages} a process) makes "
        f"{stages} stages, and model.n_layers={layers}; try strategy.pp="
        f"{max(1, layers // strategy.stages)}, another schedule or more layers.",
    )
    least = {"1F1B": pp, "DualPipeV": 2 * pp}.get(schedule, 1)
    multiple = pp if schedule.startswith("Interleaved") else 1
    share = micro_batches * (run.train.micro_batch_size or 1)
    fits = [n for n in _divisor_list(share) if n >= least and n % multiple == 0]
    fix = (
        f"try train.micro_batch_size={share // fits[0]}"
        if fits
        else f"raise train.global_batch_size to {max(least, multiple)} a data-parallel process"
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
