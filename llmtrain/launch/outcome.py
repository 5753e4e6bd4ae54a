"""`python -m llmtrain.launch.outcome RUN_DIR ERROR`: a run failed whose agents could not say so.

For batch scripts, which see an agent die or a bound reached. Neither torch nor Hydra.
"""

import sys
from pathlib import Path

from llmtrain.launch.failure import complete_result


def main(run_dir: str, error: str) -> None:
    """Write result.json, unless the run has completed."""
    complete_result(Path(run_dir), "failed", error, since=0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
