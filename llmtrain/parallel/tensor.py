"""Tensor parallelism: each layer's matrices cut over the axis tp (Megatron-LM, arXiv:1909.08053).

The model's TP_PLAN names a style for each kind of module; here the styles become torch's
`parallelize_module` styles. With sequence parallelism (arXiv:2205.05198, section 4.2) the residual
stream between attention and feed-forward is cut along the sequence, without it every rank holds all
of it:

    style      weights over tp   input -> output (S: cut along the sequence, or whole without SP)
    vocab      rows              token ids -> S
    positions  whole             positions of S -> S
    sequence   whole             S -> S
    gather     none of its own   S -> whole
    column     rows              whole -> its features
    kv_column  rows, or whole where there are fewer key/value heads than ranks
    row        columns           its features -> S, summed
    logits     rows              S -> its columns of the logits

Weights are DTensors, so whoever saves, clips or optimises them sees the whole. A vocabulary that tp
does not divide is cut unevenly (as `torch.chunk` cuts), so the model itself depends on no layout.
"""

import fnmatch

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llmtrain.models.attention import CausalSelfAttention
from llmtrain.models.transformer import Transformer


class ReplicatedColumn(ParallelStyle):
    """A linear layer whose output every rank computes whole and uses in part.

    Each rank's gradient of the output is then only its own part's: a partial sum.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute_module(module, device_mesh, self._partition)
        module.register_forward_hook(self._to_local_partial)
        return module

    @staticmethod
    def _partition(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            whole = distribute_tensor(parameter, mesh, [Replicate()], src_data_rank=None)
            module.register_parameter(key, nn.Parameter(whole))

    @staticmethod
    def _to_local_partial(module: nn.Module, args: object, output: DTensor) -> Tensor:
        local: Tensor = output.to_local(grad_placements=[Partial()])
        return local


def apply_tensor_parallel(
    model: Transformer, mesh: DeviceMesh, *, n_heads: int, sequence_parallel: bool
) -> None:
    """Cut `model` (shapes, or a stage of it) over `mesh`, in place. No communication.

    Args:
        model: On the meta device.
        mesh: The axis tp, of more than one rank.
        n_heads: model.n_heads; divisible by the axis.
        sequence_parallel: Whether the residual stream is cut along the sequence.
    """
    split_kv = model.n_kv_heads % mesh.size() == 0
    styles = _styles(sequence_parallel=sequence_parallel, split_kv=split_kv)
    for name, module in list(model.named_modules()):
        kind = next((k for p, k in model.TP_PLAN.items() if fnmatch.fnmatchcase(name, p)), None)
        style = styles[kind] if kind is not None else None
        if style is not None:
            parallelize_module(module, mesh, style, src_data_rank=None)
        if isinstance(module, CausalSelfAttention) and not split_kv:
            # All query heads of a rank share one key/value head.
            per_rank, per_kv = n_heads // mesh.size(), n_heads // model.n_kv_heads
            head = mesh.get_local_rank() * per_rank // per_kv
            module.kv_heads = slice(head, head + 1)


def _styles(*, sequence_parallel: bool, split_kv: bool) -> dict[str, ParallelStyle | None]:
    """Return torch's style for each word of a TP_PLAN; None: every rank does the same."""
    stream = Shard(1) if sequence_parallel else Replicate()
    return {
        "vocab": RowwiseParallel(input_layouts=Replicate(), output_layouts=stream),
        # Their last dimension, with one row for all samples or one for each.
        "positions": SequenceParallel(sequence_dim=-1, use_local_output=True)
        if sequence_parallel
        else None,
        "sequence": SequenceParallel() if sequence_parallel else None,
        # DTensors inside, so that the gradients of all that read the input are summed once.
        "gather": PrepareModuleInput(input_layouts=(stream,), desired_input_layouts=(Replicate(),)),
        "column": ColwiseParallel(),
        "kv_column": ColwiseParallel() if split_kv else ReplicatedColumn(),
        "row": RowwiseParallel(output_layouts=stream),
        "logits": ColwiseParallel(input_layouts=stream, output_layouts=Shard(-1)),
    }
