"""Optimizers, schedules and clipping in one process."""
