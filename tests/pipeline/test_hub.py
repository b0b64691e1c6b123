"""Models that a hub gives, and every way in which it does not: a small hub on this machine answers as the real one."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.hub import hub_refusals
from mixdq.pipeline.layers import weights_digest
from mixdq.testing import tiny_sdxl_pipeline

COMMIT = "a" * 40

REFUSALS = {
    # status, the header by which the hub says why, and what is said of it
    "owner/missing": (401, "RepoNotFound", "no such model on the hub (HUB), or it is private; look at the spelling"),
    "owner/gone": (404, "RepoNotFound", "no such model on the hub (HUB), or it is private; look at the spelling"),
    "owner/gated": (403, "GatedRepo", "gated; accept its terms on HUB/owner/gated, log in with `hf auth login`"),
    "owner/stranger": (401, None, "the hub refuses the access token of this machine; log in again"),
    "owner/forbidden": (403, None, "the hub forbids it to the access token of this machine"),
    "owner/hasty": (429, None, "the hub has had too many requests from here; wait a few minutes"),
    "owner/broken": (500, None, "the hub answers with status 500; run the same command again later"),
}

LISTED = {
    "owner/lora": (["lora.safetensors"], "no diffusers pipeline, for it has no model_index.json; name a pipeline"),
    "owner/pickled": (
        ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"],
        "has pickled weights",
    ),
}

OPEN = """
import json, sys
import huggingface_hub
from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.layers import weights_digest
from mixdq.pipeline.load import load_pipeline
for name in sys.argv[1:]:
    if name == "offline":
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        continue
    try:
        pipe = load_pipeline(name)
        said = [weights_digest(pipe.unet), pipe.config._name_or_path]
    except UnsupportedModelError as error:
        said = str(error)
    print(json.dumps(said), flush=True)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: what a model is made of, its files, and refusals."""

    models: Path

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/")
        name, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        if name in REFUSALS and not (name == "owner/gated" and "resolve" not in rest):
            status, code, _ = REFUSALS[name]
            headers = {} if code is None else {"X_Error_Code": code}
            return self.answer(status, X_Error_Message="in the hub's own, long words", **headers)
        folder = self.models / name
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if name in LISTED:
            files = LISTED[name][0]
        if rest[:1] == ["resolve"]:
            return self.give(folder / "/".join(rest[2:]))
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": file, "size": 1, "oid": "b" * 40} for file in files]
            return self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        listed = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")

    do_HEAD = do_GET  # noqa: N815

    def give(self, file: Path) -> None:
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, file.read_bytes(), ETag=f'"{file.parent.name}-{file.name}"', X_Repo_Commit=COMMIT)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process said of every model, online and then offline, and on its error stream."""
    models, home = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("home")
    tiny_sdxl_pipeline().save_pretrained(models / "owner" / "tiny")
    for name in LISTED:
        (models / name).mkdir()
    (models / "owner/pickled/model_index.json").write_text((models / "owner/tiny/model_index.json").read_text())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"models": models}))
    hub = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online, offline = ["owner/tiny", *REFUSALS, *LISTED], ["owner/tiny", "owner/unseen"]
    # TQDM_POSITION: show bars where there is no terminal too.
    env = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "NO_PROXY": "*", "no_proxy": "*", "TQDM_POSITION": "-1"}
    env["HF_HUB_OFFLINE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *online, "offline", *offline],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line.replace(hub, "HUB")) for line in done.stdout.splitlines()]
    names = [*online, *(f"offline {name}" for name in offline)]
    return dict(zip(names, lines, strict=True)) | {"stderr": done.stderr}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses_is_said_in_one_sentence(said, name) -> None:
    assert said[name].startswith(f"{name}: {REFUSALS[name][2]}")
    assert "\n" not in said[name]


@pytest.mark.parametrize("name", LISTED)
def test_what_is_no_pipeline_of_safetensors_is_said_in_one_sentence(said, name) -> None:
    assert LISTED[name][1] in said[name]
    assert "\n" not in said[name]


def test_model_of_the_hub_is_the_one_that_was_put_there_and_keeps_its_name(said) -> None:
    assert said["owner/tiny"] == [weights_digest(tiny_sdxl_pipeline().unet), "owner/tiny"]


def test_model_that_was_downloaded_opens_offline_and_another_does_not(said) -> None:
    assert said["offline owner/tiny"] == said["owner/tiny"]
    assert said["offline owner/unseen"].startswith(
        "owner/unseen: not whole on this machine, and HF_HUB_OFFLINE forbids to ask the hub; unset it"
    )


def test_downloads_show_their_progress_and_loading_does_not(said) -> None:
    assert "Fetching" in said["stderr"]
    assert "Loading pipeline components" not in said["stderr"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "cannot be reached; look at the network"),
        (TimeoutError("the read timed out"), "cannot be reached; look at the network"),
        (EntryNotFoundError("no such entry"), "cannot be reached; look at the network"),
        (ValueError("an own pipeline class\nand more"), "cannot be opened by diffusers: an own pipeline class"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_on_the_way_is_said_too(error, says) -> None:
    with pytest.raises(UnsupportedModelError, match=says), hub_refusals("owner/model"):
        raise error


def test_full_disk_stays_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="No space left"), hub_refusals("owner/model"):
        raise OSError(28, "No space left on device")
