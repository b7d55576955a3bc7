"""The whole cascade with smoke weights: 8 key frames of 16 px, skip 3, so 22 frames; then 24 and 32 px."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from mavlite import MakeAVideo, MavliteError, cascade
from mavlite.candidates import half_way
from mavlite.options import CANDIDATES, FRAME_CANDIDATES
from mavlite.sampling import time_steps

PROMPTS = ["two and 4", "7 and seven"]


@pytest.fixture(scope="module")
def pipe(smoke_weights):
    return MakeAVideo.from_pretrained(smoke_weights, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def video(pipe):
    return pipe(PROMPTS, seed=0)


@pytest.fixture
def weights(smoke_weights, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(smoke_weights, tmp_path / "weights")


def refusal(function, *args, **options):
    with pytest.raises(MavliteError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def close(a, b):
    """Equal up to rounding, which one step of a cascade may pass on to the next."""
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def differ(a, b):
    return (a.frames - b.frames).abs().max() > 1e-2


def test_another_batch_size_gives_the_same_video_in_bf16(smoke_weights):
    pipe = MakeAVideo.from_pretrained(smoke_weights, device="cpu", precision="bf16")
    together = pipe(PROMPTS, seed=3)
    alone = pipe(PROMPTS[0], seed=3)
    # In 16 bits, embeddings would differ in the third decimal.
    embeds = together.stages["image_embeds"][:1]
    torch.testing.assert_close(embeds, alone.stages["image_embeds"], atol=1e-5, rtol=0)
    near = (together.frames[:1] - alone.frames).abs() <= 2 / 255
    assert near.float().mean() >= 0.99


@pytest.fixture
def batches(pipe):
    """stage -> the batch size of each of its network's evaluations."""
    seen = {stage: [] for stage in pipe.configs}
    hooks = []
    for stage, sizes in seen.items():
        def note(network, args, sizes=sizes):
            sizes.append(len(args[0]))
        hooks.append(pipe.networks[stage].register_forward_pre_hook(note))
    yield seen
    for hook in hooks:
        hook.remove()


# --- what comes out ----------------------------------------------------------------------------------------

def test_videos_have_the_promised_shape_range_and_rate(video):
    assert video.frames.shape == (2, 1, 22, 32, 32) and video.frames.dtype == torch.float32
    assert video.frames.min() >= 0 and video.frames.max() <= 1 and video.frames.std() > 0.01
    assert video.fps == 6 * 3 and video.prompts == PROMPTS


def test_every_intermediate_is_there(video):
    assert {name: tuple(x.shape) for name, x in video.stages.items()} == {
        "text_embeds": (2, 16), "image_embeds": (2, 16), "decoder_t": (2, 1, 8, 16, 16),
        "interpolation": (2, 1, 22, 16, 16), "sr_l_t": (2, 1, 22, 24, 24), "sr_h": (2, 1, 22, 32, 32)}
    assert torch.equal(video.stages["sr_h"], video.frames)
    assert list(video.seconds) == ["clip", "prior", "decoder_t", "interpolation", "sr_l_t", "sr_h"]


def test_embeddings_have_a_real_ones_length(video):
    for name in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(video.stages[name].norm(dim=1), torch.full((2,), 4.0))


def test_key_frames_are_in_the_video(video):
    assert torch.equal(video.stages["interpolation"][:, :, ::3], video.stages["decoder_t"])


def test_one_frame_is_the_image_cascade(pipe):
    image = pipe(PROMPTS, num_frames=1)
    assert image.frames.shape == (2, 1, 1, 32, 32)
    assert {name: tuple(x.shape[1:]) for name, x in image.stages.items()} == {
        "text_embeds": (16,), "image_embeds": (16,),
        "decoder": (1, 16, 16), "sr_l": (1, 24, 24), "sr_h": (1, 32, 32)}


@pytest.mark.parametrize("num_frames", [2, 8, 19, 22])
def test_a_shorter_video_is_the_beginning(pipe, video, num_frames):
    short = pipe(PROMPTS, seed=0, num_frames=num_frames)
    assert short.frames.shape[2] == num_frames
    for stage in ("interpolation", "sr_l_t", "sr_h"):
        close(short.stages[stage], video.stages[stage][:, :, :num_frames])


def test_a_longer_video_goes_on_from_the_same_key_frames(pipe, video):
    longer = pipe(PROMPTS, seed=0, num_frames=50)
    assert longer.frames.shape == (2, 1, 50, 32, 32) and longer.stages["decoder_t"].shape[2] == 18
    close(longer.stages["decoder_t"][:, :, :8], video.stages["decoder_t"])
    assert longer.stages["decoder_t"][:, :, 8:].std() > 0.01


