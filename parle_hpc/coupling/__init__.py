"""The elastic reference x: the mean of the replicas, and how it travels."""
