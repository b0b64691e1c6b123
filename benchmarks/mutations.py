"""Ways to spoil a saved denoiser's folder, each by chance alone: bytes of real files, and values that mean something.

A `Mutation` changes files in a folder by a random generator and says what it did; the same generator, the same damage.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[Random, Path], str]

CONFIG = "config.json"
BITS = [f"W{weight}A{activation}" for weight in (2, 3, 4, 5, 8, 16) for activation in (3, 6, 8, 16)] + ["W8A8 float"]
NUMBERS = [0, -1, 1, 2, 3, 7, 64, 2**31, 2**63, 10**30, 1e-300, 1e308, float("nan"), float("inf")]
TEXTS = [
    "",
    "a",
    "conv_in",
    "W4A8",
    "mixdq",
    "dynamic",
    "reference",
    "cpu",
    "../../etc/passwd",
    "\x00",
    "\ud800",
    "é" * 99,
]
SHARDS = ["../a.safetensors", "/etc/passwd", "a/b.safetensors", "config.json", "", ".", "nowhere.safetensors", "x.bin"]
DTYPES = ["I8", "U8", "I32", "F16", "BF16", "F32", "F64", "I64", "BOOL", "F8_E4M3", "F4", "X", ""]
_LISTS: list[Any] = [[], [8, 16], ["DownBlock2D"], {}, [[1]]]
ARCHITECTURE = [0, -1, 1, 2, 3, 8, True, None, "relu", "gelu", 0.5, 1e-3, *_LISTS]
"""Small, for diffusers builds the model before anybody can look at it."""


def damage(data: bytes, start: int, stop: int, random: Random) -> tuple[bytes, str]:
    """Return `data` with its bytes from `start` to `stop` spoilt in one of the ways of disks, networks and editors."""
    at, length = random.randrange(start, max(stop, start + 1)), random.choice((1, 2, 4, 16, 64, 512, 4096))
    end = min(at + length, stop)
    match random.randrange(8):
        case 0 | 1:
            bit = 1 << random.randrange(8)
            return data[:at] + bytes([data[at] ^ bit]) + data[
                at + 1 :
            ] if data else data, f"bit {bit} of byte {at} flipped"
        case 2:
            return data[:at] + random.randbytes(end - at) + data[end:], f"bytes {at} to {end} random"
        case 3:
            return data[:at] + random.choice((b"\0", b"\xff")) * (end - at) + data[end:], f"bytes {at} to {end} alike"
        case 4:
            return data[:at] + data[end:], f"bytes {at} to {end} gone"
        case 5:
            return data[:at] + random.randbytes(length) + data[at:], f"{length} bytes put in at {at}"
        case 6:
            return data[:at], f"cut at byte {at}"
        case _:
            other = random.randrange(start, max(stop - (end - at), start + 1))
            low, high = sorted((at, other))
            size = min(end - at, high - low, len(data) - high)
            block, second = data[low : low + size], data[high : high + size]
            return (
                data[:low] + second + data[low + size : high] + block + data[high + size :],
                f"{size} bytes at {low} and {high} exchanged",
            )


def config_bytes(random: Random, folder: Path) -> str:
    """Spoil bytes of config.json."""
    return _spoil(folder / CONFIG, random)


def index_bytes(random: Random, folder: Path) -> str:
    """Spoil bytes of the index of shards."""
    return _spoil(_index(folder), random)


def header_bytes(random: Random, folder: Path) -> str:
    """Spoil bytes of a file's header: its length and its JSON."""
    return _spoil(_file(random, folder), random, part="header")


def tensor_bytes(random: Random, folder: Path) -> str:
    """Spoil bytes of a file's tensors."""
    return _spoil(_file(random, folder), random, part="tensors")


def quantization_config(random: Random, folder: Path) -> str:
    """Change one value, however deep, of `quantization_config`."""
    return _edit(folder / CONFIG, random, ["quantization_config"], [*NUMBERS, *TEXTS, *BITS, None, True, [], {}, [[]]])


def architecture(random: Random, folder: Path) -> str:
    """Change one value of the model's architecture."""
    config = json.loads((folder / CONFIG).read_text())
    key = random.choice([key for key in sorted(config) if key[0] != "_" and key != "quantization_config"])
    config[key] = random.choice(ARCHITECTURE)
    (folder / CONFIG).write_text(json.dumps(config))
    return f"{key} = {config[key]!r}"


