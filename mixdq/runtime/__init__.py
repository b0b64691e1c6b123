"""Layers that run on integers, and the backends that compute them.

`kernel` says what a backend is, `select` chooses one, `linear` and `conv2d` are the layers. Nothing here knows plans,
model families or calibration, and nothing is imported here.
"""
