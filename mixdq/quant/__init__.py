"""The arithmetic of quantization: tensors in, codes and scales out.

Here: code grids, scales and zero points, packing, range estimators, roundings, the BOS row, and simulation on a
borrowed layer. Not here: which layers there are, how many bits they get, kernels, diffusers.
"""
