"""Pure maths: models know nothing of processes, they declare their plans as plain strings."""
