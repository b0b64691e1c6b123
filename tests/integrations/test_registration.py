import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from mixdq.integrations.registration import register_when_ready

ROOT = Path(__file__).parents[2]

SCRIPTS = {
    "mixdq first": """
        import sys
        from mixdq.integrations.registration import register_when_ready
        register_when_ready()
        register_when_ready()
        assert "torch" not in sys.modules and "diffusers" not in sys.modules
        import diffusers.quantizers.auto as auto
        assert auto.AUTO_QUANTIZER_MAPPING["mixdq"].__name__ == "MixDQQuantizer"
        assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["mixdq"].__name__ == "MixDQConfig"
        assert not any("mixdq" in type(finder).__module__ for finder in sys.meta_path)
        import inspect
        assert "DiffusersAutoQuantizer" in inspect.getsource(auto)
    """,
    "diffusers imported, its tables not yet": """
        import sys
        import diffusers
        assert "diffusers.quantizers.auto" not in sys.modules
        from mixdq.integrations.registration import register_when_ready
        register_when_ready()
        from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING
        assert "mixdq" in AUTO_QUANTIZER_MAPPING
    """,
}


def test_registered_at_once_where_the_tables_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, "mixdq", raising=False)
    register_when_ready()
    assert "mixdq" in AUTO_QUANTIZER_MAPPING


@pytest.mark.parametrize("order", SCRIPTS)
def test_registered_in_either_order_of_import(order: str) -> None:
    lines = [line.strip() for line in SCRIPTS[order].splitlines()]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=ROOT)
