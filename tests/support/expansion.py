"""What Kubernetes makes of a container's arguments before the program sees them."""

import re
from collections.abc import Mapping

REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")


def expanded(argument: str, variables: Mapping[str, str]) -> str:
    """Return `argument` with $(NAME) replaced where NAME is known, and $$ read as $.

    https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#entrypoint
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return REFERENCE.sub(value, argument)
