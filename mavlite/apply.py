"""Pictures and videos in, videos out: what `mavlite animate, interpolate, vary, extend, morph` do."""

from pathlib import Path

from mavlite.generate import write_files
from mavlite.given import given_pictures, given_video
from mavlite.pipeline import MakeAVideo
from mavlite.prompts import parse_prompt
from mavlite.video import check_output_path


def apply(application, inputs, outputs, *, invert="auto", weights=None, device=None, stages_out=None,
          **options):
    """Run one application of the cascade on files, and write its video.

    application: animate (one picture), interpolate (two), vary, extend (one video), morph (two prompts).
    inputs: their paths, for morph the prompts. options: of the method of `MakeAVideo` with that name.
    Everything that can be refused is refused before the first step. Returns the Video.
    """
    outputs = [check_output_path(path, several=application == "morph") for path in outputs]
    if stages_out:
        stages_out = check_output_path(Path(stages_out) / "any.png").parent
    pipe = MakeAVideo.from_pretrained(weights, device=device)
    if pipe.networks["clip"].tiny:
        for prompt in [*(inputs if application == "morph" else ()), options.get("prompt")]:
            if prompt is not None:
                parse_prompt(prompt)
    if application in ("animate", "interpolate"):
        inputs = [given_pictures(path, path, pipe.data, invert) for path in inputs]
    elif application in ("vary", "extend"):
        inputs = [given_video(path, pipe.data, invert) for path in inputs]
    video = getattr(pipe, application)(*inputs, progress=True, **options)
    write_files(video, outputs, stages_out)
    return video
