"""What the stages of a pipeline take, modelled from the configuration alone: time and memory.

Time is multiplications a token: one a weight of a matrix, and the causal half of attention's scores
and values. Memory is what one process holds, all its stages together:

    weights, gradients, optimizer state   4 bytes a number (fp64: 8), cut by tp and, as `zero` says,
                                          by dp_shard x cp (arXiv:1910.02054, section 3)
    activations                           what the backward of a block needs, counted as in
                                          arXiv:2205.05198, equations 1 to 4, without the matrix of
                                          scores (fused attention makes none), and a mask of
                                          documents in every stage where data.samples has one,
                                          times the micro-batches that the schedule keeps alive

Not counted: what is allocated for moments (buffers of communication, work space) and by torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain.config.cut import equal_blocks_cut, fill, uniform_cut
from llmtrain.config.groups.model import GPTConfig, LlamaConfig
from llmtrain.config.schema import RunConfig
from llmtrain.config.split import V_SHAPED
from llmtrain.errors import ConfigError

GIB = 2**30

STATES = {"sgd": 0, "adafactor": 0, "momentum": 1, "lion": 1, "muon": 1, "adam": 2, "adamw": 2}
"""Numbers an optimizer keeps a weight. Adafactor's row and column sums hardly count; Muon's other
weights (embedding and head) are AdamW's, with 2."""


def process_of_stage(schedule: str, pp: int, stage: int) -> int:
    """Return the rank of the axis pp that holds `stage`: in a loop, or there and back in a V."""
    if schedule in V_SHAPED and stage >= pp:
        return 2 * pp - 1 - stage
    return stage % pp


def in_flight(schedule: str, *, pp: int, rank: int, stages: int, micro_batches: int) -> float:
    """Return the micro-batches whose activations a process keeps alive at most.

    Where it holds several stages: on the average over them.

    Args:
        schedule: strategy.schedule.
        pp: Processes of the pipeline.
        rank: The process.
        stages: Stages that each process holds.
        micro_batches: Of a step.
    """
    most: float = micro_batches  # GPipe: all forwards come first
    if schedule == "1F1B":
        most = pp - rank  # arXiv:2104.04473, section 2.2.1
    elif schedule == "Interleaved1F1B":
        # The warm-up's forwards and one more (the same, section 2.2.2), over all its stages.
        most = ((stages - 1) * pp + 2 * (pp - rank - 1) + 1) / stages
    elif schedule in ("InterleavedZeroBubble", "ZBVZeroBubble"):
        most = pp  # arXiv:2405.15362, section 4.1; until the gradients of weights are there
    elif schedule == "DualPipeV":
        most = pp + 0.5  # one forward more than those
    return min(micro_batches, most)


