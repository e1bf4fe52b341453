"""What things cost, beside plain forms and peers: `python -m benchmarks.bench_NAME`, or the Makefile's `bench-NAME`."""
