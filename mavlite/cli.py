"""The `mavlite` command: arguments in, one library call, one clear line for what goes wrong (exit code 2)."""

import argparse
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from mavlite.errors import MavliteError


class Parser(argparse.ArgumentParser):
    """Options by their whole names only, and one line for what is wrong."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def place(text):
    """A path that is asked for: not nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path; name a place")
    return text


def parser():
    top = Parser(prog="mavlite", description="Make-A-Video on Moving MNIST, small enough to understand.")
    commands = top.add_subparsers(dest="command", required=True)

    p = commands.add_parser("generate", help="text to video",
                            description='For example: mavlite generate "two and 4" --out clip.mp4')
    p.add_argument("prompt", nargs="?", help='such as "two and 4"')
    p.add_argument("--prompts", type=place, metavar="FILE",
                   help="a file with one prompt a line, instead of PROMPT")
    p.add_argument("--num-frames", type=int, help="frames of the video, 1 for an image (default 76)")
    p.add_argument("--frame-skip", type=int, help="frames of the video per key frame (default 5)")
    p.add_argument("--num-videos", type=int, default=1, help="videos for each prompt")
    p.add_argument("--batch-size", type=int, default=8, help="videos at a time")
    _sampling_arguments(p)
    p.set_defaults(run=generate)

    p = commands.add_parser("animate", help="set a picture in motion")
    p.add_argument("inputs", nargs=1, metavar="IMAGE", help="any picture; it comes back as one of the frames")
    p.add_argument("--position", choices=("first", "middle", "last"), default="first",
                   help="which frame it is")
    _prompt_argument(p, "the picture's")
    _application(p, "position", "prompt")

    p = commands.add_parser("interpolate", help="the frames between two pictures")
    p.add_argument("inputs", nargs=2, metavar="IMAGE", help="both come back, at the ends")
    p.add_argument("--num-frames", type=int, default=16)
    _prompt_argument(p, "the clearer picture's")
    _application(p, "num_frames", "prompt")

    p = commands.add_parser("vary", help="another video of the same digits")
    p.add_argument("inputs", nargs=1, metavar="VIDEO",
                   help="GIF, MP4 or NPY (taken for 30 fps); its first 2.5 s are looked at")
    p.add_argument("--strength", type=float, default=1.0,
                   help="1: a new video; towards 0: nearer to the given one (the share of steps, rounded)")
    _application(p, "strength")

    p = commands.add_parser("extend", help="a video that goes on")
    p.add_argument("inputs", nargs=1, metavar="VIDEO",
                   help="GIF, MP4 or NPY (taken for 30 fps); it comes back at the beginning, and goes on at "
                        "its own rate, unless --fps is given")
    p.add_argument("--num-frames", type=int, required=True,
                   help="of the longer video, the given one's among them")
    _prompt_argument(p, "the clearest frame's")
    _application(p, "num_frames", "prompt")

    p = commands.add_parser("morph", help="from one prompt to another, a video a step")
    p.add_argument("inputs", nargs=2, metavar="PROMPT", help='such as "two and 4" "seven and 9"')
    p.add_argument("--num-videos", type=int, default=5, help="steps, both ends counted")
    _application(p, "num_videos")

    example = "For example: mavlite train decoder --config configs/t4.yaml --out runs/decoder"
    p = commands.add_parser("train", help="train one stage", description=example)
    p.add_argument("stage")
    _training_arguments(p)
    p.add_argument("--out", type=place, required=True, metavar="RUN", help="run folder")
    p.add_argument("--resume", action="store_true",
                   help="go on from the run's newest checkpoint, or start it")
    p.add_argument("--init-from", type=place, metavar="WEIGHTS",
                   help="start from a weights folder of the same stage, with a fresh optimizer")
    p.add_argument("--weights", type=place,
                   help="folder with the weights of the stages this one needs "
                        "(default: those in the package)")
    p.add_argument("--reference", type=place, metavar="CSV",
                   help="a loss curve to see beside this run's in RUN/loss.png "
                        "(configs/curves/cpu/STAGE.csv)")
    p.set_defaults(run=train)

    p = commands.add_parser("reproduce", help="train all stages in order; stop it, run it again, it goes on")
    _training_arguments(p)
    p.add_argument("--out", type=place, default="runs", metavar="DIR",
                   help="folder for runs and weights (default: runs/<config's name>)")
    p.add_argument("--only", nargs="+", metavar="STAGE", help="these stages only")
    p.set_defaults(run=reproduce)

    p = commands.add_parser("evaluate", help="every score of the cascade, each beside a ceiling and a floor")
    p.add_argument("--out", type=place, required=True, metavar="REPORT",
                   help="a .json file; plots go to a folder beside it")
    p.add_argument("--weights", type=place, help="folder of weights (default: those in the package)")
    p.add_argument("--quick", action="store_true", help="very few clips: minutes on two cores, no precision")
    p.add_argument("--videos", type=int, help="how many videos to make (default 2048, with --quick 6)")
    p.add_argument("--applied", type=int,
                   help="how many real clips to animate and vary; half of them are extended (default a "
                        "quarter of the videos, at most 256, with --quick 2)")
    p.add_argument("--record", action="store_true",
                   help="write each stage's scores into its config.json, for `mavlite info`")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    p.set_defaults(run=evaluate)

    p = commands.add_parser("info", help="stages, parameters, FLOPs, checksums, how they were trained")
    p.add_argument("--weights", type=place, help="folder of weights (default: those in the package)")
    p.set_defaults(run=info)
    return top


