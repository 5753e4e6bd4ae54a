"""Train language models over many processes from one composable command."""

__version__ = "0.1.0"
