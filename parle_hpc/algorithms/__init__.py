"""The optimisers, one file each, on flat state (layout, flat_optimizer)."""
