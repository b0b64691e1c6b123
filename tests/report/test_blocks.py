from mixdq.report.blocks import blocks
from mixdq.types.layers import LayerSpec, LayerTable


def table(*names: str) -> LayerTable:
    specs = [LayerSpec(name=n, op="linear", group="quality", weight_shape=(2, 2), input_numel=2, macs=4) for n in names]
    return LayerTable(model="m", family="f", digest="d", layers=tuple(specs))


def test_blocks_end_at_their_last_number_within_four_parts() -> None:
    names = ["conv_in", "time_embedding.linear_1", "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"]
    names += ["mid_block.attentions.0.proj_in", "single_blocks.3.attn.to_q", "conv_out"]
    labels = [label for label, _ in blocks(table(*names))]
    assert labels == [
        "conv_in, time_embedding",
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "single_blocks.3",
        "conv_out",
    ]


def test_every_layer_appears_once_and_in_order() -> None:
    names = [f"blocks.{i // 3}.layer_{i}" for i in range(10)]
    assert [layer.name for _, layers in blocks(table(*names)) for layer in layers] == names