def test_the_same_key_frames_at_another_rate(pipe, video):
    slow = pipe(PROMPTS, seed=0, frame_skip=2)
    assert slow.frames.shape[2] == 15 and slow.fps == 12
    close(slow.stages["decoder_t"], video.stages["decoder_t"])
    assert torch.equal(slow.stages["interpolation"][:, :, ::2], slow.stages["decoder_t"])


def test_the_rate_follows_fps(pipe):
    assert pipe(PROMPTS[0], fps=10, num_frames=2).fps == 30


# --- randomness --------------------------------------------------------------------------------------------

def test_the_same_call_gives_the_same_bytes(pipe, video):
    assert torch.equal(pipe(PROMPTS, seed=0).frames, video.frames)


def test_global_random_state_is_neither_read_nor_written(pipe):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    a, b = (pipe(PROMPTS, seed=0, sampler="ddpm", num_frames=2) for _ in range(2))
    assert torch.equal(a.frames, b.frames)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_video_does_not_depend_on_its_batch(pipe, video):
    for i, prompt in enumerate(PROMPTS):
        alone = pipe([prompt], seed=0, index=i)              # video i draws from (seed, index + i)
        for stage, x in alone.stages.items():
            close(x, video.stages[stage][i:i + 1])


def test_seed_and_index_make_another_video(pipe, video):
    assert differ(pipe(PROMPTS, seed=1), video)
    assert differ(pipe(PROMPTS, seed=0, index=2), video)
    same = pipe([PROMPTS[0]] * 2)
    assert differ(same[0], same[1])


def test_independent_noise_changes_the_last_stage_only(pipe, video):
    other = pipe(PROMPTS, seed=0, shared_noise=False)
    assert torch.equal(other.stages["sr_l_t"], video.stages["sr_l_t"]) and differ(other, video)


# --- settings ----------------------------------------------------------------------------------------------

def test_steps_for_all_stages(pipe, batches):
    pipe(PROMPTS[0], steps=3)
    assert {stage: len(sizes) for stage, sizes in batches.items()} == {              # D guides D^t
        "prior": 3, "decoder": 3, "decoder_t": 3, "interpolation": 3, "sr_l": 0, "sr_l_t": 3, "sr_h": 3}


def test_steps_for_one_stage(pipe, batches):
    pipe(PROMPTS[0], steps={"decoder_t": 5})
    assert len(batches["decoder_t"]) == 5 and len(batches["sr_h"]) == len(batches["prior"]) == 2


def test_guidance_doubles_the_batch_of_conditional_stages_only(pipe, batches):
    pipe(PROMPTS[0], guidance_scale=1)
    plain = {stage: sizes[:] for stage, sizes in batches.items()}
    pipe(PROMPTS[0], guidance_scale={"interpolation": 3})
    assert batches["interpolation"][2:] == [2 * n for n in plain["interpolation"]]
    for stage in ("decoder_t", "sr_l_t", "sr_h"):
        assert batches[stage][2:] == plain[stage]


def test_key_frames_are_guided_away_from_single_frames_of_d(pipe, batches):
    n = CANDIDATES
    pipe(PROMPTS[0], guidance_scale=1, steps=4)
    assert batches["decoder"] == [] and batches["decoder_t"] == [n, n, n, n]
    pipe(PROMPTS[0], guidance_scale={"decoder_t": 3}, steps=4)
    assert batches["decoder"] == [n * 8] * 4 and batches["decoder_t"][4:] == [n] * 4
    batches["decoder_t"].clear()
    pipe(PROMPTS[0], guidance_scale=1, steps=5)
    assert batches["decoder_t"] == [n, n, n, 1, 1]             # half way one


@pytest.mark.parametrize("steps, after", [(5, 3), (8, 5), (12, 6), (16, 8)])
def test_the_choice_is_made_with_the_first_x_0_at_a_time_of_0_6_or_less(steps, after):
    assert half_way(time_steps(steps)[:-1]) == after
    assert 1 - (after - 1) / steps <= 0.6 + 1e-9 and 1 - (after - 2) / steps > 0.6


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_of_few_steps_all_are_made_before_the_choice(steps):
    assert half_way(time_steps(steps)[:-1]) == steps


