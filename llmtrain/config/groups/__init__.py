"""One file a configuration group: its dataclasses, a unit in every field's docstring."""
