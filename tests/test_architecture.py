"""The shape of the package: arrows point down only, files stay small, dependencies are said once."""

import ast
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT

PACKAGE = ROOT / "mavlite"

# From top to bottom. A module imports modules of its own level or lower ones.
LEVELS = [
    {"cli", "teaching"},
    {"apply"},
    {"generate", "info", "reproduce"},
    {"previews", "evaluation"},
    {"pipeline"},
    {"session"},
    {"training"},
    {"starting"},
    {"objectives", "cascade"},
    {"adversarial"},
    {"distillation"},
    {"stages"},
    {"evaluation.tracker", "evaluation.video_features"},
    {"evaluation.judge"},
    {"prior", "unet", "clip"},
    {"guidance"},
    {"sampling", "losses", "critic", "candidates", "likeness", "flat_memory"},
    {"layers", "diffusion", "optim", "batch", "faults", "two_digits"},
    {"moving_mnist"},
    {"digits", "prompts"},
    {"training_log"},
    {"hub", "given"},
    {"checkpoint", "video", "config", "device", "curves", "finite", "inputs"},
    {"student_config", "options", "records"},
    {"plain_yaml", "checked"},
    {"errors"},
]


def modules():
    """Name within the package -> path: "unet", "evaluation.judge"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(path):
    """The package's own modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("mavlite.") for name in names if name.startswith("mavlite.")}
    return inside & MODULES.keys()


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def level(name):
    for depth, members in enumerate(LEVELS):
        if name in members:
            return depth
    return level(name.partition(".")[0]) if "." in name else None


def test_the_walk_sees_imports_of_every_kind():
    assert {"cascade", "stages"} <= GRAPH["pipeline"]        # from mavlite import x; from mavlite.x import y
    assert "generate" in GRAPH["cli"]                        # inside a function
    assert "evaluation.judge" in GRAPH["stages"]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_level_and_imports_point_down(name):
    assert level(name) is not None, f"{name} has no level: add it to LEVELS"
    assert [f"{name} -> {other}" for other in GRAPH[name] if level(other) < level(name)] == []


def test_no_imports_go_round_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in sorted(GRAPH[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in GRAPH:
        visit(name)


@pytest.mark.parametrize("name, allowed", [
    ("layers", set()),
    ("diffusion", set()),
    ("losses", {"diffusion"}),
    ("sampling", {"diffusion"}),
    ("moving_mnist", {"prompts"}),
    ("unet", {"config", "layers"}),
    ("prior", {"config", "layers"}),
    ("evaluation.judge", {"config", "layers", "prompts"}),
    ("errors", set()),
])
def test_the_parts_that_are_read_first_stand_on_their_own(name, allowed):
    assert GRAPH[name] <= allowed


def test_nothing_inside_imports_the_package_as_a_whole():
    public = {alias.asname or alias.name for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
              if isinstance(node, ast.ImportFrom) for alias in node.names}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "mavlite":
                assert not public & {alias.name for alias in node.names}, name


@pytest.mark.parametrize("name", MODULES)
def test_files_stay_small(name):
    assert len(MODULES[name].read_text().splitlines()) <= 400


def test_environment_file_and_project_ask_for_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == project["name"] == "mavlite"
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"python{project['requires-python']}" in plain and "pip" in plain
    assert sorted(pip) == sorted(project["dependencies"])


def test_what_the_package_imports_is_what_it_depends_on():
    named = {"torch", "torchvision", "einops", "open_clip", "matplotlib", "yaml", "safetensors",
             "huggingface_hub", "tqdm", "imageio", "imageio_ffmpeg", "torchmetrics"}
    come_along = {"numpy", "PIL", "IPython", "nbformat", "nbclient"}    # with torch, matplotlib and jupyter
    optional = {"tensorboard"}
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.partition(".")[0])
    assert used - sys.stdlib_module_names - {"mavlite"} <= named | come_along | optional


def test_the_readme_maps_every_module():
    rows = [row for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| `mavlite/")]
    names = " ".join(row.split("|")[1] for row in rows)
    missing = [name for name in MODULES if "." not in name and f"{name}.py`" not in names]
    assert missing == []


def test_make_asks_for_a_python_that_there_is():
    makefile = (ROOT / "Makefile").read_text()
    assert "python3.11 python3.12 python3.13 python3" in makefile
    assert ".ci/run" not in makefile and "make test" in (ROOT / ".ci" / "run").read_text()
