from dataclasses import dataclass
from typing import Literal

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from vitcls.__main__ import VERBS
from vitcls.errors import listing, suggestion
from vitcls.wording import sentence

BASE = {
    "data": {"dataset": "digits", "num_workers": 0},
    "model": {"architecture": {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 8}},
    "trainer": {"fast_dev_run": True, "logger": False},
}


@pytest.fixture
def refuses_words(refuses, tmp_path):
    """The sentence with which a fit of the digits refuses more words."""
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump(BASE))
    return lambda *words: refuses("fit", "--config", config, "--trainer.default_root_dir", tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.resiz", "crop"], "There is no option --data.resiz (did you mean --data.resize?); --help"),
        (["--data.batchsize=3"], "There is no option --data.batchsize (did you mean --data.batch_size?); --help"),
        (
            ["--trainer.max_epoch", "3"],
            "There is no option --trainer.max_epoch (did you mean --trainer.max_epochs?); --",
        ),
        (
            ["--model.weight_deacy", "1"],
            "There is no option --model.weight_deacy (did you mean --model.weight_decay?);",
        ),
        (["--optimizer", "SGD"], "There is no option --optimizer (did you mean --model.optimizer?); --help"),
        (["--zzz", "3"], "There is no option --zzz; --help"),
        (
            ["--data.batch_siz=4", "--data.flip", "0"],
            "There is no option --data.batch_siz (did you mean --data.batch_s",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_option_is_named_with_the_nearest_that_exists(words, told, refuses_words):
    assert refuses_words(*words).startswith(f"vitcls: {told}")


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("data.batch_size", "many", "a whole number"),
        ("data.batch_size", "3.5", "a whole number"),
        ("data.batch_size", "null", "a whole number"),
        ("data.train_limit", "most", "a whole number or null"),
        ("data.flip", "often", "a number"),
        ("data.crop_scale", "0.5", "a list"),
        ("model.lr", "fast", "a number"),
        ("model.labels", "cat", "a list or null"),
        ("model.image", "square", "a dict or null"),
        ("trainer.max_epochs", "ten", "a whole number or null"),
        ("seed_everything", "x", "true or false or a whole number"),
        ("data.resize", "squish", "one of 'squash', 'crop', 'letterbox' or null"),
        ("model.schedule", "cosin", "one of 'cosine', 'linear', 'constant'"),
        ("model.train", "haed", "one of 'all', 'head'"),
        ("model.train", "3", "one of 'all', 'head'"),
        ("model.adapter.bias", "some", "one of 'none', 'all', 'lora_only'"),
        ("model.adapter.r", "four", "a whole number"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_its_option_and_what_does(key, value, valid, refuses_words):
    adapter = ["--model.adapter", "LoRA"] if "adapter" in key else []
    told = refuses_words(*adapter, f"--{key}", value)
    found = "None" if value == "null" else value
    assert told.startswith(f"vitcls: --{key} is '{found}'; it must be {valid}")


def test_an_item_of_a_list_that_does_not_fit_is_the_value_that_is_told(refuses_words):
    assert refuses_words("--data.crop_scale", "[0.1, wide]") == (
        "vitcls: --data.crop_scale is 'wide'; it must be a number."
    )


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("data.flip", "2", "2.0; it must be between 0 and 1."),
        ("data.batch_size", "0", "0; it must be at least 1."),
        ("data.eval_limit", "-3", "-3; it must be at least 1."),
        ("data.validation_fraction", "1", "1.0; it must be between 0 and 1."),
        ("data.crop_scale", "[0.9, 0.1]", "[0.9, 0.1]; it must be two rising numbers in (0, 1]."),
    ],
)
def test_a_number_out_of_range_is_told_with_its_option_and_the_range(key, value, valid, refuses_words):
    assert refuses_words(f"--{key}", value) == f"vitcls: --{key} is {valid}"


@pytest.mark.parametrize(
    ("key", "name", "near"),
    [
        ("trainer.callbacks", "EarlyStoping", "EarlyStopping"),
        ("trainer.callbacks", "RunCheckpont", "RunCheckpoint"),
        ("trainer.logger", "CSVLoger", "CSVLogger"),
        ("model.optimizer", "AdamWW", "AdamW"),
    ],
)
def test_an_unknown_class_is_named_with_the_nearest_that_exists(key, name, near, refuses_words):
    assert refuses_words(f"--{key}", name) == (f"vitcls: --{key}: there is no class {name!r} (did you mean {near!r}?).")


def test_an_unknown_class_that_is_like_no_other_is_named_alone(refuses_words):
    assert refuses_words("--trainer.callbacks", "Zzzzzz") == "vitcls: --trainer.callbacks: there is no class 'Zzzzzz'."


@pytest.mark.parametrize(
    ("key", "class_path", "wrong", "near"),
    [
        ("trainer.callbacks", "lightning.pytorch.callbacks.EarlyStopping", "patiense", "patience"),
        ("trainer.logger", "lightning.pytorch.loggers.CSVLogger", "save_dirr", "save_dir"),
        ("model.adapter", "vitcls.LoRA", "dropuot", "dropout"),
        ("model.adapter", "vitcls.LoRA", "zzz", None),
    ],
)
def test_an_unknown_argument_of_a_class_is_named_with_the_class_and_the_nearest(
    key, class_path, wrong, near, refuses_words
):
    name = class_path.rpartition(".")[-1]
    told = refuses_words(f"--{key}={name}", f"--{key}.{wrong}=1")
    meant = f" (did you mean {near!r}?)" if near else ""
    assert told == f"vitcls: {class_path} (--{key}) has no option {wrong!r}{meant}."


def test_no_option_is_guessed_from_its_beginning(refuses_words):
    # --data.eval_bat means nothing, though only one option begins so.
    assert "There is no option --data.eval_bat " in refuses_words("--data.eval_bat", "3")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"data": {"resise": "crop"}}, "There is no option --data.resise (did you mean --data.resize?)"),
        ({"data": {"resize": "squish"}}, "--data.resize is 'squish'; it must be one of 'squash', 'crop', 'letterbox'"),
        ({"data": {"batch_size": "many"}}, "--data.batch_size is 'many'; it must be a whole number."),
        ({"data": {"flip": True}}, "--data.flip is 'True'; it must be a number."),
        ({"dta": {"flip": 0}}, "There is no option --dta.flip"),
        ({"model": {"labels": [1, 2]}}, "--model.labels is '1'; it must be a text or null."),
        (
            {"trainer": {"callbacks": [{"class_path": "EarlyStoping"}]}},
            "--trainer.callbacks: there is no class 'EarlyStoping' (did you mean 'EarlyStopping'?).",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitr": "x"}}]}},
            "lightning.pytorch.callbacks.EarlyStopping (--trainer.callbacks) has no option 'monitr' (did you mean",
        ),
        (
            {
                "trainer": {
                    "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "x", "patience": "y"}}]
                }
            },
            "--trainer.callbacks.patience is 'y'; it must be a whole number",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_mistake_in_a_file_is_told_like_one_in_the_words(config, told, refuses_words, tmp_path):
    file = tmp_path / "mistaken.yaml"
    file.write_text(yaml.safe_dump(config))
    assert refuses_words("--config", file).startswith(f"vitcls: {told}")


def test_a_file_that_does_not_exist_is_named(refuses_words, tmp_path):
    told = refuses_words("--config", tmp_path / "nowhere.yaml")
    assert "--config" in told
    assert "there is no file" in told
    assert str(tmp_path / "nowhere.yaml") in told


def test_a_file_that_is_not_yaml_is_told_in_one_line(refuses_words, tmp_path):
    (tmp_path / "broken.yaml").write_text("data: [")
    assert "while parsing" in refuses_words("--config", tmp_path / "broken.yaml")


def test_an_option_without_its_value_is_named(refuses_words):
    assert "--data.batch_size" in refuses_words("--data.batch_size")


@pytest.mark.parametrize(("verb", "near"), [("fti", "fit"), ("tets", "test"), ("predcit", "predict")])
def test_an_unknown_verb_is_named_with_the_nearest(verb, near, refuses):
    told = refuses(verb, "--data.dataset", "digits")
    assert f"{verb!r} is none of the verbs {', '.join(VERBS)} (did you mean {near!r}?)" in told


@dataclass
class Engine:
    power: int = 1
    fuel: Literal["gas", "coal"] = "gas"


@pytest.fixture
def parser() -> ArgumentParser:
    """Another parser than that of the verbs, with types that they do not have."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--quiet", type=bool, default=False)
    parser.add_argument("--sizes", type=list[int], default=[1])
    parser.add_argument("--corners", type=list[int] | tuple[int, int], default=[1])
    parser.add_argument("--share", type=float | Literal["all"], default="all")
    parser.add_class_arguments(Engine, "engine")
    return parser


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--quiet=perhaps"], "--quiet is 'perhaps'; it must be true or false."),
        (["--sizes=[1, x]"], "--sizes is 'x'; it must be a whole number."),
        (["--corners=wide"], "--corners is 'wide'; it must be a list."),
        (["--share=most"], "--share is 'most'; it must be a number or one of 'all'."),
        (["--engine.power=high"], "--engine.power is 'high'; it must be a whole number."),
        (["--engine.fuel=wood"], "--engine.fuel is 'wood'; it must be one of 'gas', 'coal'."),
        (
            ["--engine.fule=gas"],
            "There is no option --engine.fule (did you mean --engine.fuel?); --help lists them all.",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_any_parsers_message_becomes_a_sentence(words, told, parser):
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(words)
    assert sentence(str(error.value), parser.get_defaults().keys()) == told


def test_a_message_of_an_unknown_kind_is_kept_on_one_line():
    assert sentence("Something\n  else\twent wrong", []) == "Something else went wrong"


def test_a_suggestion_is_given_only_where_one_is_near():
    assert suggestion("blu", ["red", "blue"]) == " (did you mean 'blue'?)"
    assert suggestion("xylophone", ["red", "blue"]) == ""


@pytest.mark.parametrize(
    ("count", "told"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2, ... (1 more)"), (9, "0, 1, 2, ... (6 more)")]
)
def test_a_long_listing_is_cut_with_a_count(count, told):
    assert listing(map(str, range(count)), 3) == told


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ["--model.optimizer=SGD", "--model.optimizer.momentun=0.9"],
            "no option 'momentun' (did you mean 'momentum'?)",
        ),
        (
            ["--model.optimizer=SGD", "--model.optimizer.momentum=lots"],
            "--model.optimizer.momentum is 'lots'; it must be a number.",
        ),
        (["--trainer.accelerator=gpuu"], "accelerator='gpuu'"),
        (["--trainer.devices=x,y"], "The trainer refuses its options"),
        (["--trainer.strategy=dpp"], "strategy='dpp'"),
        (["--model=3"], "--model is '3'"),
        (["--data.crop_scale=[0.1]"], "it must be a list of 2."),
        (["--batch_size=3"], "did you mean --data.batch_size?"),
    ],
)
def test_what_is_wrong_is_told_alone(refuses, fit_words, words, part):
    told = refuses(*fit_words, *words)
    assert part in told
    assert "Namespace" not in told


@pytest.mark.parametrize("word", ["learning_rate", "warm", "epochs", "momentum"])
def test_a_word_like_no_option_gets_no_suggestion(refuses, word):
    assert "did you mean" not in refuses("fit", f"--model.{word}=1")


@pytest.mark.parametrize("path", ["vitcls.callbacks.Nope", "torch.nn.Linear"])
def test_a_class_path_that_is_no_callback_is_named(refuses, path, tmp_path):
    (tmp_path / "c.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {path}}}]}}")
    told = refuses("fit", "--config", tmp_path / "c.yaml")
    assert path in told
    assert "must be null" not in told
