"""All that knows diffusers' models: families, their layers, generation, recorded denoiser calls.

That quantization exists is not known here. Nothing is imported; say `from mixdq.pipeline.load import load_pipeline`.
"""
