"""Benchmarks: one command each, a table on the screen and JSON with the machine's facts. See README.md."""
