"""Files that are damaged, of something else, or hostile."""

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from benchmarks.robustness.common import SMOKE, Row, refusal
from mavlite import checkpoint, inputs
from mavlite.config import load_config
from mavlite.pipeline import MakeAVideo
from mavlite.stages import load_clip, load_network
from mavlite.training import Trainer

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def damages(bench, content):
    """Content cut short, and with one bit flipped, at random offsets: (what, damaged content)."""
    for _ in range(60 if bench.long else 12):
        at = bench.random.randrange(len(content))
        yield f"cut at {at}", content[:at]
        yield f"flipped at {at}", (content[:at] + bytes([content[at] ^ (1 << bench.random.randrange(8))])
                                   + content[at + 1:])


def reseal(folder, content=None, name=checkpoint.MODEL, record=checkpoint.RECORD, **changes):
    """Put content, and changes of the record, into a folder with checksums that fit: they cannot see it."""
    sealed = json.loads((folder / record).read_text()) | changes
    del sealed["checksum"]
    if content is not None:
        (folder / name).write_bytes(content)
        sealed["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / record).write_bytes(checkpoint._sealed(sealed))


# ---------------------------------------------------------------- 4. corruption

def weights(bench):
    """Weights are loaded as they were saved, or refused by name."""
    folder = shutil.copytree(bench.weights / "sr_l", bench.folder / "damaged" / "sr_l")
    refused, same, wrong = 0, 0, []
    expected = checkpoint.read_weights(folder)
    for name in (checkpoint.MODEL, checkpoint.RECORD):
        content = (folder / name).read_bytes()
        cases = [*damages(bench, content), ("a web page", PAGE), ("empty", b""), ("{}", b"{}"),
                 ("deep", b"[" * 100_000), ("null bytes", bytes(len(content)))]
        for what, damaged in cases:
            (folder / name).write_bytes(damaged)
            message = refusal(load_network, folder.parent, "sr_l")
            if str(folder) in message:
                refused += 1
            elif not message and checkpoint.read_weights(folder)[1] == expected[1]:
                same += 1                                    # such as a space that became a tab
            else:
                wrong.append(f"{name} {what}")
        (folder / name).write_bytes(content)
    yield Row("corruption", "weights and their config.json cut, flipped, replaced", f"{refused} refused by "
              f"name, {same} unharmed, {len(wrong)} loaded silently or refused without a name",
              not wrong and refused > same)


def impostors(bench):
    """Well-made files that are not what is wanted."""
    folder = bench.folder / "impostors"
    tensors = load((bench.weights / "sr_l" / checkpoint.MODEL).read_bytes())
    name, first = next((name, t) for name, t in tensors.items() if t.ndim == 4)
    wide = load_config(SMOKE, "sr_l", ["model.channels=[8, 24]"]).to_dict()

    def case(**options):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bench.weights, folder)
        if options:
            reseal(folder / "sr_l", **options)
        return refusal(load_network, folder, "sr_l")
    assert case() == ""
    said = {
        "NaN weights": case(content=save(tensors | {name: torch.full_like(first, float("nan"))})),
        "infinite weights": case(content=save(tensors | {name: torch.full_like(first, float("inf"))})),
        "another stage's weights": case(
            content=(bench.weights / "decoder" / checkpoint.MODEL).read_bytes()),
        "a record of another stage": case(stage="sr_h"),
        "another configuration": case(config=wide),
        "a tensor too few": case(content=save({k: t for k, t in tensors.items() if k != name})),
        "a tensor too many": case(content=save(tensors | {"more": first.clone()})),
        "whole numbers": case(content=save(tensors | {name: first.long()})),
        "floats of 8 bits": case(content=save(tensors | {name: first.to(torch.float8_e4m3fn)})),
        "no tensors": case(content=save({})),
    }
    case()
    shutil.rmtree(folder / "sr_l")
    shutil.copytree(bench.weights / "sr_h", folder / "sr_l")
    said["another stage's folder"] = refusal(MakeAVideo.from_pretrained, folder, device="cpu")
    missed = [what for what, message in said.items() if str(folder / "sr_l") not in message]
    yield Row("corruption", ", ".join(said), f"{len(said) - len(missed)} of {len(said)} refused by name"
              + f" (not: {missed})" * bool(missed), not missed)