@dataclass(frozen=True)
class Footprint:
    """The modelled time and memory of a run's stages."""

    run: RunConfig
    axes: Mapping[str, int]
    micro_batch_size: int
    micro_batches: int
    """Of a step, for each data-parallel process."""

    @property
    def stages_per_rank(self) -> int:
        """Stages that each process holds."""
        return self.run.strategy.stages if self.axes["pp"] > 1 else 1

    @property
    def n_stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.axes["pp"] * self.stages_per_rank

    @property
    def process_of(self) -> list[int]:
        """The process of each stage."""
        schedule, pp = self.run.strategy.schedule, self.axes["pp"]
        return [process_of_stage(schedule, pp, stage) for stage in range(self.n_stages)]

    @property
    def block_cost(self) -> float:
        """Multiplications of a token in a block."""
        model = self.run.model
        return float(self.matrices + model.seq_len * model.dim)

    @property
    def head_cost(self) -> float:
        """Multiplications of a token in the head."""
        return float(self._vocab * self.run.model.dim)

    def stages(self) -> list[range]:
        """Return the blocks of each stage, by strategy.cut.

        Raises:
            ConfigError: more stages than blocks, or no cut keeps to strategy.stage_memory_gib.
        """
        strategy, n_layers = self.run.strategy, self.run.model.n_layers
        if strategy.cut == "uniform":
            return uniform_cut(n_layers, self.n_stages)
        limit = strategy.stage_memory_gib
        room = [n_layers if limit is None else self._room(r, limit) for r in self._ranks]
        cut = equal_blocks_cut(
            n_layers, block=self.block_cost, last=self.head_cost, process_of=self.process_of,
            room=room,
        )  # fmt: skip
        if cut is None:
            needed = self.least_bytes() / GIB
            known = self.run.model.vocab_size is not None
            raise ConfigError(
                f"strategy.stage_memory_gib={limit}: model.n_layers={n_layers} in {self.n_stages} "
                f"stages need {needed:.3g} GiB on a process (modelled"
                f"{'' if known else '; and what a vocabulary not yet known takes'}); set "
                f"strategy.stage_memory_gib={1.01 * needed:.3g}{'' if known else ' or more'}, "
                "raise strategy.pp or strategy.tp, or lower train.micro_batch_size."
            )
        return cut

    def bytes_of(self, rank: int, n_blocks: int) -> float:
        """Return the bytes that the process `rank` of pp holds, with `n_blocks` in its stages."""
        return self._fixed(rank) + n_blocks * self._block(rank)

    def least_bytes(self) -> float:
        """Return the bytes of the fullest process where blocks are placed to make them least."""
        n_layers = self.run.model.n_layers
        counts = fill(
            n_layers, [self.stages_per_rank for _ in self._ranks], self.bytes_of,
            group=self._ranks, room=[n_layers for _ in self._ranks],
        )  # fmt: skip
        assert counts is not None
        return max(self.bytes_of(rank, n) for rank, n in enumerate(counts))

    @property
    def _ranks(self) -> range:
        return range(self.axes["pp"])

    def _room(self, rank: int, limit_gib: float) -> int:
        """Return how many blocks fit into the process `rank`."""
        return math.floor((limit_gib * GIB - self._fixed(rank)) / self._block(rank))

    # Weights

    @property
    def _vocab(self) -> int:
        # Unknown until the data is prepared: the least there can be.
        return self.run.model.vocab_size or 1

    @property
    def _kv_width(self) -> int:
        model = self.run.model
        heads = (model.n_kv_heads if isinstance(model, LlamaConfig) else None) or model.n_heads
        return heads * (model.dim // model.n_heads)

    @property
    def matrices(self) -> int:
        """Weights of a block's matrices."""
        model = self.run.model
        ffn = 3 if isinstance(model, LlamaConfig) else 2
        return model.dim * (2 * model.dim + 2 * self._kv_width + ffn * model.ffn_width)

    @property
    def vectors(self) -> int:
        """Weights of a block's norms and biases."""
        model = self.run.model
        if not (isinstance(model, GPTConfig) and model.bias):
            return 2 * model.dim
        return 4 * model.dim + 3 * model.dim + model.ffn_width + 2 * model.dim

    @property
    def _weight_size(self) -> int:
        return 8 if self.run.train.precision == "fp64" else 4

    @property
    def _product_size(self) -> int:
        return 2 if self.run.train.precision == "bf16" else self._weight_size

    @property
    def _norm(self) -> int:
        """Numbers a token that a norm keeps: its input; RMSNorm also what it makes of it."""
        return self.run.model.dim * (2 if isinstance(self.run.model, LlamaConfig) else 1)

    def _weight_bytes(self, matrices: int, vectors: int, states: int) -> float:
        """Return the bytes of weights, their gradients and an optimizer's `states` of each."""
        strategy = self.run.strategy
        shards = self.axes["dp_shard"] * self.axes["cp"] if strategy.zero else 1
        cut = [shards if strategy.zero >= level else 1 for level in (3, 2, 1)]
        numbers = matrices / self.axes["tp"] + vectors
        return self._weight_size * numbers * (1 / cut[0] + 1 / cut[1] + states / cut[2])

    # Activations

    def _token_bytes(
        self, *, stream: float = 0, whole: float = 0, cut: float = 0, masks: float = 0
    ) -> float:
        """Return the bytes of a micro-batch's activations.

        Args:
            stream: Numbers a token of the residual stream, which is as precise as the weights.
            whole: Others that are cut by sequence parallelism alone.
            cut: Those inside attention, feed-forward and head, cut by tp.
            masks: Of dropout, a byte a number; cut as the residual stream.
        """
        tp, cp = self.axes["tp"], self.axes["cp"]
        tokens = self.micro_batch_size * self.run.model.seq_len / cp
        sequence = tp if self.run.strategy.sequence_parallel else 1
        fine = (self._weight_size * stream + masks) / sequence
        return tokens * (fine + self._product_size * (whole / sequence + cut / tp))

    def kept_bytes(self, checkpointing: str) -> float:
        """Return the bytes that a block keeps of a micro-batch."""
        model = self.run.model
        dim, gated = model.dim, isinstance(model, LlamaConfig)
        heads = 2 * dim + 2 * self._kv_width
        if checkpointing == "full":
            return self._token_bytes(stream=dim)
        if checkpointing == "selective":  # its input, and what matrix products and attention gave
            hidden = (2 if gated else 1) * model.ffn_width
            return self._token_bytes(stream=dim, whole=2 * dim, cut=heads + hidden)
        # What the norms keep; inputs of attention and of feed-forward, two masks of dropout.
        stream, whole = 2 * self._norm, 2 * dim
        if self.run.train.precision == "bf16":  # a norm's output is cast anew for every matrix
            whole += (3 if gated else 2) * dim
        hidden = (4 if gated else 2) * model.ffn_width
        masks = 2 * dim if model.dropout else 0
        return self._token_bytes(stream=stream, whole=whole, cut=heads + hidden, masks=masks)

    @property
    def mask_bytes(self) -> float:
        """Return the bytes of a micro-batch's mask of documents, which all blocks of a stage share.

        Of whole rows: neither cp nor tp cuts it.
        """
        if not self.run.data.masks_documents:
            return 0.0
        return float(self.micro_batch_size * self.run.model.seq_len**2 * self._product_size)

    def _alive(self, rank: int) -> float:
        strategy = self.run.strategy
        return in_flight(
            strategy.schedule, pp=self.axes["pp"], rank=rank, stages=self.stages_per_rank,
            micro_batches=self.micro_batches,
        )  # fmt: skip

    def _block(self, rank: int) -> float:
        """Return the bytes of one block in a stage of the process `rank`."""
        kept = self.kept_bytes(self.run.train.activation_checkpointing) + self.cast_bytes(
            self.matrices
        )
        weights = self._weight_bytes(self.matrices, self.vectors, self._states)
        return weights + self._alive(rank) * kept

    def cast_bytes(self, matrices: int) -> float:
        """Return the bytes of the bf16 copies that autocast makes for every micro-batch."""
        return 2 * matrices / self.axes["tp"] if self.run.train.precision == "bf16" else 0

    @property
    def _states(self) -> int:
        return STATES[self.run.optimizer.name]

    def _fixed(self, rank: int) -> float:
        """Return the bytes of what is no block in the stages of the process `rank`."""
        model, owners = self.run.model, self.process_of
        is_first, is_last = rank == owners[0], rank == owners[-1]
        tables = self._vocab * model.dim
        total = self._alive(rank) * self.stages_per_rank * self.mask_bytes
        states = 2 if self.run.optimizer.name == "muon" else self._states
        if is_first:
            positions = 0 if isinstance(model, LlamaConfig) else model.seq_len * model.dim
            total += self._weight_bytes(tables, positions, states)
            total += self._alive(rank) * self._token_bytes(masks=model.dim if model.dropout else 0)
        if is_last:
            shared = is_first and model.tie_embeddings
            norm = model.dim * (2 if isinstance(model, GPTConfig) and model.bias else 1)
            total += self._weight_bytes(0 if shared else tables, norm, states)
            # What the norm keeps, the head's input; the logits, and their logarithms in full.
            logits = self._vocab * (1 + self._weight_size / self._product_size)
            kept = self._token_bytes(stream=self._norm, whole=model.dim, cut=logits)
            total += self._alive(rank) * (kept + self.cast_bytes(tables))
        if self.run.train.activation_checkpointing != "none":
            total += self.kept_bytes("none")  # of the block that is being computed again
        return total
