"""Compiled kernels. `native.c` holds the CPU's, `native` makes a library of it on the machine that runs it."""
