"""The scores of the applications: real clips score as such; known seams, losses and rates are found."""

from types import SimpleNamespace

import pytest
import torch

from mavlite import cascade
from mavlite.config import DataConfig
from mavlite.evaluation import applications, fidelity
from mavlite.evaluation.applications import at_and_inside, by_second, changes, seams, shown_apart
from mavlite.moving_mnist import LabelledClips
from mavlite.prompts import PAIRS
from mavlite.video import Video

# --- which clips are given


def test_what_is_given_shows_its_digits_apart(smoke_config):
    real = shown_apart(smoke_config("decoder_t").data, 9)
    first = real.centres()[:, 0]                                                     # n 2 yx
    assert len(real.pairs) == len(first) == 9
    assert (first[:, 0] - first[:, 1]).abs().amax(dim=1).min() >= 20
    labels = real.clips.labels(real.indices).sort(dim=1).values
    assert [PAIRS[pair] for pair in real.pairs.tolist()] == [tuple(row) for row in labels.tolist()]
    assert torch.equal(real.only([4, 2]).frames(32), real.frames(32)[[4, 2]])


# --- seams

def test_a_known_seam_is_found_and_no_other():
    grey = (0.01 * torch.arange(40.0)).repeat(3, 1)          # 0.01 brighter with each frame
    grey[:, 25:] += 0.05
    clips = grey.view(3, 1, 40, 1, 1).expand(-1, -1, -1, 4, 4)
    at, inside = at_and_inside(changes(clips), [24], 10)
    assert at.tolist() == pytest.approx([0.06] * 3) and inside.tolist() == pytest.approx([0.01] * 3)
    assert fidelity.bootstrap(at, inside) == pytest.approx((6, 6), abs=1e-3)
    at, inside = at_and_inside(changes(clips), [15, 20], 10)
    assert (at / inside).tolist() == pytest.approx([1 / (1 + 5 / 27)] * 3)           # 29 - 2 steps inside
    at, inside = at_and_inside(changes(clips), [15, 20], 10, besides=[24])
    assert (at / inside).tolist() == pytest.approx([1] * 3)
    assert at_and_inside(changes(clips), [30], 25)[1].tolist() == pytest.approx([0.01] * 3)


def test_a_cut_to_another_clip_is_a_jump_at_every_step():
    clips = torch.rand(2, 1, 5, 8, 8)
    other = torch.rand(2, 1, 5, 8, 8)
    cut = changes(clips, other)
    assert cut[1, 3] == (other[1, :, 4] - clips[1, :, 3]).abs().mean()


