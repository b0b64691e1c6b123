"""NVIDIA GPUs' kernels, in Triton: compiled for the card on first use, interpreted on a CPU where TRITON_INTERPRET=1.

`weights` orders the codes, `activations` and `product` are the kernels, `configurations` says in what tiles they run,
`layers` calls them. Only `available` and `weights` may be imported where there is no Triton.
"""
