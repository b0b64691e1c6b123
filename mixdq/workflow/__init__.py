"""The steps in their order. Rooms compute, `store` keeps files; here one feeds the other.

session.py   one run: its folder, its settings, its model, and which of its files are up to date
steps.py     inspect -> calibrate -> measure -> allocate -> choose, each reading or making its file
variants.py  a plan carried out: model folder, receipt, pictures, numbers
reporting.py everything on file, gathered for the report (needs no model)
api.py       the public functions of `mixdq`

Nothing is imported here, so that what needs no model starts without torch.
"""
