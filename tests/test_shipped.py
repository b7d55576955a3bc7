"""The weights in the package: complete, small, with provenance; the cascade that they make still works."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from einops import rearrange

from mavlite.checkpoint import SHIPPED, read_record
from mavlite.diffusion import Diffusion
from mavlite.digits import load_digits
from mavlite.evaluation.accuracy import score
from mavlite.evaluation.samples import matched_clips, pairs_in_turn
from mavlite.moving_mnist import UnlabelledClips
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import PAIRS, make_prompt
from mavlite.stages import MEASURING, STAGES, build_network, load_clip, load_network, read_config
from mavlite.unet import inflate
from mavlite.video import Video

MIB, ROOT = 2**20, Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clip():
    return load_clip(SHIPPED, read_config(SHIPPED, "decoder"))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ships_with_provenance(stage):
    record = read_record(SHIPPED / stage, stage)
    assert record["provenance"].keys() >= {
        "steps", "seconds", "hardware", "seed", "commit", "digits", "started_from"}
    assert record["provenance"]["digits"] == "mnist"


def test_weights_stay_within_their_limits():
    sizes = [path.stat().st_size for path in SHIPPED.glob("*/model.safetensors")]
    assert max(sizes) <= 16 * MIB and sum(sizes) <= 32 * MIB
    assert sum((SHIPPED / stage / "model.safetensors").stat().st_size for stage in MEASURING) <= 4 * MIB


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    """What an editable installation does not show: what is missing there is missing for everybody else."""
    pytest.importorskip("setuptools", minversion="77")       # as pyproject.toml asks; fetches nothing
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = shutil.copytree(ROOT / "mavlite", tmp_path / "mavlite",
                              ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    (tmp_path / "dist").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    wheel, = (tmp_path / "dist").glob("*.whl")
    files = {path.relative_to(tmp_path).as_posix() for path in package.rglob("*") if path.is_file()}
    assert len(files) > 80 and files <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("source, target", [
    ("decoder", "decoder_t"), ("decoder_t", "interpolation"), ("sr_l", "sr_l_t")])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.no_grad()
def test_inflation_of_the_trained_network_is_the_identity(clip, source, target, dtype, bound):
    trained, _, _ = load_network(SHIPPED, source, clip)
    config = read_config(SHIPPED, target)
    video = inflate(trained, build_network(config, clip)).to(dtype).eval()
    trained = trained.to(dtype)
    size = config.data.sizes[STAGES[source].size[0]]
    # Noised clips and their embeddings, as in training: far from those, rounding alone is amplified more.
    clips = UnlabelledClips(load_digits("test", "glyphs").images, seed=5)
    for f in (1, 8, 16, 76) if trained.conv_in.temporal is None else (1, 16):
        x_0 = clips.clips([0], torch.tensor([6.0]), f, size)[0].to(dtype) * 2 - 1
        t = torch.tensor([0.6], dtype=dtype)
        x = Diffusion().add_noise(x_0, torch.randn_like(x_0), t)
        conditions, new = {}, {}
        if trained.embed_dim:
            conditions["image_embeds"] = clip.image_embeds(clips.condition_frames([0], size)).to(dtype)
        if trained.concat_channels:
            conditions["concat"] = x_0
        elif video.concat_channels:
            new["concat"] = torch.randn(1, video.concat_channels, f, size, size, dtype=dtype)
        for name in STAGES[target].scalars:
            (conditions if name in STAGES[source].scalars else new)[name] = torch.tensor([1.5], dtype=dtype)
        out = video(x, t, **conditions, **new)
        if trained.conv_in.temporal is None:                 # the image network, frame by frame
            folded = {k: rearrange(v, "b c f h w -> (b f) c h w") if v.ndim == 5
                      else v.repeat_interleave(f, dim=0) for k, v in conditions.items()}
            expected = trained(rearrange(x, "b c f h w -> (b f) c h w"), t.repeat(f), **folded)
            expected = rearrange(expected, "(b f) c h w -> b c f h w", f=f)
        else:
            expected = trained(x, t, **conditions)
        assert (out - expected).abs().max() <= bound * expected.abs().max()


def test_a_prompt_becomes_a_video_that_moves():
    video = MakeAVideo.from_pretrained(device="cpu")("two and 4", seed=0, steps=2)
    assert video.frames.shape == (1, 1, 76, 64, 64) and video.fps == 30
    assert (video.frames[:, :, 0] - video.frames[:, :, -1]).abs().mean() > 0.01
    assert video.frames.max() > 0.8 and video.frames.mean() < 0.3


@pytest.mark.slow
def test_shipped_weights_do_what_they_are_for():
    """Bounds well below the README's scores: it finds what broke, not what became a little worse."""
    pipe, judge = MakeAVideo.from_pretrained(device="cpu"), load_network(SHIPPED, "judge")[0]
    pairs = pairs_in_turn(55)[::5]

    def share(frames, pairs):
        return score(judge, frames[:, :, ::5], pairs)["clip"]
    made = pipe([make_prompt(*PAIRS[pair], True, False) for pair in pairs.tolist()], seed=1)
    assert share(made.frames, pairs) >= 0.7
    real = matched_clips(pipe.data, pairs[:6])
    true = real.frames(64, 30.0, 76)
    for frames in (pipe.animate(true[:, :, 0]).frames, pipe.vary(Video(true, 30.0)).frames,
                   pipe.extend(Video(true, 30.0), num_frames=150).frames):
        assert share(frames, real.pairs) >= 0.3 and (frames[:, :, 10] - frames[:, :, 0]).abs().mean() > 0.01
