"""Our training step beside a plain-PyTorch loop of the same model: `make bench`."""
