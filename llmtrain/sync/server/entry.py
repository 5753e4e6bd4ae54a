"""Entry: one input of a ServerCore as JSON can say it, without tensors.

    {"stamp": 7, "kind": "push", "now": 3.2, "said": {...}, "after": [version, ticket]}

`after` is where the server stood that stamped it; whoever follows has to stand there too.
"""

from dataclasses import fields
from typing import Any

from llmtrain.sync.server.messages import (
    Bye,
    Heartbeat,
    Hello,
    Message,
    Pull,
    Push,
    Save,
    Saved,
)
from llmtrain.sync.server.tensors import Tensors

Entry = dict[str, Any]

KINDS: dict[str, type] = {
    kind.__name__.lower(): kind for kind in (Bye, Heartbeat, Hello, Pull, Push, Save, Saved)
}
PAYLOAD = "payload"


def words_of(message: Message) -> tuple[str, dict[str, Any]]:
    """Return the kind of `message` and what it says, its tensors left out."""
    said = {f.name: getattr(message, f.name) for f in fields(message) if f.name != PAYLOAD}
    return type(message).__name__.lower(), said


def message_of(entry: Entry, payload: Tensors) -> Message:
    """Return the message of an entry, with this server's part of the tensors."""
    more = {PAYLOAD: payload} if entry["kind"] == "push" else {}
    message: Message = KINDS[entry["kind"]](**entry["said"], **more)
    return message
