"""Optimizers, learning-rate schedules, the exact gradient norm."""
