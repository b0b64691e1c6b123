"""MixDQ inside other libraries: `registration` says when, `diffusers` what. Nothing is imported here."""