def checkpoints(bench):
    """--resume takes the newest good checkpoint, and says which it passed over."""
    source = bench.folder / "straight" / "sr_l"
    run = shutil.copytree(source, bench.folder / "damaged-run")
    newest, older = run / "step-00000004", run / "step-00000002"
    fell_back, same, wrong = 0, 0, []

    def resumed():
        with contextlib.redirect_stdout(io.StringIO()) as said:
            trainer = Trainer(bench.config("sr_l"), run, resume=True, device="cpu")
        return trainer.step, "passing over" in said.getvalue() and str(newest) in said.getvalue()

    for name in ("state.safetensors", "state.json"):
        content = (newest / name).read_bytes()
        for what, damaged in [*damages(bench, content), ("a web page", PAGE), ("empty", b""), ("{}", b"{}")]:
            (newest / name).write_bytes(damaged)
            outcome = resumed()
            fell_back += outcome == (2, True)
            same += outcome == (4, False)
            if outcome not in ((2, True), (4, False)):
                wrong.append(f"{name} {what}")
        (newest / name).write_bytes(content)
    tensors = load((newest / "state.safetensors").read_bytes())
    bare = save({name: t for name, t in tensors.items() if not name.startswith("optimizer.")})
    reseal(newest, bare, "state.safetensors", "state.json")
    fell_back += resumed() == (2, True)
    yield Row("corruption", "a run's newest checkpoint cut, flipped, replaced, without its optimizer",
              f"{fell_back} resumed from the one before and said so, {same} unharmed, {len(wrong)} wrong",
              not wrong and fell_back > same)
    (older / "state.json").write_bytes(PAGE)
    message = refusal(resumed)
    yield Row("corruption", "no good checkpoint left", message.replace(str(run), "RUN") or "started silently",
              str(run) in message)


# ---------------------------------------------------------------- 6. hostile files

class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def pickles(bench):
    """A pickle under any name that is read."""
    folder, sprung = bench.folder / "hostile", bench.folder / "sprung"
    weights = shutil.copytree(bench.weights, folder / "weights")
    run = shutil.copytree(bench.folder / "straight" / "sr_l", folder / "run")
    plain, zipped = pickle.dumps(Trap(sprung)), io.BytesIO()
    torch.save(Trap(sprung), zipped)
    objects = io.BytesIO()
    np.save(objects, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    refused, count = 0, 0

    def expect(*messages):
        nonlocal refused, count
        refused, count = refused + sum(bool(message) for message in messages), count + len(messages)

    for content in (plain, zipped.getvalue(), objects.getvalue()):
        reseal(weights / "sr_l", content)
        expect(refusal(load_network, weights, "sr_l"))
        record = (weights / "sr_l" / checkpoint.RECORD).read_bytes()
        (weights / "sr_l" / checkpoint.RECORD).write_bytes(content)
        expect(refusal(load_network, weights, "sr_l"))
        (weights / "sr_l" / checkpoint.RECORD).write_bytes(record)
        for step in run.glob("step-*"):
            (step / "state.safetensors").write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()):
            expect(refusal(Trainer, bench.config("sr_l"), run, resume=True, device="cpu"))
        for suffix in ("npy", "npz", "png", "gif", "mp4", "pkl"):
            path = folder / f"clip.{suffix}"
            path.write_bytes(content)
            expect(refusal(inputs.read_image, path, 32), refusal(inputs.read_video, path, 32))
        for suffix in ("pt", "pth", "bin", "pkl", "safetensors", "npz"):
            path = folder / f"vit.{suffix}"
            path.write_bytes(content)
            config = bench.config("prior", "clip.model=ViT-B-32", f"clip.pretrained={path}")
            expect(refusal(load_clip, bench.weights, config))
        path = folder / "config.yaml"
        path.write_bytes(content)
        expect(refusal(load_config, path, "decoder"))
    for tag in ("!!python/object/apply:os.system ['touch {0}']", "!!python/name:os.system",
                "!!python/object/new:os.system ['touch {0}']", "!!python/module:os"):
        path.write_text("train: {steps: " + tag.format(sprung) + "}")
        expect(refusal(load_config, path, "decoder"))
    yield Row("hostile files", "pickles as weights, records, checkpoints, pictures, videos, arrays, public "
              "weights and configurations; YAML with Python tags", f"{refused} of {count} refused, "
              f"{'one' if sprung.exists() else 'none'} executed", refused == count and not sprung.exists())


