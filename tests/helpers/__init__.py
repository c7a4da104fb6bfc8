"""What tests, programs of tests and benchmarks share."""
