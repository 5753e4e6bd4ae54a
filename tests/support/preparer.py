"""Prepares data in a process that can be killed: `python -m tests.support.preparer JSON [BYTES]`.

JSON is what `llmtrain prepare` gives its worker; BYTES is the size of a part, small ones for many
units of work. Prints the folder.
"""

import json
import sys

from llmtrain.config.schema import PrepareConfig
from llmtrain.config.store import from_dict
from llmtrain.console import make_console
from llmtrain.data import part, source_jsonl
from llmtrain.tasks.assist import prepare_with_help


def main() -> None:
    """Prepare."""
    config = from_dict(PrepareConfig, json.loads(sys.argv[1]), "test")
    part.PART_BYTES = source_jsonl.PART_BYTES = int(sys.argv[2])
    print(prepare_with_help(config.data, config.tokenizer, make_console(stderr=True)))


if __name__ == "__main__":
    main()
