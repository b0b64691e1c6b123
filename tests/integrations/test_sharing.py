"""A quantized pipeline given to a hub and taken from it: diffusers' `push_to_hub`, and the folder with its card.

The hub is a small one on this machine, which takes and gives files as the real one does; its client is the real one.
"""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixdq.integrations.diffusers import MixDQConfig
from mixdq.testing import tiny_sdxl_pipeline

COMMIT = "a" * 40
CARD, TEXT = (
    "README.md",
    "---\nlibrary_name: diffusers\ntags:\n- mixdq\n---\n\n# What the run measured\n\n![](pictures/000.png)\n",
)

SHARE = """
import sys
import torch
import mixdq
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from mixdq.pipeline.generate import GenerationSpec, generate

def picture(pipe):
    return generate(pipe, ["a red dog"], GenerationSpec())

(folder,) = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder)
wanted = picture(pipe)
pipe.push_to_hub("owner/pipeline", token="hf_test")
pipe.unet.push_to_hub("owner/unet", token="hf_test")
pipe.save_pretrained("saved", push_to_hub=True, repo_id="owner/saved", token="hf_test")
hub = HfApi(token="hf_test")
hub.create_repo("owner/run")
hub.upload_folder(repo_id="owner/run", folder_path=folder)
again = DiffusionPipeline.from_pretrained("owner/run")
again.push_to_hub("owner/run", token="hf_test")
print(torch.equal(picture(again), wanted), type(again.unet.conv_in).__name__)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Takes commits of files that are sent as they are, and gives the files."""

    repositories: Path

    def answer(self, status: int, said: Any = None, body: bytes = b"", **headers: str) -> None:
        body = body if said is None else json.dumps(said).encode()
        self.send_response(status)
        for key, value in {**headers, "Content_Length": str(len(body))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def place(self) -> tuple[Path, str, list[str]]:
        """The repository that is asked for, its name, and what is asked of it."""
        owner, name, *rest = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        return self.repositories / owner / name, f"{owner}/{name}", rest

    def do_POST(self) -> None:
        sent, here = self.rfile.read(int(self.headers["Content-Length"])), f"http://{self.headers['Host']}"
        if self.path.startswith("/api/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != "Bearer hf_test":
            return self.answer(401)
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(sent)
            (self.repositories / asked["organization"] / asked["name"]).mkdir(parents=True, exist_ok=True)
            return self.answer(200, {"url": f"{here}/{asked['organization']}/{asked['name']}"})
        folder, name, (verb, _) = self.place()
        if verb == "preupload":
            files = [each["path"] for each in json.loads(sent)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer(200, {"files": modes})
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                file = folder / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        return self.answer(200, {"commitUrl": f"{here}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        folder, name, rest = self.place()
        if rest[:1] == ["resolve"]:
            file = folder.joinpath(*rest[2:])
            if not file.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound")
            return self.answer(200, body=file.read_bytes(), ETag=f'"{rest[-2]}-{rest[-1]}"', X_Repo_Commit=COMMIT)
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        if rest[:1] == ["tree"]:
            return self.answer(200, [{"type": "file", "path": file, "size": 1, "oid": COMMIT} for file in files])
        return self.answer(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The hub's address, and the folder of what it was given."""
    place = tmp_path / "hub"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"repositories": place}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", place
    server.shutdown()
    server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_pushed_arrives_as_it_was_saved_and_opens_from_there(tmp_path: Path, hub: tuple[str, Path]) -> None:
    address, place = hub
    folder = tmp_path / "model"
    quantized(folder)
    (folder / "pictures").mkdir()
    (folder / CARD).write_text(TEXT)
    (folder / "pictures" / "000.png").write_bytes(b"a picture")
    env = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", SHARE, str(folder)],
        cwd=tmp_path,
        env=os.environ | env | {"no_proxy": "*"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "QuantizedConv2d"]
    saved = files_of(tmp_path / "saved")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert weights in saved
    unet = {name.removeprefix("unet/"): content for name, content in saved.items() if name.startswith("unet/")}
    given = {name: files_of(place / "owner" / name) for name in ("pipeline", "saved", "unet", "run")}
    # Where there is no card, diffusers writes an empty one.
    assert given["saved"] == saved
    assert {**given["pipeline"], CARD: b""} == {**saved, CARD: b""}
    assert {**given["unet"], CARD: b""} == {**unet, CARD: b""}
    # A card that lies there already stays, and so do its pictures.
    run = given["run"]
    assert run.keys() == saved.keys() | {"pictures/000.png"}
    assert run[CARD].decode().endswith(TEXT.partition("# ")[2])
    assert b"- mixdq" in run[CARD]
    assert run["pictures/000.png"] == b"a picture"
    assert run[weights] == saved[weights]


def quantized(folder: Path) -> None:
    """Save a pipeline whose UNet is quantized while it loads."""
    pipe, floating = tiny_sdxl_pipeline(), folder.parent / "float"
    pipe.unet.save_pretrained(floating)
    recipe = MixDQConfig(weight_bits=4, backend="reference")
    pipe.register_modules(unet=type(pipe.unet).from_pretrained(floating, quantization_config=recipe))
    pipe.save_pretrained(folder)