def folders(bench):
    """Code beside weights, and paths that climb out."""
    folder, said = shutil.copytree(bench.weights, bench.folder / "hub"), []
    for name in ("modeling.py", "pytorch_model.bin", "model.PKL", "run.sh"):
        (folder / "decoder_t" / name).write_text("raise SystemExit")
        message = refusal(MakeAVideo.from_pretrained, folder, device="cpu")
        said.append(name in message)
        (folder / "decoder_t" / name).unlink()
    for override in ("distill.teacher=../../elsewhere", "clip.pretrained=a/../../b.safetensors"):
        said.append("climbs" in refusal(bench.config, "decoder", override))
    record = json.loads((folder / "decoder_t" / checkpoint.RECORD).read_text())
    record["config"]["distill"]["teacher"] = "../../../etc"
    reseal(folder / "decoder_t", config=record["config"])
    said.append("climbs" in refusal(MakeAVideo.from_pretrained, folder, device="cpu"))
    yield Row("hostile files", "a weights folder with code in it; configurations, a stranger's too, with a "
              "path that climbs out", f"{sum(said)} of {len(said)} refused", all(said))


def pictures(bench):
    """Pictures and videos that are small files and large in memory: refused from what their headers say."""
    folder = bench.folder / "bombs"
    folder.mkdir()
    decoded, said = [], []
    original = inputs._planes

    def watched(*args):
        decoded.append(args)
        return original(*args)
    Image.new("L", (20_000, 8_000)).save(folder / "wide.png")
    one = io.BytesIO()
    Image.new("L", (4_000, 4_000)).save(one, "GIF")          # its one frame, 140 times
    head, comma, frame = one.getvalue()[:-1].rpartition(b",\0\0\0\0\xa0\x0f\xa0\x0f")
    (folder / "many.gif").write_bytes(head + 140 * (b"!\xf9\4\0\4\0\0\0" + comma + frame) + b";")
    frames = [Image.new("L", (16, 16), i % 256) for i in range(4_200)]
    frames[0].save(folder / "long.gif", save_all=True, append_images=frames[1:])
    np.lib.format.open_memmap(folder / "long.npy", "w+", np.uint8, (5_000, 16, 16)).flush()
    with open(folder / "large.npy", "wb") as file:           # sparse: 48 GB that take up no room
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (3000, 4000, 4000)})
        file.truncate(file.tell() + 3000 * 4000 * 4000)
    with zipfile.ZipFile(folder / "zip.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(10**7))
    video = imageio_ffmpeg.write_frames(str(folder / "large.mp4"), (8000, 4080), codec="mpeg4")
    video.send(None), video.send(bytes(3 * 8000 * 4080)), video.close()
    inputs._planes = watched
    try:
        for path in sorted(Path(folder).iterdir()):
            said.append((path.name, str(path) in refusal(inputs.read_video, path, 32)))
    finally:
        inputs._planes = original
    missed = [name for name, refused in said if not refused]
    yield Row("hostile files", "pictures and videos that would be large in memory or long",
              f"{len(said) - len(missed)} of {len(said)} refused, {len(decoded)} frames decoded",
              not missed and not decoded)
