"""When things happen: the loop, the step, evaluation, metrics."""
