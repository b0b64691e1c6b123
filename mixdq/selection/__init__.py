"""Which of several plans to keep: whole plans, scored on pictures. The model is only borrowed.

Nothing is imported; say `from mixdq.selection.choose import choose`.
"""
