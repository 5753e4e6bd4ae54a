"""Workers on a virtual clock: every mode in one process, the same numbers in every run."""
