"""How much picture each layer costs when it alone is quantized (arXiv 2405.17873, metric decoupling).

The model is only borrowed. Nothing is imported; say `from mixdq.sensitivity.measure import measure`.
"""