def _sampling_arguments(p):
    p.add_argument("--out", type=place, required=True, nargs="+", metavar="PATH",
                   help=".mp4, .gif, .png (contact sheet), .npy, or, of several videos, a folder for one MP4 "
                        "each; several may be named")
    p.add_argument("--stages-out", type=place, metavar="DIR",
                   help="also write what every stage made, as pictures")
    p.add_argument("--fps", type=float,
                   help="key-frame rate (default: that of the weights, 6; of extend, near it and a share of "
                        "the video's own); the video has five times as many frames a second, but up to 16 of "
                        "interpolate are the key frames")
    p.add_argument("--steps", type=int,
                   help="denoising steps of every stage (default: each stage's own; the shipped D and D^t "
                        "are made for four)")
    p.add_argument("--guidance-scale", type=float,
                   help="how far from what is made without the embedding; D^t: from what D makes without it "
                        "(default: each stage's own; students, as the shipped D^t is one, need none)")
    p.add_argument("--sampler", choices=("ddpm", "ddim", "dpmpp_2m"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--candidates", type=int,
                   help="key frames drawn for each video, of which C keeps the best (default: 8, of one "
                        "frame 32, of morph 1)")
    p.add_argument("--independent-noise", action="store_true",
                   help="SR_h: other noise for each frame, to see the flicker")
    p.add_argument("--weights", type=place,
                   help="folder of weights, or a Hub id (default: those in the package)")
    p.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")


def _prompt_argument(p, whose):
    p.add_argument("--prompt", help=f"what to condition on instead of {whose} own embedding")


def _application(p, *own):
    """own: the arguments that only this application has."""
    p.add_argument("--invert", choices=("auto", "always", "never"), default="auto",
                   help="dark digits on light: make them light")
    _sampling_arguments(p)
    p.set_defaults(run=apply, own=own)


def _training_arguments(p):
    p.add_argument("--config", type=place, required=True, metavar="YAML")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                   help="override a value, such as train.steps=500; may be repeated")
    p.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")


def _sampling_options(args):
    return {"weights": args.weights, "device": args.device, "fps": args.fps, "steps": args.steps,
            "seed": args.seed, "guidance_scale": args.guidance_scale, "sampler": args.sampler,
            **({} if args.candidates is None else {"candidates": args.candidates}),
            "shared_noise": not args.independent_noise, "stages_out": args.stages_out}


def generate(args):
    from mavlite.generate import generate_files, read_prompts
    if (args.prompt is None) == (args.prompts is None):
        raise MavliteError('give a prompt, such as "two and 4", or a file of them with --prompts')
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    generate_files(prompts, args.out, num_videos=args.num_videos, batch_size=args.batch_size,
                   num_frames=args.num_frames, frame_skip=args.frame_skip, **_sampling_options(args))


def apply(args):
    from mavlite.apply import apply as run_application
    own = {name: getattr(args, name) for name in args.own}
    run_application(args.command, args.inputs, args.out, invert=args.invert, **own, **_sampling_options(args))


def train(args):
    from mavlite.checkpoint import SHIPPED
    from mavlite.config import load_config
    from mavlite.reproduce import train_stage
    config = load_config(args.config, args.stage, args.overrides)
    train_stage(config, args.out, weights=args.weights or SHIPPED, init_from=args.init_from,
                resume=args.resume, reference=args.reference, device=args.device)


def reproduce(args):
    from mavlite.reproduce import reproduce_all
    folder = Path(args.out) / Path(args.config).stem if args.out == "runs" else Path(args.out)
    reproduce_all(args.config, folder, overrides=args.overrides, only=args.only, device=args.device)


def evaluate(args):
    from mavlite.evaluation.report import evaluate as write_report
    write_report(args.out, weights=args.weights, quick=args.quick, videos=args.videos,
                 applied=args.applied, seed=args.seed, device=args.device, record_in_weights=args.record)


def info(args):
    from mavlite.checkpoint import SHIPPED
    from mavlite.info import print_info
    print_info(args.weights or SHIPPED)


@contextmanager
def sigterm_is_ctrl_c():
    """SIGTERM raises KeyboardInterrupt(SIGTERM): whoever stops mavlite, what was trained so far is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield                                                # only the main thread may handle signals
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv=None):
    for stream in (sys.stdout, sys.stderr):                  # a terminal need not know every letter of a path
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        with sigterm_is_ctrl_c():
            args.run(args)
    except MavliteError as error:
        print(f"mavlite: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                  # mavlite info | head: who read has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141                                           # as a shell says of SIGPIPE
    except OSError as error:                                 # a disk that is full, a folder that is read-only
        place = f"{error.filename}: " if error.filename else ""
        print(f"mavlite: error: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("mavlite: stopped", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
