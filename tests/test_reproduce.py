"""`reproduce` notices that what a stage was made from has been trained anew."""

import json
import shutil

import pytest
from conftest import SMOKE

from mavlite.checkpoint import read_record
from mavlite.config import STAGE_NAMES
from mavlite.errors import MavliteError
from mavlite.reproduce import reproduce_all


@pytest.fixture
def folder(smoke_weights, tmp_path):
    """A copy of a finished `reproduce`."""
    return shutil.copytree(smoke_weights.parent, tmp_path / "all")


def reproduce(folder, *only, overrides=()):
    return reproduce_all(SMOKE, folder, only=only, overrides=overrides, device="cpu")


def refusal(folder, *only, overrides=()):
    with pytest.raises(MavliteError) as caught:
        reproduce(folder, *only, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sha(folder, stage):
    return read_record(folder / "weights" / stage, stage)["sha256"]


def test_what_is_unchanged_stands(folder, capsys):
    reproduce(folder, "clip", "sr_l", "sr_l_t", "decoder", "decoder_t", "interpolation", "judge")
    assert capsys.readouterr().out.count("done already") == 7


def test_a_stage_whose_source_was_trained_anew_is_refused_until_it_is_deleted(folder):
    reproduce(folder, "sr_l", overrides=["train.steps=5"])   # goes on by one step
    run, weights = folder / "sr_l_t", folder / "weights" / "sr_l_t"
    message = refusal(folder, "sr_l_t")
    assert message.startswith("sr_l_t (from sr_l): ") and message.endswith(f"delete {run} {weights}")
    shutil.rmtree(weights)                                   # the run that they came from is outdated, too
    assert refusal(folder, "sr_l_t").endswith(f"delete {run}")
    shutil.rmtree(run)
    reproduce(folder, "sr_l_t")
    started_from = read_record(weights, "sr_l_t")["provenance"]["started_from"]
    assert started_from == f"sr_l ({sha(folder, 'sr_l')[:12]}), inflated"


def test_all_that_c_was_used_for_is_refused_as_soon_as_c_was_trained_anew(folder):
    before = {stage: sha(folder, stage) for stage in STAGE_NAMES}
    message = refusal(folder, "clip", "judge", "prior", "decoder", "sr_l", "decoder_t",
                      overrides=["train.steps=5"])
    assert message.startswith("prior (from clip), decoder (from clip), decoder_t (from clip): ")
    assert [stage for stage in STAGE_NAMES if sha(folder, stage) != before[stage]] == ["clip"]


def test_what_was_made_from_outdated_weights_is_outdated(folder):
    path = folder / "weights" / "decoder" / "config.json"
    record = json.loads(path.read_text())
    record["provenance"]["clip"] = "another"
    del record["checksum"]
    path.write_text(json.dumps(record))
    message = refusal(folder, "decoder", "decoder_t", "interpolation")
    assert message.startswith(
        "decoder (from clip), decoder_t (from decoder), interpolation (from decoder_t): ")


def test_weights_from_before_a_section_came_into_being_are_done(folder, capsys):
    path = folder / "weights" / "prior" / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["extrapolate"], record["checksum"]
    path.write_text(json.dumps(record))
    reproduce(folder, "prior")
    assert "prior: done already" in capsys.readouterr().out


def test_weights_that_do_not_say_which_c_they_were_made_with_stand(folder, capsys):
    path = folder / "weights" / "prior" / "config.json"      # as written by earlier versions
    record = json.loads(path.read_text())
    del record["provenance"]["clip"], record["checksum"]
    path.write_text(json.dumps(record))
    reproduce(folder, "prior")
    assert "prior: done already" in capsys.readouterr().out
