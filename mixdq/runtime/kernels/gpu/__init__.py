"""NVIDIA GPUs' kernels, in Triton: compiled for the card on first use, interpreted on a CPU where TRITON_INTERPRET=1.

`weights` orders the codes; `activations`, `product` and `bos` are the kernels; `inputs` and `layers` call them, in
tiles that `configurations` and `tuning` choose. Where there is no Triton, kernels and callers cannot be imported.
"""
