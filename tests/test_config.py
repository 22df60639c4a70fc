"""Presets and overrides: everything known is accepted as it is, everything else is an error that helps."""

import json
import tomllib
from dataclasses import FrozenInstanceError
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from seqmatch_lib.data.datasets import DATASETS
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.runs import config as config_module
from seqmatch_lib.runs.config import SCALES, RunConfig, even_subsets, parse_override, preset_names
from seqmatch_lib.runs.records import load_record


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_builds_at_every_scale_and_says_what_its_name_says(preset):
    dataset, *ipc, method = preset.split("-")
    for scale in SCALES:
        config = RunConfig.from_preset(preset, scale, seed=3)
        assert (config.dataset, config.method) == (dataset, method)
        assert ipc == ([f"ipc{config.ipc}"] if config.ipc else [])
        assert config.dataset in DATASETS
        assert sum(config.subset_ipcs) == config.ipc
        stages = 2 if config.ipc == 10 or method == "seqmatch_idc" else 3
        assert config.num_subsets == (stages if config.is_sequential else 1), scale
        assert config.run_id.startswith(f"{dataset}-{method}-ipc{config.ipc}-k{config.num_subsets}-seed3-")
        assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config, scale


def test_paper_scale_is_the_public_example():
    """CIFAR-10 ipc 50, K = 3, as `run.sh` of the public SeqMatch code has it."""
    config = RunConfig.from_preset("cifar10-ipc50-seqmatch_mtt")
    assert config.subset_ipcs == (17, 17, 16)
    assert config.intervals == ((0, 20), (0, 20), (0, 10))
    assert config.zca
    assert config.select_on == "test"
    mtt = config.options
    assert (mtt.iterations, mtt.syn_steps, mtt.expert_epochs, mtt.batch_syn) == (5000, 30, 2, 0)
    assert (mtt.lr_img, mtt.lr_lr, mtt.syn_lr, mtt.later_syn_lr) == (100.0, 1e-5, 0.001, 0.01)
    assert (mtt.momentum_img, mtt.momentum_lr) == (0.5, 0.5)
    assert (config.teachers.num_teachers, config.teachers.lr, config.teachers.batch_size) == (100, 0.01, 256)
    assert (config.training.epochs, config.training.momentum, config.training.weight_decay) == (1000, 0.9, 5e-4)
    assert config.network.width == 128


def test_idc_at_paper_scale_is_its_public_setting_and_that_of_seqmatch():
    config = RunConfig.from_preset("cifar10-ipc50-seqmatch_idc")
    idc = config.options
    assert config.subset_ipcs == (25, 25)
    assert (idc.iterations, idc.inner_loop, idc.fix_iter) == ((200_000, 400_000), (50, 100), 50)
    assert (idc.factor, idc.metric, idc.lr_img) == (2, "mse", 5e-3)
    assert (idc.n_data, idc.batch_real, idc.batch_syn_max) == (2000, 64, 128)
    training = config.training
    assert (training.epochs, training.batch_size, training.schedule, training.cutmix) == (1000, 64, "steps", 0.5)
    assert training.augment == "flip+color+crop_scale_rotate"
    assert RunConfig.from_preset("svhn-ipc10-idc").training.augment == "color+crop_scale_rotate"
    assert RunConfig.from_preset("svhn-ipc10-idc").options.n_data == 500
    plain = RunConfig.from_preset("cifar10-ipc10-idc").options
    assert (plain.iterations, plain.inner_loop, plain.fix_iter) == ((200_000,), (100,), 1)


def test_dm_and_krr_at_paper_scale_are_their_public_settings():
    dm = RunConfig.from_preset("cifar10-ipc10-dm")
    assert (dm.options.iterations, dm.options.lr_img, dm.options.batch_real, dm.options.fix_iter) == (20_000, 1.0, 256, 1)
    assert (dm.training.epochs, dm.training.schedule, dm.training.loss) == (1000, "half", "cross_entropy")
    krr = RunConfig.from_preset("cifar10-ipc10-krr")
    assert (krr.options.lr_img, krr.options.batch_real, krr.options.ridge) == (3e-4, 1024, 1e-6)
    assert (krr.options.num_networks, krr.options.max_online_updates, krr.options.flip) == (10, 100, True)
    assert (krr.training.optimizer, krr.training.loss, krr.training.schedule) == ("adam", "mse", "cosine")
    assert (krr.training.epochs, krr.training.batch_size, krr.evaluation.real_lr) == (2000, 500, 3e-4)
    assert krr.zca


