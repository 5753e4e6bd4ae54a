"""Layout-independent checkpoints: saved whole or not at all."""
