"""How replicas and the server talk: frames, sessions over gloo, and who is asked what."""