@pytest.mark.parametrize("length, num_frames, skip", [(600, 16, 5), (101, 16, 5), (75, 8, 3), (90, 16, 6)])
def test_seams_are_where_windows_meet(length, num_frames, skip):
    """Each window fills its unknown frames with its own number: a border is where the number changes."""
    def number(network, config, noise, frames, known, *args, **options):
        filled = frames.clone()
        filled[:, :, :, ~known] = torch.arange(1.0, frames.shape[1] + 1).view(1, -1, 1, 1, 1, 1)
        return filled

    def next_number(network, config, noise, frames, known, *args, **options):
        filled = frames.clone()
        filled[:, :, :, ~known] = frames.max() + 1
        return filled

    data = DataConfig(num_frames=num_frames, frame_skip=skip)
    config, num_keys = SimpleNamespace(data=data), -(-(length - 1) // skip) + 1
    keys = torch.zeros(1, 1, num_frames, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "fill_frames", next_number)
        noise, y_e = SimpleNamespace(each=1), torch.zeros(1, 1)
        longer = cascade.extend_keys(None, config, noise, keys, num_keys, y_e, 6.0)
        patch.setattr(cascade, "fill_frames", number)
        whole = cascade.run_interpolation(None, config, None, longer * 0, None, 6.0, skip)
    at_frames, at_others, at_keys = seams(data, length)
    jumps = changes(longer[:, :, :(length - 1) // skip + 1])[0]
    assert at_keys == [step for step in jumps.nonzero()[:, 0].tolist() if step >= num_frames]
    window, given = whole[0, 0, :length, 0, 0], (num_frames - 1) * skip
    for step in range(given + 1, length - 1):
        key = step if step % skip == 0 else step + 1         # is a key next to this step, a shared one?
        shared = key % skip == 0 and key + 1 < length and window[key - 1] != window[key + 1]
        assert (step in at_frames) == bool(shared), step
        assert (step in at_others) == (key % skip == 0 and not shared), step


# --- digits second by second

def test_digits_are_looked_for_second_by_second():
    log_p = torch.full((2, 13, 55), -5.0)
    pairs = torch.tensor([3, 7])
    log_p[0, :, 3] = 0                                       # kept to the end
    log_p[1, :6, 7], log_p[1, 6:, 8] = 0, 0                  # lost after a second
    log_p[0, 2, 4] = 1                                       # one bad frame
    assert by_second(log_p, pairs, 6.0) == [1, 0.5, 0.5]


# --- whole scores, from a pipeline that can do everything, and from one that holds its first frame

class Perfect:
    """Knows the true clips by their first frames; `still` holds these instead."""

    def __init__(self, data, still=False):
        self.data, self.still = data, still
        self.real = shown_apart(data, 2)

    def _video(self, first, num_frames):
        rate = self.data.fps * self.data.frame_skip
        clips = self.real.frames(64, rate, num_frames)
        rows = (clips[None, :, :, 0] - first[:, None]).abs().sum(dim=(2, 3, 4)).argmin(dim=1)
        made = clips[rows]
        return Video(made[:, :, :1].expand_as(made) if self.still else made, rate)

    def animate(self, image, **options):
        return self._video(image, (self.data.num_frames - 1) * self.data.frame_skip + 1)

    def vary(self, video, **options):
        return self.animate(video.frames[:, :, 0])

    def extend(self, video, *, num_frames, **options):
        return self._video(video.frames[:, :, 0], num_frames)

    def interpolate(self, first, last, *, num_frames, **options):
        return Video(fidelity.linear_blend(torch.stack([first, last], dim=2), num_frames - 1), 24)


class Rows:
    """As the report's Evaluation, with a judge and a tracker that know the truth of what they are shown."""

    def __init__(self, still=False):
        self.data = DataConfig(digits="glyphs")
        self.sizes = SimpleNamespace(applied=2, extended=2, frames=4, length=140)
        self.seed, self.rows, self.pipe = 0, {}, Perfect(self.data, still)

    def add(self, section, name, value, n, **rest):
        self.rows[section, name] = {"value": value, "n": n, **rest}


@pytest.fixture
def truth(monkeypatch):
    """Judge: every frame shows the pair of its row's clip. Tracker: where digits were drawn, or still."""
    real = shown_apart(DataConfig(digits="glyphs"), 2)

    def judge_clips(judge, frames):
        log_p = torch.full((len(frames), frames.shape[2], 55), -5.0)
        log_p[torch.arange(len(frames)), :, real.pairs[:len(frames)]] = 0
        return log_p

    def judge_digits(judge, both):                           # b 1 (f 2) h w: one digit, then the other
        log_p = torch.full((len(both), both.shape[2], 55), -5.0)
        for row, pair in enumerate(real.pairs[:len(both)].tolist()):
            for k, digit in enumerate(PAIRS[pair]):
                log_p[row, k::2, PAIRS.index((digit, digit))] = 0
        return log_p

    def track(tracker, frames):
        fps = torch.full((2,), 6.0)
        centres = LabelledClips.centres(real.clips, real.indices, fps, frames.shape[2])
        moves = frames.diff(dim=2).abs().sum() > 0
        return centres if moves else centres[:, :1].expand_as(centres)
    for module in ("mavlite.evaluation.applications", "mavlite.evaluation.accuracy"):
        monkeypatch.setattr(f"{module}.judge_clips", judge_clips)
    monkeypatch.setattr("mavlite.evaluation.identity.judge_clips", judge_digits)
    monkeypatch.setattr("mavlite.evaluation.applications.track", track)
    monkeypatch.setattr(Rows, "judge", None, raising=False)
    monkeypatch.setattr(Rows, "tracker", None, raising=False)


def test_a_perfect_cascade_scores_as_real_clips_do(truth):
    e = Rows()
    applications.animation(e)
    applications.variation(e)
    seen = e.rows["animation", "changed in sight"]
    assert seen["value"] == 0 and seen["n"] == 2
    table = applications.extension(e)["extension"]
    copied = e.rows.pop(("variation", "likeness to the given clip"))     # what it is given it gives back
    assert copied["value"] == copied["floor"] == 100 and 5 < copied["ceiling"] < 20
    for (section, name), row in e.rows.items():
        if "ceiling" in row:
            assert row["value"] == pytest.approx(row["ceiling"]), (section, name)
            assert row["floor"] != pytest.approx(row["value"]), (section, name)
    assert e.rows["animation", "the given frame comes back"]["value"] == pytest.approx(100)
    assert table["extended"] == table["real"] == [1.0] * 5


def test_a_still_picture_keeps_its_digits_but_is_told(truth):
    e = Rows(still=True)
    applications.animation(e)
    assert e.rows["animation", "both digits kept"]["value"] == 1
    assert e.rows["animation", "stands still"]["value"] == 1 == e.rows["animation", "stands still"]["floor"]
    assert e.rows["animation", "stands still"]["ceiling"] == 0


def test_blending_gains_nothing_over_blending():
    e = Rows()
    applications.interpolation(e)
    gain = e.rows["interpolation", "... more than linear blend"]
    assert gain["value"] == 0 and gain["interval"] == (0, 0) and gain["n"] == 4
    row = e.rows["interpolation", "8 frames apart at 24 fps"]
    assert row["value"] == row["floor"] and 10 < row["value"] < 30


class Tagged:
    """Real clips whose every pixel says at which rate they run."""

    def __init__(self, data, count):
        self.count = count

    def conditions(self):
        return torch.zeros(self.count, 1, 1, 1)

    def frames(self, size, fps, num_frames):
        return torch.full((self.count, 1, num_frames, 1, 1), float(fps))


def test_speeds_are_those_of_the_output_rate(monkeypatch):
    """The same path through key frames and all those between: right at the right rate, else by its factor."""
    e, n = Rows(), 24
    e.sizes.applied, real = n, shown_apart(e.data, n)

    def track(tracker, frames):
        rate = frames[:, 0, 0, 0, 0]
        return LabelledClips.centres(real.clips, real.indices, rate, frames.shape[2])
    for name, fake in (
            ("RealClips", Tagged), ("track", track), ("image_embeds", lambda pipe, frames: torch.zeros(n, 4)),
            ("decode", lambda pipe, stage, embeds, fps: torch.full((n, 1, 16, 1, 1), float(fps))),
            ("between", lambda e, keys, embeds, fps, skip, index:
                torch.full((len(keys), 1, 15 * skip + 1, 1, 1), float(fps * skip)))):
        monkeypatch.setattr(f"mavlite.evaluation.applications.{name}", fake)
    monkeypatch.setattr(Rows, "tracker", None, raising=False)
    applications.frame_rate(e)
    rates = (6, 2), (6, 3), (6, 5), (3, 2), (12, 2)
    assert [name for _, name in e.rows] == [f"speed at {fps} key frames/s, skip {k}" for fps, k in rates]
    for (_, name), row in e.rows.items():
        assert row["value"] == row["ceiling"] == pytest.approx(36, rel=0.01)
        assert row["floor"] == pytest.approx(36 * int(name[-1]), rel=0.01)
