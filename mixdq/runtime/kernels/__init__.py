"""Compiled kernels. `c` holds the CPU's, `native` makes a library of them on the machine that runs it."""
