"""What the docs tell a user to type works: every command parses, and the cheap ones are run."""

import argparse
import ast
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import LazyConfig
from helpers import MODELS, ROOT, SWEEPS, commands

from focal_retina.commands import main, make_parser
from focal_retina.engine import load_config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
RUN_PAGE = ROOT / "docs" / "train_your_data.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def commands_of(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = [command for page in PAGES for command in commands_of(page)]
COMMANDS += [" ".join(words) for path in (*MODELS, *SWEEPS) for words in commands(path)]


def parse(words: list[str], monkeypatch) -> argparse.Namespace | None:
    """What a command's own parser makes of the words behind ``./run``; None for pytest's."""
    if words[0] == "train_net.py":
        return make_parser("train").parse_intermixed_args(words[1:])
    if words[:2] == ["-m", "focal_retina"]:
        return make_parser(words[2]).parse_intermixed_args(words[3:])
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
        return None
    monkeypatch.setattr(sys, "argv", words)
    return runpy.run_path(str(ROOT / words[0]))["parse_args"]()


def check_config(args: argparse.Namespace) -> None:
    """The config of this repository that is named, if one is, has every key that is set."""
    if str(getattr(args, "config_file", None)).startswith("configs/"):
        path, opts = ROOT / args.config_file, getattr(args, "opts", [])
        if path.suffix == ".py":
            LazyConfig.apply_overrides(LazyConfig.load(str(path)), opts)
        else:
            load_config(path, opts)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse_and_name_real_files_and_keys(command, monkeypatch):
    program, *words = shlex.split(command, comments=True)
    if program == "pip":
        assert words[0] == "install"
        return
    assert program in ("./run", "python", "focal-retina"), command
    for word in words:
        if re.match(r"(configs|docs|focal_retina)/", word):
            assert (ROOT / word).exists(), word
    monkeypatch.chdir(ROOT)
    args = parse(words, monkeypatch)
    if args is not None:
        check_config(args)


SMALL = [
    *("MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.DEVICE", "cpu"),
    *("MODEL.RETINANET.NUM_CONVS", 1, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
    # Up to 64 pixels P6 is one cell, from which PyTorch's CPU convolution of stride 2 returns
    # arbitrary numbers as P7's bf16 gradient.
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96, "SOLVER.MAX_ITER", 2),
    # An untrained model says 0.01 everywhere.
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.001, "TEST.AUG.MIN_SIZES", "(64,96)"),
]


@pytest.fixture
def workplace(tiny_coco, tmp_path, monkeypatch, quiet_setup):
    """A folder with the files that RUN_PAGE speaks of, and the configs of this repository."""
    annotations, _ = tiny_coco  # its images are tmp_path / "images"
    for name in ("all.json", "train.json", "val.json"):
        shutil.copy(annotations, tmp_path / name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_on_ones_own_data_runs_from_top_to_bottom(workplace, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    for command in commands_of(RUN_PAGE):
        _, *words = shlex.split(command)
        name, *arguments = words[2:] if words[0] == "-m" else ["train", *words[1:]]
        small = [] if name == "split" else map(str, SMALL)
        assert main([name, *arguments, *small]) == 0, command
    # All that the table of step 3 promises
    output = workplace / "output" / "photos"
    names = re.findall(r"`([\w/.]+)`", RUN_PAGE.read_text().split("holds:")[1].split("##")[0])
    assert len(names) == 9
    assert not [name for name in names if not (output / name).exists()]
    assert "<html" in (workplace / "report.html").read_text()


@pytest.fixture
def birds(workplace):
    """A data set of YOLO: noise with a bright square of one of two classes."""
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (workplace / "birds" / name).mkdir(parents=True)
    for i in range(24):
        pixels = generator.integers(0, 160, (96, 96, 3), dtype=np.uint8)
        x, y = generator.integers(2, 60, 2)
        pixels[y : y + 32, x : x + 32] = 255
        cv2.imwrite(str(workplace / f"birds/images/{i}.png"), pixels)
        label = f"{i % 2} {(x + 16) / 96} {(y + 16) / 96} {32 / 96} {32 / 96}"
        (workplace / f"birds/labels/{i}.txt").write_text(label)
    (workplace / "birds/data.yaml").write_text("train: images\nnames: [robin, wren]\n")
    return workplace


def test_six_commands_of_the_readme_lead_to_a_deployed_model(birds):
    (six,) = (x for x in blocks(ROOT / "README.md", "sh") if "birds" in x)
    for command in six.replace("\\\n", " ").splitlines():
        _, *words = shlex.split(command)
        name, *arguments = words[2:] if words[0] == "-m" else ["train", *words[1:]]
        if name in ("check", "train"):
            arguments += map(str, SMALL)
        if name == "train":
            # An exported graph pads smaller images further; which of equal scores stay is open.
            arguments += ["INPUT.MIN_SIZE_TEST", "160"]
            arguments += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.05"]
        assert main([name, *arguments]) == 0, command
    assert len(json.loads((birds / "splits/test.json").read_text())["images"]) > 0
    assert (birds / "output/birds/test/inference/test/confusion_matrix.png").is_file()
    assert len(list((birds / "found").iterdir())) == 24


def test_the_figures_of_the_losses_are_drawn(tmp_path, monkeypatch):
    page = ROOT / "docs" / "redo_the_paper.md"
    (command,) = (x for x in commands_of(page) if "figure losses" in x)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[3:]) == 0
    assert {p.suffix for p in (tmp_path / "output" / "losses").iterdir()} == {".png", ".json"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, fragment = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if fragment:
            headings = "\n".join(re.findall(r"^#+ (.+)$", linked.read_text().lower(), flags=re.M))
            anchors = re.sub(r"[^\w\- \n]", "", headings).replace(" ", "-")  # as GitHub makes them
            assert fragment in anchors.splitlines(), target
    for name in re.findall(r"`((?:(?:focal_retina|docs|configs)/[\w./-]+)|tools/\w+\.py)`", text):
        assert (ROOT / name).exists(), name


SNIPPETS = blocks(ROOT / "docs" / "plugin.md", "python")
WHOLE = [snippet for snippet in SNIPPETS if "LazyConfig.load(" in snippet]


@pytest.mark.parametrize("snippet", [x for x in SNIPPETS if x not in WHOLE])
def test_python_in_plugin_md_is_that_of_the_examples(snippet):
    assert any(snippet in path.read_text() for path in EXAMPLES)


@pytest.mark.parametrize("snippet", [*WHOLE, *blocks(ROOT / "README.md", "python")])
def test_whole_programs_run(snippet):
    scope = {}
    exec(snippet, scope)
    assert scope["model"].num_classes in (20, 80)


def message_templates() -> str:
    """Every string of the sources, … for what is formatted into it, one a line."""
    strings = []
    for path in [*(ROOT / "focal_retina").rglob("*.py"), ROOT / "train_net.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (x.value if isinstance(x, ast.Constant) else "…" for x in node.values)
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(re.sub(r"%[gdsr]", "…", node.value))
    return "\n".join(strings)


def test_headings_of_troubleshoot_are_messages_of_the_program():
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshoot.md").read_text(), re.M)
    assert len(headings) > 30
    templates = message_templates()
    # A … at the end stands for the rest of the message
    unknown = [h for h in headings if h.strip("`").removesuffix("…") not in templates]
    assert not unknown
