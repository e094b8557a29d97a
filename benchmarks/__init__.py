"""One question each, measured against its peers in one run; results in benchmarks/results/<name>.json."""