def extremes(random: Random, folder: Path) -> str:
    """Write a config that no editor would: nested without end, a key twice, 10^6 layers, a number of 5000 digits."""
    config = json.loads((folder / CONFIG).read_text())
    saved = config["quantization_config"]
    text, hostile, where = None, "", random.choice(["plan", "origin", "quantization_config", "top"])
    match random.randrange(4):
        case 0:
            depth = random.choice((100, 900, 3000, 10**5))
            text, hostile = f'"{"x"}": {"[" * depth}{"]" * depth}', f"{depth} lists in each other"
        case 1:
            text, hostile = '"name": "a", "name": "b"', "a key twice"
        case 2:
            saved["plan"]["layers"] |= {f"{where}.{i}": "W4A8" for i in range(random.choice((10, 10**5, 10**6)))}
            hostile = f"{len(saved['plan']['layers'])} layers"
        case _:
            text, hostile = f'"format_version": {"9" * random.choice((20, 4000, 5000))}', "an endless number"
    written = json.dumps(config)
    if text:
        place = {"top": written[:1], "origin": '"origin": {'}.get(where, f'"{where}": {{')
        written = written.replace(place, f"{place}{text}, ", 1)
    (folder / CONFIG).write_text(written)
    return f"{hostile} in {where}"


def header_values(random: Random, folder: Path) -> str:
    """Change names, dtypes, shapes or places of tensors in a file's header, which stays JSON of the right length."""
    path = _file(random, folder)
    data = path.read_bytes()
    header, body = json.loads(data[8 : _header_end(data)]), data[_header_end(data) :]
    one, other = random.sample([name for name in header if name != "__metadata__"], 2)
    said = f"{path.name}, {one}: "
    match random.randrange(6):
        case 0:
            header[one]["dtype"] = random.choice(DTYPES)
            said += f"dtype {header[one]['dtype']}"
        case 1:
            header[one], header[other] = header[other], header[one]
            said += f"exchanged with {other}"
        case 2:
            header[one]["data_offsets"], header[other]["data_offsets"] = (
                header[other]["data_offsets"],
                header[one]["data_offsets"],
            )
            said += f"its place exchanged with that of {other}"
        case 3:
            header[one]["shape"] = random.choice(
                [header[one]["shape"][::-1], [], [0], [2**40], [-1], [1, *header[one]["shape"]]]
            )
            said += f"shape {header[one]['shape']}"
        case 4:
            header[random.choice([f"{one}_scale", f"{one[:-1]}", "..", "conv_in.weight_zero_point"])] = header.pop(one)
            said += "another name"
        case _:
            header[one]["data_offsets"] = [random.choice((0, -1, 2**63, len(body), 17)) for _ in range(2)]
            said += f"at {header[one]['data_offsets']}"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return said


def index_values(random: Random, folder: Path) -> str:
    """Change the index of shards: files that are elsewhere or nowhere, tensors in the wrong one, values of no sense."""
    index = _index(folder)
    if random.random() < 0.3:
        return _edit(index, random, [], [*NUMBERS, *TEXTS, *SHARDS, None, [], {}])
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    was, now = random.choice(shards), random.choice(shards + SHARDS)
    names = [name for name, file in content["weight_map"].items() if file == was]
    for name in names if random.random() < 0.7 else names[:1]:
        content["weight_map"][name] = now
    index.write_text(json.dumps(content))
    return f"{was} is {now!r} in the index"


def strangers(random: Random, folder: Path) -> str:
    """Put a file of another saving of the same architecture in the place of the right one; it lies in `../other`."""
    other = folder.parent / "other"
    name = random.choice(sorted(path.name for path in folder.iterdir()))
    (folder / name).write_bytes((other / name).read_bytes())
    return f"{name} of another model"


def _spoil(path: Path, random: Random, part: str = "") -> str:
    data = path.read_bytes()
    middle = _header_end(data) if part else 0
    start, stop = {"header": (0, middle), "tensors": (middle, len(data))}.get(part, (0, len(data)))
    said = []
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        data, what = damage(data, min(start, len(data) - 1), min(stop, len(data)), random) if data else (data, "empty")
        said.append(what)
    path.write_bytes(data)
    return f"{path.name}: {', '.join(said)}"


def _edit(path: Path, random: Random, root: list[str], values: list[Any]) -> str:
    document = json.loads(path.read_text())
    place = document
    for step in root:
        place = place[step]
    steps, last = [], None
    while True:
        last = random.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[last], dict | list) or not place[last] or random.random() < 0.2:
            break
        steps.append(last)
        place = place[last]
    said = ".".join(map(str, [*root, *steps, last]))
    if random.random() < 0.2:
        del place[last]
        said += " gone"
    elif isinstance(place, dict) and random.random() < 0.15:
        place[random.choice(TEXTS)] = place.pop(last)
        said += " renamed"
    else:
        place[last] = random.choice(values)
        said += f" = {place[last]!r:.60}"
    path.write_text(json.dumps(document))
    return said


def _file(random: Random, folder: Path) -> Path:
    return random.choice(sorted(folder.glob("*.safetensors")))


def _index(folder: Path) -> Path:
    return next(folder.glob("*.index.json"))


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")
