"""What a variant costs and how good its pictures are. How they were made is not known here.

`compare` scores pictures, `timing` and `memory` measure whatever function they are given.
"""
