"""The command flair-jax: help, misspelt names, examples, exit statuses."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import flair_jax
from flair_jax.cli.commands import COMMANDS, main, overview
from flair_jax.cli.parser import WIDTH, Parser
from flair_jax.data.nomenclature import NOMENCLATURES
from flair_jax.inference.options import BLENDS, Options

ROOT = Path(__file__).parents[2]
HEAVY = {
    "PIL", "array_record", "etils", "flax", "grain", "jax", "jaxlib", "jinja2", "matplotlib",
    "ml_collections", "numpy", "optax", "orbax", "rasterio", "tensorboardX", "tensorflow",
    "tensorflow_datasets",
}  # fmt: skip


def parser_of(name):
    module = importlib.import_module(f"flair_jax.cli.{name.replace('-', '_')}")
    parser = Parser(f"flair-jax {name}", COMMANDS[name], module.EXAMPLES)
    module.add_flags(parser)
    return parser, module


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_quick_and_imports_nothing_heavy(name):
    command = [sys.executable, "-X", "importtime", "-m", "flair_jax", *filter(None, [name])]
    done = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: flair-jax {name or 'COMMAND'}")
    imported = dict(re.findall(r"^import time:.*\| +(\d+) \| +(\S+)", done.stderr, re.MULTILINE))
    imported = {module.split(".")[0] for module in imported.values()}
    assert "flair_jax" in imported  # it is the list of what was imported
    assert not imported & HEAVY


def test_help_takes_less_than_a_fifth_of_a_second():
    seconds = []
    for _ in range(5):  # of processor time, the least of some: other processes are running
        before = os.times()
        command = [sys.executable, "-m", "flair_jax", "train", "--help"]
        subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
        after = os.times()
        used = after.children_user + after.children_system
        seconds.append(used - before.children_user - before.children_system)
    assert min(seconds) < 0.2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_sentence_and_two_examples_within_80_columns(name):
    parser, module = parser_of(name)
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= WIDTH
    assert f"\n{COMMANDS[name]}\n" in text
    assert len(module.EXAMPLES) == 2
    assert text.count(f"\n  flair-jax {name}") == 2
    for action in parser._actions:
        assert action.help, action.dest


def test_the_overview_names_every_command_within_80_columns():
    assert max(map(len, overview().splitlines())) <= WIDTH
    assert set(re.findall(r"^  ([\w-]+) {2,}", overview(), re.MULTILINE)) == set(COMMANDS)
    modules = {path.stem for path in (ROOT / "flair_jax/cli").glob("*.py")}
    assert {name.replace("-", "_") for name in COMMANDS} == modules - {
        "__init__", "commands", "config_flags", "parser", "runs",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_parsed(name):
    parser, module = parser_of(name)
    for example in module.EXAMPLES:
        program, command, *flags = shlex.split(example.replace("\\\n", ""))
        assert (program, command) == ("flair-jax", name)
        parser.parse(flags)


def test_choices_in_the_helps_are_those_there_are():
    parser, _ = parser_of("detect")
    values = parser.parse(["--checkpoint=a", "--input=b", "--output=c", "--precision=float32"])
    assert set(vars(values)) == {
        "checkpoint", "input", "output", "output_dir", *Options.__dataclass_fields__,
    }  # fmt: skip
    for blend in BLENDS:
        parser.parse(["--checkpoint=a", "--input=b", "--output=c", f"--blend={blend}"])
    text = parser_of("import-torch")[0].format_help()
    assert f"--nomenclature NAME   {' or '.join(NOMENCLATURES)}\n" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["import_torch"], "unknown command 'import_torch'; did you mean import-torch?"),
        (["xyz"], "unknown command 'xyz'; see flair-jax --help"),
        (["--config=toy"],
         "a command comes before its flags, such as flair-jax train --config=toy"),
        (["train", "--confg=toy"], "unknown flag --confg; did you mean --config?"),
        (["train", "--xyz"], "unknown flag --xyz; see flair-jax train --help"),
        (["detect", "--chekpoint=a"], "unknown flag --chekpoint; did you mean --checkpoint?"),
        (["evaluate", "--average"], "--average is now called --ema"),
        (["detect", "--average"], "--average is now called --ema"),
        (["evaluate", "--split=tets"],
         "argument --split: 'tets' is none of train, val, test; did you mean test?"),
        (["train", "--config=toy", "--config.batch_sise=4"],
         "unknown configuration key config.batch_sise on the command line; did you mean "
         "config.batch_size?"),
        (["train", "--config.min_lrs=4"],
         "unknown configuration key config.min_lrs on the command line; did you mean "
         "config.plateau.min_lr?"),
        (["train", "--config.xyz=4"],
         "unknown configuration key config.xyz on the command line; flair-jax config lists the "
         "keys"),
        (["train", "--config.plateau=4"],
         "config.plateau on the command line is a group of keys: give each by itself, such as "
         "config.plateau.factor"),
        (["config", "--config.keep_latest=3"],
         "config.keep_latest on the command line is now called config.max_to_keep"),
        (["config", "--config.normalization_deviations=3"],
         "config.normalization_deviations on the command line is now called "
         "config.normalization_stds"),
        (["config", "--config.num_epochs=many"],
         "--config.num_epochs=many: expected an integer, at least 1"),
        (["config", "--config.augment=maybe"], "--config.augment=maybe: expected True or False"),
        (["config", "--config.batch_size"],
         "--config.batch_size needs a value: --config.batch_size=VALUE"),
        (["config", "--config=baselin"],
         "there is no configuration file baselin (--config): give the path of a file, or one of "
         "the names baseline, hub, metadata_augmentation, own_data, toy; did you mean baseline?"),
        (["train"],
         "--config=NAME or --config=FILE is needed, such as --config=baseline; there are "
         "baseline, hub, metadata_augmentation, own_data, toy"),
        (["export"], "the following arguments are required: --checkpoint, --format, --output"),
        (["export-torch", "--out=a"],
         "export-torch is now flair-jax export --format=torch --checkpoint=DIR --output=FILE"),
        (["train", "toy"], "unrecognized arguments: toy"),
        (["synthetic", "--out=x", "--seed=one"], "argument --seed: invalid int value: 'one'"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command_line_are_one_line_and_status_2(flags, message, capsys):
    assert main(flags) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["evaluate", "--workdir=/nowhere"], "error: there is no /nowhere/config.json: "),
        (["config", "--config.num_epochs=0"], "error: config.num_epochs is 0; expected at least 1"),
        (["report", "/nowhere"], "error: there is no /nowhere/config.json: "),
        (["summarize", "/nowhere", "--split=val"], "error: there is no /nowhere/config.json: "),
        (["synthetic", "--out=/dev/null/x"], "error: --out=/dev/null/x cannot be written ("),
        (["synthetic", "--out=x", "--patch_size=8"], "error: synthetic patches are at least 64"),
        (["doctor"], "error: give either --source=DIR, a download, or --data_dir=DIR"),
        (["build", "--source=gs://x"], "error: source must be a folder of this machine"),
    ],
)
def test_mistakes_of_the_input_are_status_1(flags, message, capsys):
    assert main(flags) == 1
    assert capsys.readouterr().err.startswith(message)


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out == overview() + "\n"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flair-jax {flair_jax.__version__}\n"


@pytest.mark.parametrize(
    "flags",
    [
        ["--input", "a.tif", "b.tif", "--output=c"],
        ["--input=a.tif", "b.tif", "--output=c"],
        ["--input=a.tif", "--output=c", "--input=b.tif"],
        ["--output=c", "--input", "a.tif", "--input", "b.tif"],
    ],
)
def test_several_inputs(flags):
    args = parser_of("detect")[0].parse(["--checkpoint=x", *flags])
    assert args.input == ["a.tif", "b.tif"]
    assert args.output == "c"


def test_flags_between_workdirs():
    args = parser_of("summarize")[0].parse(["runs/a", "--split=val", "runs/b", "--markdown"])
    assert (args.workdirs, args.split, args.markdown) == (["runs/a", "runs/b"], "val", True)


def test_a_closed_pipe_is_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "flair_jax", "config"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_ctrl_c_is_one_word(monkeypatch, capsys):
    module = parser_of("summarize")[1]

    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupt)
    assert main(["summarize", "runs/a"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
