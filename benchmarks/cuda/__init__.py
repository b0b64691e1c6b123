"""The benchmarks of one NVIDIA GPU: `--device cuda` of those beside this folder, and `check`: are numbers right."""
