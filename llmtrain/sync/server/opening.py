"""How a new server takes up what the first replica knows."""

from typing import Any

from llmtrain.sync.server.core import ServerCore
from llmtrain.sync.server.packing import OPTIMIZER, WEIGHTS, restricted, under, unpack
from llmtrain.sync.server.tensors import Tensors


def open_core(
    core: ServerCore, plain: Any, tensors: Tensors, tokens: int, rule: Any = None
) -> None:
    """Put `core` where training stands. Every replica has to say Hello after that.

    Args:
        core: Built over the weights in `tensors`.
        plain: The state of the run's server as `pack` left it; None: a checkpoint of another mode
            or of other replicas, or none.
        tensors: By path: the weights, and what of the state and of optimizers is known.
        tokens: Tokens in the weights, where `plain` is None.
        rule: The state of the rule then, if the checkpoint is of the same mode.
    """
    names = under(WEIGHTS, tensors).keys()
    if plain is not None:
        state = unpack(restricted(plain, names), tensors)
    else:
        state = core.state_dict()
        state["tokens"] = tokens
        if rule is not None:
            state["rule"] = unpack(restricted(rule, names), tensors)
        # What another mode's optimizer knows is the server's from now on.
        for path, tensor in under(OPTIMIZER, tensors).items():
            name, key = path.split("|")
            state["rule"]["optimizer"].setdefault(name, {})[key] = tensor
    core.load_state_dict(state)
    core.wait_for_all()
