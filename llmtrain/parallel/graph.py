"""The stage cut `graph`: the whole model, traced, cut by torch.distributed.pipelining's tracer.

It knows nothing of blocks, so it needs no PP_ORDER. It cuts where one tensor of the residual stream
is all that later operations use (between attention and feed-forward too), so that the slowest stage
has the fewest multiplications:

    shapes -> fake weights, opaque dropout -> traced graph -> segments between the places where it
    can be cut -> balanced_cut of their costs -> marks -> torch's `pipeline` -> stages
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining import pipeline

from llmtrain.config.cut import balanced_cut
from llmtrain.config.plan import Plan
from llmtrain.config.schema import RunConfig
from llmtrain.errors import require
from llmtrain.models.init import init_weights, seed_dropout
from llmtrain.models.layers import Dropout, drop
from llmtrain.models.transformer import Transformer
from llmtrain.parallel.precision import Precision

aten = torch.ops.aten

SUMMED = {
    aten.linear.default: (0, -1),
    aten.matmul.default: (0, -1),
    aten.mm.default: (0, -1),
    aten.bmm.default: (0, -1),
    aten.addmm.default: (1, -1),
    # Scores and values, of which the causal half is computed.
    aten.scaled_dot_product_attention.default: (1, -2),
}
"""Which argument's which dimension a product sums over: so many multiplications an output entry."""

torch.library.define(
    "llmtrain::dropout",
    "(Tensor x, Tensor? sample_ids, Tensor positions, int key, float p) -> Tensor",
)


@torch.library.impl("llmtrain::dropout", "CompositeImplicitAutograd")
def _dropout(x: Tensor, sample_ids: Tensor | None, positions: Tensor, key: int, p: float) -> Tensor:
    return x if sample_ids is None else drop(x, sample_ids, positions, key, p)


class _OpaqueDropout(Dropout):
    """Dropout as one node of a graph, which is off where there are no sample ids.

    One node, since tracing its forty operations takes longer than all the rest; switched by the
    sample ids, since a graph does not know `training`, and an evaluation has none.
    """

    def forward(self, x_BTD: Tensor, sample_ids_B: Tensor | None, positions_T: Tensor) -> Tensor:
        """See `Dropout`."""
        if self.p == 0.0:
            return x_BTD
        arguments = (x_BTD, sample_ids_B, positions_T, self.key, self.p)
        dropped: Tensor = torch.ops.llmtrain.dropout(*arguments)
        return dropped


