"""What a run will cost on a cluster: the model, its simulator, and the files that say what a machine can do."""
