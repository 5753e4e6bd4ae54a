"""Data parallelism: torch's DDP (zero=0) and FSDP2 (zero=1..3, HSDP).

What ZeRO (arXiv:1910.02054, section 5) shards, and the FSDP2 setting that does so:

    zero  sharded                      after forward     after backward        gradients travel
    1     optimizer state              weights stay      weights stay until    once a step, whole
                                                         the last micro-batch  ones accumulate
    2     and gradients                weights stay      the same              every micro-batch
    3     and weights                  weights freed     weights freed         every micro-batch

Both reduce gradients to their mean over the data-parallel ranks; `train.step` scales each rank's
loss so that this mean is the gradient of the global loss.
"""

import contextlib
from collections.abc import Callable

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from llmtrain.distributed.mesh import Mesh

Microbatch = Callable[[bool], contextlib.AbstractContextManager[object]]
"""Called with "is this the step's last micro-batch?" around a forward and backward."""


def no_microbatch_context(is_last: bool) -> contextlib.AbstractContextManager[object]:
    """The `Microbatch` of a model whose gradients go nowhere."""
    return contextlib.nullcontext()


def apply_ddp(model: nn.Module, group: dist.ProcessGroup) -> tuple[nn.Module, Microbatch]:
    """Return `model` under DDP, and its `Microbatch`. Collective over `group`.

    Weights are not broadcast: every rank has drawn the same ones from the seed.
    """
    ddp = nn.parallel.DistributedDataParallel(
        model, process_group=group, init_sync=False, gradient_as_bucket_view=True
    )

    def microbatch(is_last: bool) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if is_last else ddp.no_sync()

    return ddp, microbatch


def shard_mesh(mesh: Mesh, *, with_replicas: bool) -> DeviceMesh:
    """Return the mesh FSDP works on: dp_shard x cp, under dp_replicate where wanted (HSDP).

    Ranks of cp hold the same weights and different positions: to FSDP they are ranks like others.

    Args:
        mesh: The whole mesh.
        with_replicas: Whether FSDP averages over replicas too.
    """
    inner = "shard_cp" if mesh.size("cp") > 1 else "dp_shard"
    if with_replicas and mesh.size("dp_replicate") > 1:
        return mesh.device_mesh["dp_replicate", inner]
    return mesh.device_mesh[inner]


def apply_fsdp(module: nn.Module, mesh: DeviceMesh, zero: int) -> None:
    """Shard the parameters of `module` that no module inside it has sharded, in place.

    Args:
        module: A block, or the model after its blocks.
        mesh: `shard_mesh`.
        zero: 1, 2 or 3.

    Weights are gathered as they are, also for bf16: FSDP's own mixed precision casts the inputs of
    every block too, the residual stream and the rotary tables among them, and so computes
    something else than autocast does in one process.
    """
    # Imported here: FSDP costs a second of start-up that other strategies need not pay.
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=mesh, reshard_after_forward=zero == 3)


def fsdp_microbatch(model: nn.Module, zero: int) -> Microbatch:
    """Return the `Microbatch` of a model under `apply_fsdp`."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)

    def microbatch(is_last: bool) -> contextlib.AbstractContextManager[object]:
        if zero == 1:
            model.set_requires_gradient_sync(is_last)
        if zero in (1, 2):
            model.set_reshard_after_backward(is_last)
        # Between replicas (HSDP) the sums of all micro-batches travel at once.
        model.set_requires_all_reduce(is_last)
        model.set_is_last_backward(is_last)
        return contextlib.nullcontext()

    return microbatch


def reshard(model: nn.Module) -> None:
    """Free the weights that a forward without a backward has left gathered (zero=1 and 2).

    Until then `model.parameters()` are not the ones the optimizer holds.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
