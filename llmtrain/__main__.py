"""`python -m llmtrain ...` is the command `llmtrain ...`."""

import sys

from llmtrain.cli import main

sys.exit(main())