@pytest.mark.parametrize("stage, output", [("prior", "image_embeds"), ("decoder_t", "decoder_t")])
def test_guidance_matters(pipe, stage, output):
    a, b = (pipe(PROMPTS, guidance_scale={stage: scale}, num_frames=2).stages[output] for scale in (1.0, 3.0))
    assert (a - b).abs().max() > 1e-4                        # little: the weights have seen four steps


@pytest.mark.parametrize("stage, num_frames, n", [("decoder", 1, FRAME_CANDIDATES),
                                                  ("decoder_t", 16, CANDIDATES)])
def test_what_is_chosen_is_one_of_the_candidates(pipe, stage, num_frames, n):
    """Whole walks of all candidates, by hand: the chosen one is among them, as if it had walked alone."""
    made = pipe(PROMPTS, seed=0, num_frames=num_frames).stages
    y_e = made["image_embeds"]
    several, noise = y_e.repeat_interleave(n, dim=0), cascade.Noise(0, range(2), stage, pipe.device, n)
    network = pipe.networks[stage], pipe.configs[stage]
    drawn = (cascade.run_decoder(*network, noise, several) if num_frames == 1
             else cascade.run_decoder_t(*network, noise, several, pipe.data.fps,
                                        away_from=pipe.single_frames))
    drawn = (drawn / 2 + 0.5).clamp(0, 1).unflatten(0, (2, n))
    distance = (drawn - made[stage][:, None]).abs().flatten(2).amax(dim=2)           # 2 n
    assert (distance.amin(dim=1) < 1e-4).all() and (distance.sort(dim=1).values[:, 1] > 1e-2).all()
    once = pipe(PROMPTS, seed=0, num_frames=num_frames, candidates=1)
    close(once.stages[stage], drawn[:, 0])


def test_of_finished_clips_the_critic_has_a_say(pipe, monkeypatch):
    asked = []

    def against_all_but_the_fifth(clips, log_fps):
        asked.append((clips.shape, log_fps.exp()))
        faults = torch.full((len(clips), clips.shape[2]), 1000.0)
        faults[4::CANDIDATES] = -1000.0
        return faults, None
    noise = cascade.Noise(0, [0], "decoder_t", pipe.device, CANDIDATES)
    y_e = pipe(PROMPTS[0], seed=0).stages["image_embeds"].expand(CANDIDATES, -1)
    drawn = cascade.run_decoder_t(pipe.networks["decoder_t"], pipe.configs["decoder_t"], noise, y_e,
                                  pipe.data.fps, away_from=pipe.single_frames)
    monkeypatch.setattr(pipe, "critic", against_all_but_the_fifth)
    chosen = pipe(PROMPTS[0], seed=0).stages["decoder_t"]
    (shape, fps), = asked
    assert shape[0] == CANDIDATES and torch.allclose(fps, torch.tensor(float(pipe.data.fps)))
    close(chosen[0], (drawn[4] / 2 + 0.5).clamp(0, 1))
    pipe(PROMPTS[0], num_frames=1)                           # single frames, and x_0 half way: C alone
    pipe(PROMPTS[0], steps=5)
    assert len(asked) == 1


def test_samplers_matter(pipe):
    assert differ(*(pipe(PROMPTS, sampler=sampler, num_frames=2) for sampler in ("ddpm", "ddim")))


def test_text_is_read_once(pipe, monkeypatch):
    clip, calls = pipe.networks["clip"], []
    real = clip.text
    monkeypatch.setattr(clip, "text", lambda prompts: calls.append(prompts) or real(prompts), raising=False)
    pipe(PROMPTS)
    assert calls == [PROMPTS]


def test_networks_are_frozen_in_eval_mode(pipe):
    for network in pipe.networks.values():
        assert not network.training and not any(p.requires_grad for p in network.parameters())


# --- refusals ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, word", [
    ({"fps": 0}, "fps"), ({"fps": -1}, "fps"), ({"fps": 31}, "fps"), ({"fps": float("nan")}, "fps"),
    ({"num_frames": 0}, "num_frames"), ({"num_frames": -3}, "num_frames"),
    ({"num_frames": 10_001}, "num_frames"), ({"candidates": 0}, "candidates"),
    ({"candidates": 65}, "candidates"),
    ({"frame_skip": 0}, "frame_skip"), ({"frame_skip": 5}, "frame_skip"),
    ({"steps": 0}, "steps"), ({"sampler": "euler"}, "sampler"), ({"guidance_scale": -1}, "guidance")])
def test_what_was_not_trained_is_refused(pipe, options, word):
    assert word in refusal(pipe, PROMPTS[0], **options)


