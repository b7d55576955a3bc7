"""What a JSON beside the weights must say before it is relied on: types that a hand, or a disk, got wrong."""

from mavlite.checked import check, require, shown

PROVENANCE = {"steps": int, "batch_size": int, "seconds": float, "hardware": str, "precision": str,
              "seed": int, "digits": str, "started_from": str, "commit": str}
STATE = {"step": int, "seconds": float, "origin": str, "config": dict, "scaler": dict}


def _check_all(path, mapping, kinds, name):
    require(isinstance(mapping, dict), f"{path}: {name} must be an object, not {shown(mapping)}")
    for key, kind in kinds.items():
        require(key in mapping, f"{path}: {name} lacks {key!r}; it is damaged, or not of mavlite")
        value = check(kind, mapping[key], f"{path}: {name}.{key}")
        require(kind not in (int, float) or value >= 0, f"{path}: {name}.{key}: {value} is negative")


def check_provenance(path, record):
    """A record's provenance, with all that `mavlite info` prints and that later trainings go on from."""
    provenance = record.get("provenance")
    _check_all(path, provenance, PROVENANCE, "provenance")
    earlier = provenance.get("earlier", [])
    require(isinstance(earlier, list), f"{path}: provenance.earlier must be a list")
    for past in earlier:
        _check_all(path, past, PROVENANCE, "provenance.earlier")
    return provenance


def check_state(run, state):
    """A checkpoint's state.json; what it says of tensors is checked where they are read."""
    _check_all(run, state, STATE, "state.json")
    require(isinstance(state.get("earlier", []), list), f"{run}: state.json.earlier must be a list")
    for past in state.get("earlier", []):
        _check_all(run, past, {"steps": int, "batch_size": int}, "state.json.earlier")
