"""What was asked: the typed configuration and the plan derived from it. Never imports torch."""
