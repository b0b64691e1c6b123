"""The verbs of `mixdq`. Each file has one function `command`, entered in `mixdq.cli.main.VERBS`.

A verb imports what it runs inside the function: `mixdq --help` and the verbs that need no model start without torch.
"""
