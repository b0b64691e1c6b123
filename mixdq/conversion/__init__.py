"""From a plan to a quantized model: `check` says everything that is wrong, then `convert` replaces layer by layer.

Bits and ranges are decided elsewhere, and saving is diffusers' matter; nothing is imported here.
"""