def test_settings_of_runs_before_a_field_was_added_are_what_they_were():
    """Later fields at their default stay out of the settings, so ids and teachers of recorded runs are found again."""
    settings = RunConfig.from_preset("digits-ipc10-mtt", "reduced").as_dict()
    assert "cutmix" not in settings["training"]
    assert "lr_label" not in settings["mtt"]
    paths = sorted((Path(__file__).parents[1] / "paper_results" / "runs").rglob("*.json"))
    assert paths
    for path in paths:
        record = load_record(path)
        assert RunConfig.from_dict(record.config).hash == record.config_hash, path
    changed = RunConfig.from_preset("digits-ipc10-mtt", "reduced", overrides={"mtt.lr_label": 1.0, "training.cutmix": 0.5})
    assert changed.as_dict()["mtt"]["lr_label"] == 1.0
    assert changed.as_dict()["training"]["cutmix"] == 0.5


def test_the_order_of_changes_does_not_matter():
    changes = {"idc.factor": 1, "method": "idc", "intervals": [], "ipc": 4, "subset_ipcs": [4]}
    backwards = dict(reversed(changes.items()))
    config = RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides=changes)
    assert (config.options.factor, config.method) == (1, "idc")
    assert config == RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides=backwards)
    plain = RunConfig.from_preset("digits-ipc10-mtt", "smoke")
    assert plain.changed(changes) == plain.changed(backwards)
    with pytest.raises(ConfigError, match="method 'mttt' is unknown"):
        plain.changed({"mtt.syn_steps": 3, "method": "mttt"})


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(number):
    config = RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"mtt.syn_lr": number})
    assert config == RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"mtt.syn_lr": float(number)})
    assert type(config.options.syn_lr) is float
    with pytest.raises(ConfigError, match=r"mtt.syn_lr = np.True_ has the wrong type"):
        RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"mtt.syn_lr": np.True_})


@pytest.mark.parametrize("key", ["subset_ipcs", "ipc", "mtt.syn_steps", "mtt.syn_lr", "method"])
def test_an_array_in_place_of_another_value_is_named(key):
    with pytest.raises(ConfigError, match=rf"{key} (= )?array\(\[5, 5\]\) (has the wrong type|is unknown)"):
        RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "smoke", overrides={key: np.array([5, 5])})


def test_even_subsets():
    assert [even_subsets(50, k) for k in (1, 2, 3, 4)] == [[50], [25, 25], [17, 17, 16], [13, 13, 12, 12]]
    assert even_subsets(10, 10) == [1] * 10
    for k in (0, 11):
        with pytest.raises(ConfigError, match=f"{k} subsets do not fit ipc 10; take between 1 and 10"):
            even_subsets(10, k)


def test_methods_without_teachers_have_no_intervals():
    assert RunConfig.from_preset("digits-ipc10-seqmatch_dm", "smoke").intervals == ()
    with pytest.raises(ConfigError, match=r"intervals \[\[0, 4\]\] mean nothing to method 'dm', which has no teachers"):
        RunConfig.from_preset("digits-ipc10-dm", "smoke", overrides={"intervals": [[0, 4]]})


@pytest.mark.parametrize("preset", ["digits-ipc10-random", "digits-ipc10-mtt", "digits-ipc10-seqmatch_mtt"])
def test_intervals_of_another_method_are_left_behind(preset):
    subsets = {"subset_ipcs": [5, 5]}
    for config in (
        RunConfig.from_preset(preset, "smoke", overrides={"method": "seqmatch_dm", **subsets}),
        RunConfig.from_preset(preset, "smoke").changed({"method": "seqmatch_dm", **subsets}),
    ):
        assert (config.method, config.intervals) == ("seqmatch_dm", ())
    with pytest.raises(ConfigError, match=r"intervals \[\[0, 4\]\] mean nothing to method 'dm'"):  # given ones are not
        RunConfig.from_preset(preset, "smoke", overrides={"method": "dm", "intervals": [[0, 4]], "subset_ipcs": []})


def test_a_later_layer_wins_and_overrides_win_over_all():
    paper = RunConfig.from_preset("cifar10-ipc10-mtt")
    smoke = RunConfig.from_preset("cifar10-ipc10-mtt", "smoke")
    changed = RunConfig.from_preset("cifar10-ipc10-mtt", "smoke", overrides={"mtt.syn_steps": 7, "zca": True})
    assert paper.network.width == 128
    assert smoke.network.width == 8
    assert (changed.options.syn_steps, changed.zca, changed.network.width) == (7, True, 8)
    assert len({paper.run_id, smoke.run_id, changed.run_id}) == 3


