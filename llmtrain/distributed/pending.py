"""What this process has asked of its process groups, and what of it is not done yet.

torch's flight recorder keeps the last collectives of every group, gloo's as NCCL's. What it does
not see are sends and receives over gloo: those are read from the stack of who waits for them.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.distributed import distributed_c10d

EVERYONE = "default_pg"
"""torch's name for the group of the whole world."""


@dataclass(frozen=True)
class Collective:
    """A collective that has been asked for and is not done."""

    name: str
    """Such as all_reduce."""
    group: str
    """Its group: torch's description and name of it, such as `mesh_dp_shard 4`."""
    number: int
    """Which collective of the group it is, from 1; equal on all ranks."""
    ranks: tuple[int, ...]
    """The group's members; () where they are not known."""
    shapes: tuple[str, ...] = ()
    """What goes in, such as `float64[32, 8]`."""

    def __str__(self) -> str:
        of = f" of {', '.join(self.shapes)}" if self.shapes else ""
        description = self.group.rpartition(" ")[0]
        if description == EVERYONE:
            over = "all ranks"
        else:
            members = f" (ranks {', '.join(map(str, self.ranks))})" if self.ranks else ""
            over = description.removeprefix("mesh_") + members
        return f"{self.name} no. {self.number}{of} over {over}"


@dataclass(frozen=True)
class Traffic:
    """What this process has asked of its groups."""

    pending: tuple[Collective, ...] = ()
    """Not done, oldest first."""
    asked: dict[str, int] = field(default_factory=dict)
    """Group -> the number of the last collective that was asked of it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Traffic":
        """Return what `to_json` gave, after its way through JSON."""
        pending = [
            Collective(**{**c, "ranks": tuple(c["ranks"]), "shapes": tuple(c["shapes"])})
            for c in plain["pending"]
        ]
        return cls(tuple(pending), dict(plain["asked"]))


def read_traffic() -> Traffic:
    """Return this process's traffic, from the flight recorder.

    It is empty where the recorder is off (TORCH_FR_BUFFER_SIZE=0) or has another form in another
    torch: whatever is wrong here must not hide a hang.
    """
    try:
        dump = json.loads(torch._C._distributed_c10d._dump_fr_trace_json())  # type: ignore[attr-defined]
        members = _members()
        pending: list[Collective] = []
        asked: dict[str, int] = {}
        for entry in dump.get("entries", []):
            name, description = entry["process_group"]
            key = f"{description} {name}"
            number = entry["collective_seq_id"]
            asked[key] = max(asked.get(key, 0), number)
            if not entry["retired"] and entry["state"] != "completed":
                shapes = zip(entry["input_dtypes"], entry["input_sizes"], strict=False)
                pending.append(
                    Collective(
                        entry["profiling_name"].rpartition(":")[2], key, number,
                        members.get(name, ()),
                        tuple(f"{kind.lower()}{size}" for kind, size in shapes),
                    )
                )  # fmt: skip
        return Traffic(tuple(pending), asked)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Traffic()


def _members() -> dict[str, tuple[int, ...]]:
    """Return group's name -> its ranks of the world."""
    world = distributed_c10d._world
    return {
        str(name): tuple(sorted(world.pg_group_ranks[group]))
        for group, name in world.pg_names.items()
    }