class GraphStage(nn.Module):
    """A stage of a traced model; its parameters have the model's names."""

    def __init__(self, graph: Any, to_all: Sequence[str]) -> None:
        """Wrap a stage.

        Args:
            graph: The stage as the tracer gives it.
            to_all: The names of the graph's inputs that every stage may use, in the order of
                `forward`: sample ids, document positions.
        """
        super().__init__()
        # The first stage flattens its inputs as they were when traced; None was none of them.
        graph.graph.set_codegen(fx.graph.CodeGen())
        graph.recompile()
        self.graph = graph
        inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        self._takes = [to_all.index(name) + 1 if name in to_all else 0 for name in inputs]

    def forward(
        self,
        input_BT: Tensor,
        sample_ids_B: Tensor | None = None,
        document_positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Return what `Transformer.forward` does; dropout is off without sample ids."""
        given = (input_BT, sample_ids_B, document_positions_BT)
        output: Tensor = self.graph(*(given[i] for i in self._takes))
        return output


def build_traced(
    build: Callable[[], Transformer],
    run: RunConfig,
    plan: Plan,
    own: Sequence[int],
    device: torch.device,
) -> tuple[Transformer, list[GraphStage]]:
    """Return what this rank holds of the model, with weights, and the stages that compute with it.

    Args:
        build: Makes the model on the meta device, each time anew.
        run: The configuration.
        plan: Its plan.
        own: The numbers of this rank's stages.
        device: Where the weights go.
    """
    precision = Precision(run.train.precision)
    shapes, whole = build(), build()
    seed_dropout(shapes, run.train.seed)
    n_stages = plan.pp * plan.stages_per_rank
    traced = trace_stages(
        shapes, n_stages, plan.micro_batch_size, precision, device,
        masks_documents=run.data.masks_documents,
    )  # fmt: skip
    stages = [traced[i] for i in own]
    named = dict(whole.named_parameters(remove_duplicate=False))
    held = {named[name] for stage in stages for name, _ in stage.graph.named_parameters()}
    weights = {
        p: nn.Parameter(torch.empty(p.shape, dtype=precision.parameter_dtype, device=device))
        for p in held
    }
    # A weight that is tied stays one, under all its names, on every rank that holds it.
    for name, p in named.items():
        owner, _, leaf = name.rpartition(".")
        whole.get_submodule(owner).register_parameter(leaf, weights.get(p))
    init_weights(whole, run.model, prefix="", residual=whole.RESIDUAL, seed=run.train.seed)
    for stage in stages:
        for name, _ in list(stage.graph.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            setattr(stage.graph.get_submodule(owner), leaf, weights[named[name]])
    return whole, stages


def trace_stages(
    model: Transformer,
    n_stages: int,
    rows: int,
    precision: Precision,
    device: torch.device,
    *,
    masks_documents: bool = False,
) -> list[GraphStage]:
    """Return the stages of `model`, with fake parameters, none of them tied.

    Args:
        model: The whole model of shapes, its dropout seeded. It is used up.
        n_stages: How many.
        rows: Samples of a micro-batch: a traced graph has one shape.
        precision: Number formats, which the graph has fixed too.
        device: Where the stages will run.
        masks_documents: Whether they will be given document positions.

    Raises:
        ConfigError: when the graph cannot be cut in as many places.
    """
    like = partial(torch.empty, device=device)
    # Fake tensors of the real device, for meta tensors are not autocast.
    with FakeTensorMode():
        for module in model.modules():
            if isinstance(module, Dropout):
                module.__class__ = _OpaqueDropout
            for name, p in list(module.named_parameters(recurse=False)):
                # Each its own, tied or not: a stage then has the parameter under the name it uses.
                fake = nn.Parameter(like(p.shape, dtype=precision.parameter_dtype))
                module.register_parameter(name, fake)
        ids = like((rows, model.seq_len), dtype=torch.int64)
        to_all = [like((rows,), dtype=torch.int64)]
        if masks_documents:
            to_all.append(like(ids.shape, dtype=torch.int64))
        stream_BTD = (rows, model.seq_len, model.head.in_features)
        stream = like(stream_BTD, dtype=precision.parameter_dtype)
    mark = partial(_mark, n_stages=n_stages, stream=stream)
    with precision.autocast(device), warnings.catch_warnings():
        # torch 2.13's export copies tree specifications in a way that it has itself deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        pipe = pipeline(model, (ids, *to_all), split_policy=mark)
    _, *names = [node.name for node in pipe.split_gm.graph.nodes if node.op == "placeholder"]
    return [GraphStage(pipe.get_stage_module(i), names) for i in range(n_stages)]


def _mark(module: fx.GraphModule, *, n_stages: int, stream: Tensor) -> fx.GraphModule:
    """Put n_stages - 1 marks into a traced module, at which torch's tracer then cuts it."""
    graph = module.graph
    nodes = list(graph.nodes)
    constants = _constants(nodes)
    starts = [0, *_places(nodes, constants, stream), len(nodes)]
    segments = [nodes[a:b] for a, b in itertools.pairwise(starts)]
    require(
        n_stages <= len(segments),
        f"strategy.cut=graph: the traced model falls into {len(segments)} parts, fewer than the "
        f"{n_stages} stages; lower strategy.pp or strategy.stages_per_rank.",
    )
    cut = balanced_cut([sum(map(_multiplications, part)) for part in segments], n_stages)
    for stage in cut[1:]:
        own = [node for i in stage for node in segments[i]]
        with graph.inserting_before(own[0]):
            graph.call_function(torch.ops.pippy._pipe_split.default)
            # Positions, masks and rotary tables are made anew in every stage instead of sent.
            copies: dict[fx.Node, fx.Node] = {node: node for node in _to_all(nodes)}
            for node in constants:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                # At the top, whatever module made it: a module must stay in one piece.
                modules = node.meta["nn_module_stack"].items()
                copies[node].meta["nn_module_stack"] = dict(itertools.islice(modules, 1))
        for node in (node for node in own if node not in constants):
            for constant in set(node.all_input_nodes) & constants.keys():
                node.replace_input_with(constant, copies[constant])
    graph.eliminate_dead_code()
    return module


def _constants(nodes: list[fx.Node]) -> dict[fx.Node, None]:
    """Return the nodes that depend on no parameter and on no input but those of every stage."""
    constants: dict[fx.Node, None] = {}
    free = set(_to_all(nodes))
    for node in nodes:
        if node.op == "call_function" and free.issuperset(node.all_input_nodes):
            constants[node] = None
            free.add(node)
    return constants


def _to_all(nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the inputs that every stage is given: all but the first."""
    return [node for node in nodes if node.op == "placeholder"][1:]


def _places(nodes: list[fx.Node], constants: dict[fx.Node, None], stream: Tensor) -> list[int]:
    """Return the numbers of the nodes before which the graph can be cut.

    Only one value may pass: one like `stream`.
    """
    number = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((number[user] for user in node.users), default=-1) for node in nodes}
    free = {*_to_all(nodes), *constants, *(node for node in nodes if node.op == "get_attr")}
    places: dict[fx.Node, int] = {}
    alive: list[fx.Node] = []
    for i, node in enumerate(nodes):
        alive = [value for value in alive if last_use[value] >= i]
        if len(alive) == 1 and node not in free and node.op != "output":
            value = alive[0].meta["val"]
            if value.shape == stream.shape and value.dtype == stream.dtype:
                places.setdefault(alive[0], i)
        if node not in free:
            alive.append(node)
    return list(places.values())


def _multiplications(node: fx.Node) -> float:
    argument, dim = SUMMED.get(node.target, (None, 0))  # type: ignore[call-overload]
    if argument is None:
        return 0.0
    summed = node.args[argument].meta["val"].shape[dim]
    return float(node.meta["val"].numel() * summed)