def test_no_line_of_the_presets_says_what_holds_without_it(monkeypatch):
    """A default stands in one place: in a dataclass, or in presets.toml where several runs change it."""
    presets = tomllib.loads(files("seqmatch_lib.runs").joinpath("presets.toml").read_text(encoding="utf-8"))
    monkeypatch.setattr(config_module, "_read_presets", lambda: presets)
    cells = [(preset, scale) for scale in SCALES for preset in preset_names()]
    expected = {cell: RunConfig.from_preset(*cell).as_dict() for cell in cells}

    def changes_a_run(path: str) -> bool:
        def is_changed(cell: tuple[str, str]) -> bool:
            try:
                return RunConfig.from_preset(*cell).as_dict() != expected[cell]
            except ConfigError:
                return True

        likely = sorted(cells, key=lambda cell: -sum(part in path for part in (*cell[0].split("-"), cell[1])))
        return any(map(is_changed, likely))

    idle = []
    for table, key, path in list(_lines(presets, "")):
        value = table.pop(key)
        if not changes_a_run(path):
            idle.append(f"{path} = {value}")
        table[key] = value
    assert not idle


def _lines(table: dict, path: str):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{path}.{key}")
        else:
            yield table, key, f"{path}.{key}"


def test_one_interval_stands_for_all_subsets():
    config = RunConfig.from_preset("cifar10-ipc50-seqmatch_mtt", overrides={"intervals": [[0, 15]]})
    assert config.intervals == ((0, 15),) * 3


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        RunConfig.from_preset("digits-ipc10-mtt").ipc = 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mtt.syn_steps=20", ("mtt.syn_steps", 20)),
        ("mtt.lr_img=1e3", ("mtt.lr_img", 1000.0)),
        ("zca=true", ("zca", True)),
        ("compute=False", ("compute", False)),
        ("intervals=[[0, 4], [0, 3]]", ("intervals", [[0, 4], [0, 3]])),
        ("dataset=digits", ("dataset", "digits")),
        ("network.norm=", ("network.norm", "")),
        ("evaluation.networks=[convnet]", ("evaluation.networks", ["convnet"])),  # of ["convnet"], as a shell leaves it
        ("evaluation.networks=[convnet, vgg11]", ("evaluation.networks", ["convnet", "vgg11"])),
        ("intervals=[[0, 4]", ("intervals", "[[0, 4]")),
    ],
)
def test_override_values_are_toml_or_words(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["mtt.syn_steps", "=3", ""])
def test_override_without_key_or_value(text):
    with pytest.raises(ConfigError, match="is not of the form key=value"):
        parse_override(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mtt.syn_step=3", r"unknown key 'mtt.syn_step'; did you mean mtt.syn_steps"),
        ("syn_steps=3", r"unknown key 'syn_steps'; did you mean mtt.syn_steps\?"),
        ("preset=other", "preset cannot be set like a setting"),
        ("mtt=3", "unknown key 'mtt'"),
        ("zzz=3", "unknown key 'zzz'; known are dataset, ipc"),
        ("ipc=-1", "ipc -1 must be at least 1"),
        ("ipc=11", r"subset_ipcs \[5, 5\] sum up to 10, not to ipc 11"),
        ("ipc=ten", "ipc = 'ten' has the wrong type; it must be int"),
        ("ipc=true", "ipc = True has the wrong type"),
        ("mtt.syn_steps=2.5", "mtt.syn_steps = 2.5 has the wrong type; it must be int"),
        ("intervals=[[0, 99]]", "interval 0-99 of stage 1 exceeds the 42 epochs recorded; raise teachers.epochs"),
        ("intervals=[[0, 20], [0, 21]]", "interval 0-21 of stage 2 exceeds the 20 epochs.*teachers.later_epochs"),
        ("intervals=[[0, 2]]", "be longer than mtt.expert_epochs.*change the interval"),
        ("intervals=[[0, 4, 5]]", r"intervals = \[0, 4, 5\] has .* it must be a list of 2 whole numbers, such as"),
        ("intervals=0,4", r"intervals = '0,4' has the wrong type; it must be a list of lists, such as \[\[0,4\]\]"),
        ("subset_ipcs=4,3,3", r"subset_ipcs = '4,3,3' .* must be a list of whole numbers, such as \[5,5\]"),
        ("evaluation.networks=vgg11", r"evaluation.networks = 'vgg11' .* must be a list of texts, such as \[\"convnet\"\]"),
        ("intervals=[[0, 4], [0, 4], [0, 4]]", "must have one entry a subset"),
        ("subset_ipcs=[10, 0]", r"subset_ipcs \[10, 0\] must each be at least 1"),
        ("method=mtt", "distils one subset, but .* names 2; use method 'seqmatch_mtt'"),
        ("method=mttt", "method 'mttt' is unknown; use random or whole, or dm, idc, krr, mtt"),
        ("method=seqmatch_random", "method 'seqmatch_random' is unknown"),
        ("method=whole", r"ipc 10 .* 'whole', .*; run a preset <dataset>-whole, or set ipc=0 and subset_ipcs=\[\]"),
        ("select_on=train", "select_on 'train' is unknown; use one of validation, test, none"),
        ("network.name=convnett", "network name 'convnett' is unknown"),
        ("training.epochs=0", "training.epochs 0 must be at least 1"),
        ('evaluation.networks=["vgg"]', r"unknown names \['vgg'\]; use any of convnet"),
        ("evaluation.num_networks=0", "evaluation.num_networks 0"),
    ],
)
def test_what_does_not_fit_is_named_with_a_remedy(override, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", overrides=dict([parse_override(override)]))


def test_iterates_that_nothing_selects_are_not_scored_on_test_images():
    """Nor twice, where they are selected on the test images."""
    for select_on in ("validation", "test"):
        RunConfig.from_preset("digits-ipc10-mtt", "smoke", overrides={"select_on": select_on, "evaluation.score_test": True})
    with pytest.raises(ConfigError, match="select_on 'none' scores no iterate; set evaluation.score_test=false"):
        RunConfig.from_preset("cifar10-ipc10-mtt", "short", overrides={"select_on": "none"})
    changes = {"select_on": "none", "evaluation.score_test": False}
    assert RunConfig.from_preset("cifar10-ipc10-mtt", "short", overrides=changes).select_on == "none"


def test_settings_of_later_stages_are_checked_before_the_first():
    idc = "cifar10-ipc10-seqmatch_idc"
    with pytest.raises(
        ConfigError, match=r"idc.inner_loop \[50, 100, 9\] has 3 entries, one a stage, for 2 stages; leave some"
    ):
        RunConfig.from_preset(idc, overrides={"idc.inner_loop": [50, 100, 9]})
    soft = {"mtt.lr_label": 1.0, "mtt.label_epoch": 30}
    with pytest.raises(ConfigError, match=r"mtt.label_epoch 30 exceeds the 20 epochs recorded in stage 2"):
        RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", overrides=soft)
    for remedy in ({"mtt.label_epoch": 20}, {"teachers.later_epochs": 30}, {"mtt.lr_label": 0.0}):  # 0 learns no labels
        assert RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", overrides=soft | remedy).num_subsets == 2


def test_unknown_preset_and_scale_and_seed():
    with pytest.raises(ConfigError, match="unknown preset 'cifar10-ipc10-mt'; did you mean cifar10-ipc10-mtt"):
        RunConfig.from_preset("cifar10-ipc10-mt")
    with pytest.raises(ConfigError, match="scale 'tiny' is unknown; use one of smoke, reduced, short, paper"):
        RunConfig.from_preset("cifar10-ipc10-mtt", "tiny")
    with pytest.raises(ConfigError, match="seed -1 must be at least 0"):
        RunConfig.from_preset("cifar10-ipc10-mtt", seed=-1)


def test_a_record_with_an_unknown_setting_is_refused():
    settings = RunConfig.from_preset("digits-ipc10-mtt").as_dict()
    for section, message in (({"nonsense": 1}, "unknown key 'krr.nonsense'"), (3, "krr must be a table of settings, not 3")):
        with pytest.raises(ConfigError, match=message):  # also in the section of another method
            RunConfig.from_dict(settings | {"krr": section})
    with pytest.raises(ConfigError, match="unknown key 'options'"):  # a field, but no setting
        RunConfig.from_dict(settings | {"options": {"syn_steps": 3}})
    assert RunConfig.from_dict(settings | {"krr": {"ridge": 0.1}}).as_dict() == settings
    settings["mtt"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="unknown key 'mtt.momentum'; did you mean mtt.momentum_"):
        RunConfig.from_dict(settings)
