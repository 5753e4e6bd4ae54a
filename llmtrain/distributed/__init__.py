"""Who I am: ranks, the mesh, collectives. Thin over torch.distributed."""
