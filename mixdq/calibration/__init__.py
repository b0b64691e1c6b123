"""What is learned from running a model in floating point on prompts: activation ranges, and the BOS rows.

Bits are not known here. Nothing is imported; say `from mixdq.calibration.collect import calibrate`.
"""
