"""How like, how good: numbers for pictures and denoiser outputs. What made them is not known here.

Pictures are [pictures, channels, height, width], floating point in 0..1. `base` holds the protocol and `METRICS`.
"""