ALL = "prior, decoder, decoder_t, interpolation, sr_l, sr_l_t, sr_h, extrapolate"


@pytest.mark.parametrize("options, stages", [
    ({"steps": {"decoder_t": 3, "sr_x": 3}}, ALL), ({"sampler": {"clip": "ddim"}}, ALL),
    ({"guidance_scale": {"sr_h": 3.0}}, "prior, decoder, decoder_t, interpolation, extrapolate")])
def test_a_setting_for_a_stage_that_does_not_take_it_is_refused(pipe, batches, options, stages):
    (key, value), = options.items()
    message = refusal(pipe, PROMPTS[0], **options)
    assert message.startswith(f"{key}: ") and repr([*value][-1]) in message and message.endswith(f" {stages}")
    assert not any(batches.values())


@pytest.mark.parametrize("prompt", [
    "two and cat", "two", "", "2 and 4 and 5 and 6 and 7", ["2 and 4", "2 or 4"], []])
def test_what_is_no_prompt_is_refused(pipe, prompt):
    assert "prompt" in refusal(pipe, prompt)


def test_refused_prompts_start_no_work(pipe, batches):
    refusal(pipe, "two and cat")
    assert not any(batches.values())


@pytest.mark.parametrize("stage", ["clip", "decoder_t", "sr_h"])
def test_a_missing_stage_is_named(weights, stage):
    shutil.rmtree(weights / stage)
    assert str(weights / stage) in refusal(MakeAVideo.from_pretrained, weights)


@pytest.mark.parametrize("stage", ["clip", "interpolation"])
def test_damaged_weights_are_named(weights, stage):
    path = weights / stage / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    assert str(path) in refusal(MakeAVideo.from_pretrained, weights)


def test_weights_of_another_stage_are_named(weights):
    shutil.rmtree(weights / "sr_l")
    shutil.copytree(weights / "sr_h", weights / "sr_l")
    assert str(weights / "sr_l") in refusal(MakeAVideo.from_pretrained, weights)


def test_weights_of_another_size_are_named(weights):
    path = weights / "sr_h" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["data"]["sizes"] = [16, 24, 40]
    path.write_text(json.dumps(record))
    assert str(weights / "sr_h") in refusal(MakeAVideo.from_pretrained, weights)


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "missing", "nobody/nothing"])
def test_missing_sources_are_named(source):                  # the last could be on the Hub, without network
    assert source in refusal(MakeAVideo.from_pretrained, source)


def test_an_empty_folder_is_named(tmp_path):
    assert str(tmp_path) in refusal(MakeAVideo.from_pretrained, tmp_path)


def test_a_folder_or_a_hub_repository_with_code_is_refused(weights, monkeypatch):
    import huggingface_hub

    def download(*args, **options):
        assert "py" not in str(options["allow_patterns"])
        return str(weights)
    def holds(*names):
        files = [SimpleNamespace(rfilename=name) for name in names]
        monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    holds("clip/config.json", "README.md")
    assert MakeAVideo.from_pretrained("someone/digits", device="cpu").networks.keys() >= {"clip", "sr_h"}
    holds("clip/config.json", "a/model.py")
    assert "model.py, which could run code" in refusal(MakeAVideo.from_pretrained, "someone/digits")
    (weights / "setup.py").write_text("")
    assert "setup.py, which could run code" in refusal(MakeAVideo.from_pretrained, weights)


@pytest.mark.parametrize("options, said", [
    ({"num_frames": 2.5}, "num_frames: must be a whole number"), ({"num_frames": "5"}, "num_frames"),
    ({"num_frames": True}, "num_frames"), ({"steps": 2.5}, "steps"), ({"steps": {"decoder_t": "3"}}, "steps"),
    ({"guidance_scale": [3]}, "guidance_scale"), ({"fps": [6]}, "fps"), ({"candidates": 2.5}, "candidates"),
    ({"frame_skip": 2.5}, "frame_skip"), ({"seed": 1.5}, "seed"), ({"seed": None}, "seed"),
    ({"index": "1"}, "index"), ({"sampler": 3}, "sampler")])
def test_options_of_another_type_are_refused_before_work(pipe, batches, options, said):
    with pytest.raises(MavliteError, match=said):
        pipe(PROMPTS[0], **options)
    assert not any(batches.values())


@pytest.mark.parametrize("prompt", [None, 5, [5], [], {"two and 4"}])
def test_a_prompt_is_text_or_a_list_of_texts(pipe, prompt):
    with pytest.raises(MavliteError, match="prompt"):
        pipe(prompt)
