"""SDNQ int8: static int8 weights, activations quantized row by row as they come, int8 products by OpenVINO's."""

import torch

from benchmarks.case import Candidate, Case, Loaded, stored_bytes
from benchmarks.peers import versions


def int8(*, convolutions: bool) -> Candidate:
    """Return the bfloat16 model quantized in memory; convolutions stay in bfloat16 by SDNQ's default."""

    def load(case: Case) -> Loaded:
        versions("sdnq", "openvino")
        from sdnq import sdnq_post_load_quant
        from sdnq.kernels.openvino_mm import get_ov_core

        core, _ = get_ov_core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
        model = sdnq_post_load_quant(
            case.unet(torch.bfloat16),
            weights_dtype="int8",
            use_quantized_matmul=True,
            quant_conv=convolutions,
            use_quantized_matmul_conv=convolutions,
        )
        arguments = case.inputs(torch.bfloat16)
        return Loaded(lambda: model(**arguments), stored_bytes(model))

    return Candidate(load=load, held=2, loading=3)
