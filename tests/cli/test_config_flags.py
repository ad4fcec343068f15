"""--config and --config.KEY=VALUE on command lines."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair_jax import config as configuration
from flair_jax.cli import config_flags
from flair_jax.cli.commands import main
from flair_jax.config_keys import KEYS, SECTIONS
from flair_jax.errors import UserError


@pytest.mark.parametrize(
    ("args", "changes", "rest"),
    [
        (["--config.seed=1", "--workdir=a"], [("seed", "1")], ["--workdir=a"]),
        (["--config.seed", "1", "--workdir", "a"], [("seed", "1")], ["--workdir", "a"]),
        (["-config.seed=1", "-config.seed", "2"], [("seed", "1"), ("seed", "2")], []),
        (["--config.augment", "--ema"], [("augment", "True")], ["--ema"]),
        (["--noconfig.augment"], [("augment", "False")], []),
        (["--config.data_dir=a=b"], [("data_dir", "a=b")], []),
        (["--config=toy", "--", "--config.seed=1"], [], ["--config=toy", "--", "--config.seed=1"]),
    ],
)
def test_keys_are_split_from_flags(args, changes, rest):
    assert config_flags.split(args) == (changes, rest)


@pytest.mark.parametrize("name", KEYS)
def test_every_default_can_be_written(name):
    default = KEYS[name].default
    config = configuration.default()
    configuration.set_text(config, name, [str(default)])
    written = configuration.flat(config)[name]
    assert written == default
    assert type(written) is type(default)


@pytest.mark.parametrize(
    ("key", "texts", "value"),
    [
        ("augment", ["t"], True),
        ("augment", ["FALSE"], False),
        ("batch_size", ["4", "8"], 8),
        ("learning_rate", ["1"], 1.0),
        ("plateau.min_lr", ["1e-3"], 1e-3),
        ("bands", ["('nir',)"], ("nir",)),
        ("bands", ["nir"], ("nir",)),
        ("bands", ["red, nir"], ("red", "nir")),
        ("disabled_classes", ["water,bare soil"], ("water", "bare soil")),
        ("bands", ["red", "nir"], ("red", "nir")),
        ("profile", ["[2, 3]"], (2, 3)),
        ("classes", ["(('a', '#000000', 1.0, (1, 2)),)"], (("a", "#000000", 1.0, (1, 2)),)),
        ("data_dir", ["1"], "1"),
    ],
)
def test_texts_become_values(key, texts, value):
    config = configuration.default()
    configuration.set_text(config, key, texts)
    assert configuration.flat(config)[key] == value


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (
            "batch_size",
            "1.5",
            "expected an integer, 0 (10 for each device of the run's first start) or more",
        ),
        ("num_epochs", "", "expected an integer, at least 1"),
        ("learning_rate", "fast", "expected a number, more than 0"),
        ("profile", "(1, 2", "expected a tuple, (first step, last step), or (0, 0) for none"),
        ("bands", "('red', green)", "expected a tuple, names of bands, each once: of FLAIR's r"),
        ("bands", "", "expected a tuple, names of bands, each once: of FLAIR's red, green"),
        ("augment", "2", "expected True or False"),
    ],
)
def test_texts_that_are_no_values(key, text, expected):
    with pytest.raises(UserError) as caught:
        configuration.set_text(configuration.default(), key, [text])
    assert str(caught.value).startswith(f"--config.{key}={text}: {expected}")


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.sets(st.integers()),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(KEYS)), st.text() | LITERALS.map(repr))
def test_any_text_is_a_value_or_one_error(key, text):
    config = configuration.default()
    try:
        configuration.set_text(config, key, [text])
        configuration.validate(config)
    except UserError as error:
        message = str(error)
        assert any(word in message for word in ("config.", "nomenclature", "U-Net"))
        return
    value = configuration.flat(config)[key]
    assert KEYS[key].takes(value)
    if isinstance(value, tuple) and value:
        assert value == tuple(ast.literal_eval(repr(value)))


def test_the_list_has_every_key_with_its_default_within_80_columns(capsys):
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for key in KEYS.values():
        star = "*" if key.changeable else " "
        assert f"\n{star} {key.name} = {key.default!r}\n" in text
    for section in SECTIONS:
        assert f"\n{section}\n" in text


def test_what_a_configuration_changes(capsys):
    assert main(["config", "--config=toy", "--config.num_epochs=1", "--config.augment=false"]) == 0
    assert capsys.readouterr().out == (
        "config.batch_size = 8 (default 0)\n"
        "config.learning_rate = 0.05 (default 0.02)\n"
        "config.num_epochs = 1 (default 200)\n"
        "config.log_every_steps = 8 (default 50)\n"
        "config.predict_after_training = True (default False)\n"
        "config.synthetic.use = True (default False)\n"
        "config.synthetic.patch_size = 96 (default 128)\n"
    )
    assert main(["config", "--config=baseline"]) == 0
    assert "nothing is changed" in capsys.readouterr().out
