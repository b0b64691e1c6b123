"""The vocabulary that every room shares: frozen values, no behaviour beyond checks.

Only `tensors` needs torch, so nothing is imported here; say `from mixdq.types.plan import BitPlan`.
"""
