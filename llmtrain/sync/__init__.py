"""When replicas talk, and what they say."""
