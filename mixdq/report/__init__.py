"""What happened, for people: one self-contained HTML page and the same in Markdown. Numbers and names only, no torch.

`facts` is all that a report knows, `render` writes it. Nothing here measures or decides.
"""
