"""The recipe of the embedded model: raw picture packages in, a diffusers folder out."""
