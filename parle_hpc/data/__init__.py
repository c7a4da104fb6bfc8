"""Data sets: raw files to HDF5 (prepare), the reader (store), and who sees which samples (split)."""
