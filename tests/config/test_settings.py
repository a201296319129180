"""How settings come together: ranges, origins, precedence, paths, and errors for people."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatlens.config import KEYS, Settings, check_paths, load_settings
from heatlens.config_help import value_text
from heatlens.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PATH = {"PATH": os.environ["PATH"]}


def load(conf: Path | None = None, environ: dict[str, str] | None = None, /, **flags: str) -> Settings:
    return load_settings(conf, flags, {**PATH, **(environ or {})}, "attn_map")


def error_of(conf: Path | None = None, environ: dict[str, str] | None = None, /, **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(conf, environ, **flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """configs/group/exp.conf of a repository in a folder with a blank in its name."""
    path = tmp_path / "my repo" / "configs" / "group" / "exp.conf"
    path.parent.mkdir(parents=True)
    path.write_text("ALPHA=0.25\nDATASET=table\nDATASET_PATH=data/q.csv\n")
    return path


FIXED_DEFAULTS = {
    "alpha": 0.5, "colormap": "jet", "save_raw_cam": False, "enable_body_mask": True, "skip_crf": True,
    "cam_version": "gScoreCAM", "stop_after": None, "topk": 300, "output_size": 1024, "output_format": "png",
    "max_failure_rate": 0.05, "umask": "077", "preprocess": "letterbox", "regions": "split",
    "prompt_template": "{question} {region}", "background": "map", "num_shards": 1, "shard_index": 0,
    "container_runtime": "none", "container_image": "", "device": "auto", "precision": "auto", "batch_size": None,
    "model": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
}  # fmt: skip


def test_defaults_are_the_fixed_ones() -> None:
    settings = load()
    assert {name: getattr(settings, name) for name in FIXED_DEFAULTS} == FIXED_DEFAULTS
    assert set(settings.origins.values()) == {"default"}
    assert set(settings.origins) == set(KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_help_and_a_default_in_its_range(name: str, tmp_path: Path) -> None:
    key = KEYS[name]
    value = key.kind.read(key.default, tmp_path)
    assert key.kind.accepts(value)
    assert key.help
    assert key.allowed
    assert value_text(value) == key.default


PUBLISHED_CRF = {
    "gaussian_sxy": 3, "gaussian_compat": 3, "bilateral_sxy": 60, "bilateral_srgb": 5, "bilateral_compat": 5,
    "tau": 1.05, "eps": 1e-8, "steps": 5, "size": 448,
}  # fmt: skip
IN_FINGERPRINT = {
    "DATASET", "PROMPT_TEMPLATE", "REGIONS", "TARGET_LAYER", "PREPROCESS", "PRECISION", "BATCH_SIZE", "CAM_VERSION",
    "TOPK", "RISE_MASKS", "COMPILE", "ENABLE_BODY_MASK", "SKIP_CRF", "SAVE_RAW_CAM", "OUTPUT_SIZE", "OUTPUT_FORMAT",
    *(f"CRF_{name.upper()}" for name in PUBLISHED_CRF),
}  # fmt: skip
OF_ONE_STAGE = {
    "attn_map": {"ALPHA", "COLORMAP", "BACKGROUND"},
    "bbox": {"BOX_THRESHOLD", "MAX_BOXES", "MIN_AREA", "BOX_PADDING"},
}


@pytest.mark.parametrize("stage", OF_ONE_STAGE)
def test_the_fingerprint_holds_what_the_files_of_a_stage_depend_on(stage: str) -> None:
    found = {name for name, key in KEYS.items() if key.fixed_for(stage)}
    assert found == IN_FINGERPRINT | OF_ONE_STAGE[stage]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("ALPHA", "0", 0.0),
        ("ALPHA", "1.0", 1.0),
        ("ALPHA", " .5 ", 0.5),
        ("ALPHA", "5e-1", 0.5),
        ("STOP_AFTER", "", None),
        ("STOP_AFTER", "7", 7),
        ("OUTPUT_SIZE", "", None),
        ("BATCH_SIZE", "16", 16),
        ("SAVE_RAW_CAM", "TRUE", True),
        ("SAVE_RAW_CAM", "0", False),
        ("CAM_VERSION", "gscore-cam", "gScoreCAM"),
        ("COLORMAP", "Jet", "jet"),
        ("COLORMAP", "custom-purple-red", "custom_purple_red"),
        ("PREPROCESS", "Crop", "crop"),
        ("DEVICE", "cuda:1", "cuda:1"),
        ("UMASK", "0027", "0027"),
        ("SAMPLE", "0.25", 0.25),
        ("SAMPLE", "12", 12.0),
        ("SAMPLE", "", None),
        ("SPLIT", "train,test", "train,test"),
        ("PROMPT_TEMPLATE", "a {{b}} {type}\n{region}", "a {{b}} {type}\n{region}"),
        ("MODEL", "demo", "demo"),
        ("MODEL", "local-dir:/m", "local-dir:/m"),
        ("MODEL", "ViT-B-32/openai", "ViT-B-32/openai"),
        ("TARGET_LAYER", "visual.trunk.blocks[-1].norm1", "visual.trunk.blocks[-1].norm1"),
    ],
)
def test_values_that_are_understood(key: str, text: str, value: object) -> None:
    assert getattr(load(**{key: text}), key.lower()) == value


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("ALPHA", "1.5", "0 to 1"),
        ("ALPHA", "-0.1", "0 to 1"),
        ("ALPHA", "nan", "0 to 1"),
        ("ALPHA", "inf", "0 to 1"),
        ("ALPHA", "", "0 to 1"),
        ("ALPHA", "0,5", "0 to 1"),
        ("ALPHA", "1_0e-1", "0 to 1"),
        ("ALPHA", "٠", "0 to 1"),
        ("COLORMAP", "jett", "did you mean jet? Allowed: jet, turbo, "),
        ("CAM_VERSION", "foo", "gScoreCAM, ScoreCAM, GradCAM"),
        ("CAM_VERSION", "GradCAMM", "did you mean GradCAM?"),
        ("DATASET", "gemx", "did you mean gemex?"),
        ("STOP_AFTER", "0", "1 or more, or empty (all)"),
        ("STOP_AFTER", "5.0", "1 or more"),
        ("TOPK", "", "1 to 1000000"),
        ("TOPK", "9" * 30, "1 to 1000000"),
        ("SAVE_RAW_CAM", "maybe", "true or false"),
        ("REGIONS", "both", "split, joint"),
        ("PREPROCESS", "leterbox", "did you mean letterbox?"),
        ("DEVICE", "gpu", "auto, cpu, cuda or cuda:N"),
        ("UMASK", "99", "three or four octal digits"),
        ("UMASK", "0o77", "octal"),
        ("MAX_FAILURE_RATE", "5%", "0 to 1"),
        ("SAMPLE", "1.5", "a fraction between 0 and 1"),
        ("SAMPLE", "0", "a whole number from 1"),
        ("CONTAINER_RUNTIME", "lxc", "allowed: none, docker, podman, apptainer"),
        ("OUTPUT_FORMAT", "gif", "png, jpg"),
        ("PROMPT_TEMPLATE", "{quesiton}", "{question}, {region}, {answer}, {choices}, {type}"),
        ("PROMPT_TEMPLATE", "{question", "expected '}'"),
        ("PROMPT_TEMPLATE", "{question!r}", "no plain field"),
        ("PROMPT_TEMPLATE", "{}", "no plain field"),
        ("PROMPT_TEMPLATE", " ", "empty"),
        ("MODEL", "", "demo, hf-hub:"),
        ("MODEL", "biomedclip", "demo, hf-hub:"),
        ("NUM_SHARDS", "0", "1 to 100000"),
        ("CRF_EPS", "0", "1e-12 to 0.1"),
        ("CRF_BILATERAL_SXY", "0", "1 to 1000"),
        ("CRF_SIZE", "4000", "16 to 2048"),
        *(
            ("BOX_THRESHOLD", text, "otsu; a share of the map's maximum between 0 and 1")
            for text in ("2", "0", "0.0", "1", "p100", "p", "95", "otsu0.5", "-0.5", "p-5", "")
        ),
        ("MODEL_REVISION", "a b", "a commit, tag or branch"),
    ],
)
def test_values_that_are_refused(key: str, text: str, allowed: str) -> None:
    message = error_of(**{key: text})
    assert message.startswith(f"{key}=")
    assert f"(flag --{key.lower().replace('_', '-')})" in message
    assert allowed in message
    assert "\n" not in message


@given(st.text(max_size=20), st.sampled_from(sorted(KEYS)))
def test_any_text_is_a_value_in_range_or_a_config_error(text: str, name: str) -> None:
    try:
        settings = load(**{name: text})
    except ConfigError as error:
        assert name in str(error)
    else:
        assert KEYS[name].kind.accepts(getattr(settings, name.lower()))


def test_dense_crf_with_its_published_numbers() -> None:
    settings = load(SKIP_CRF="false")
    assert {name: getattr(settings, f"crf_{name}") for name in PUBLISHED_CRF} == PUBLISHED_CRF


@pytest.mark.parametrize("stage", ["attn_map", "bbox"])
def test_crf_keys_count_only_where_a_crf_is_asked_for(stage: str) -> None:
    keys = {f"CRF_{name.upper()}" for name in PUBLISHED_CRF}
    without, with_it = load().fixed_for(stage), load(SKIP_CRF="false").fixed_for(stage)
    assert set(with_it) - set(without) == keys
    assert load(CRF_TAU="2", CRF_STEPS="1").fixed_for(stage) == without
    assert load(SKIP_CRF="false", CRF_TAU="2").fixed_for(stage) == {**with_it, "CRF_TAU": 2.0}
    assert set(without) == {name for name, key in KEYS.items() if key.fixed_for(stage)} - keys


def test_all_errors_are_reported_together_each_with_its_place(conf: Path) -> None:
    conf.write_text("ALPHA=1.5\nALPA=2\n\nCOLORMAP=jett\n")
    message = error_of(conf, {"TOPK": "none"}, CAM_VERSION="foo")
    lines = message.split("\n")
    assert lines[0] == "5 settings are wrong:"
    assert lines[1].startswith(f"ALPA ({conf}:2): unknown key, did you mean ALPHA?; helper variables")
    assert lines[2].startswith("CAM_VERSION=foo (flag --cam-version): allowed: gScoreCAM, ScoreCAM, GradCAM, ")
    assert lines[2].endswith(", Chefer, grad-cam:NAME")
    assert lines[3] == "TOPK=none (environment): allowed: 1 to 1000000"
    assert lines[4] == f"ALPHA=1.5 ({conf}:1): allowed: 0 to 1"
    assert lines[5].startswith(f"COLORMAP=jett ({conf}:4): did you mean jet?")


def test_a_value_that_breaks_lines_stays_on_one_line(conf: Path) -> None:
    conf.write_text("COLORMAP='a\nb'\n")
    assert "COLORMAP='a\\nb'" in error_of(conf)


def test_flag_beats_environment_beats_conf_beats_default(conf: Path) -> None:
    environ = {"ALPHA": "0.5", "TOPK": "10"}
    settings = load(conf, environ, ALPHA="0.75")
    assert (settings.alpha, settings.topk, settings.dataset, settings.colormap) == (0.75, 10, "table", "jet")
    names = ("ALPHA", "TOPK", "DATASET", "COLORMAP")
    assert [settings.origins[name] for name in names] == ["flag", "environment", str(conf), "default"]


def test_an_environment_variable_that_has_a_say_is_announced(conf: Path) -> None:
    assert load(conf, {"ALPHA": "0.9", "SEED": "3", "DATASET": "table"}).announcements == (
        "SEED=3 comes from the environment",
        f"ALPHA=0.9 from the environment overrides 0.25 of {conf}",
    )
    assert load(conf, {"ALPHA": "0.9"}, ALPHA="0.1").announcements == ()
    assert load(conf, {"UNRELATED": "x"}).announcements == ()


def test_what_a_launcher_resolved_is_not_announced_as_the_users(conf: Path, tmp_path: Path) -> None:
    environ = {"RESULTS_DIR": str(tmp_path), "ALPHA": "0.4", "HEATLENS_RESOLVED": "CONTAINER_RUNTIME,RESULTS_DIR"}
    settings = load(conf, environ)
    assert settings.results_dir == tmp_path
    assert (settings.origins["RESULTS_DIR"], settings.origins["ALPHA"]) == ("launcher", "environment")
    assert [line.split("=")[0] for line in settings.announcements] == ["ALPHA"]


def test_an_empty_environment_variable_is_a_value(conf: Path) -> None:
    conf.write_text("STOP_AFTER=5\n")
    assert load(conf).stop_after == 5
    assert load(conf, {"STOP_AFTER": ""}).stop_after is None


def test_relative_paths_start_where_their_origin_lies(
    conf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = conf.parents[2]
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    settings = load(conf, {"IMAGE_ROOT": "images"}, RESULTS_DIR="../out")
    assert settings.dataset_path == root / "data" / "q.csv"
    assert settings.image_root == here / "images"
    assert settings.results_dir == tmp_path / "out"
    monkeypatch.setenv("HOME", "/home/someone")
    assert load(conf, {"IMAGE_ROOT": "~/images"}).image_root == Path("/home/someone/images")


def test_default_results_folder_mirrors_the_conf(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = conf.parents[2]
    expected = root / "Attention_Map" / "results" / "group" / "exp"
    assert load(conf).results_dir == expected
    stage = root / "Attention_Map"
    stage.mkdir()
    (stage / "configs").symlink_to("../configs")
    linked = load(stage / "configs" / "group" / "exp.conf")
    assert (linked.results_dir, linked.root, linked.config) == (expected, root, conf)
    monkeypatch.chdir(stage)
    assert load(Path("configs/group/exp.conf")).results_dir == expected


def test_a_conf_outside_configs_is_named_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "mine.v2.conf"
    path.write_text("DATASET_PATH=q.csv\n")
    settings = load(path)
    assert settings.root == tmp_path
    assert settings.results_dir == tmp_path / "Attention_Map" / "results" / "mine.v2"
    assert settings.dataset_path == tmp_path / "q.csv"


def test_a_conf_that_is_a_link_belongs_to_the_folder_it_lies_in(conf: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared.conf"
    target.write_text("ALPHA=0.1\n")
    link = conf.parent / "linked.conf"
    link.symlink_to(target)
    assert load(link).results_dir == conf.parents[2] / "Attention_Map" / "results" / "group" / "linked"


def test_a_model_folder_becomes_absolute(conf: Path, tmp_path: Path) -> None:
    root = conf.parents[2]
    (root / "models" / "m").mkdir(parents=True)
    for text, expected in {
        "./nowhere": f"{root}/nowhere",
        "models/m": f"{root}/models/m",
        "local-dir:models/m": f"local-dir:{root}/models/m",
        "../m": f"{tmp_path}/m",
        "org/model": "org/model",
    }.items():
        conf.write_text(f"MODEL={text}\n")
        assert load(conf).model == expected


def test_blind_sets_template_and_regions() -> None:
    settings = load(BLIND="true")
    assert (settings.prompt_template, settings.regions) == ("{question}", "joint")
    assert settings.origins["REGIONS"] == "flag"
    assert load(BLIND="true", PROMPT_TEMPLATE="{question}", REGIONS="joint").blind


def test_blind_against_another_wish(conf: Path) -> None:
    message = error_of(BLIND="true", REGIONS="split", PROMPT_TEMPLATE="{answer}")
    assert "BLIND=true (flag --blind) means PROMPT_TEMPLATE={question}, but PROMPT_TEMPLATE={answer}" in message
    assert "means REGIONS=joint, but REGIONS=split (flag --regions)" in message
    conf.write_text("REGIONS=split\n")
    stronger = load(conf, BLIND="true")
    assert stronger.regions == "joint"
    assert stronger.announcements == (
        f"BLIND=true (flag --blind) means REGIONS=joint, but REGIONS=split ({conf}:1) is overridden",
    )
    conf.write_text("BLIND=true\n")
    assert "leave one of the two out" in error_of(conf, {"REGIONS": "split"})


def test_shard_index_lies_below_num_shards() -> None:
    assert load(NUM_SHARDS="8", SHARD_INDEX="7").shard_index == 7
    assert "allowed: 0 to 7, as NUM_SHARDS=8" in error_of(NUM_SHARDS="8", SHARD_INDEX="8")


def test_settings_are_immutable_closed_and_checked() -> None:
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.alpha = 0.1  # type: ignore[misc]
    with pytest.raises(ValueError, match="ALPHA: allowed: 0 to 1"):
        Settings(results_dir=Path("/r"), alpha=7)
    with pytest.raises(ValueError, match="Extra inputs"):
        Settings(results_dir=Path("/r"), alpa=0.5)  # type: ignore[call-arg]


def test_unknown_stage_and_flag_name() -> None:
    with pytest.raises(ConfigError, match="unknown stage 'atn_map'; did you mean attn_map"):
        load_settings(None, {}, PATH, "atn_map")
    assert "OUTPUTSIZE (flag): unknown key, did you mean OUTPUT_SIZE?" in error_of(OUTPUTSIZE="3")


def test_check_paths_names_what_is_missing(conf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_paths(load(conf, {"IMAGE_ROOT": str(tmp_path / "none")}))
    text = str(caught.value)
    assert f"DATASET_PATH={conf.parents[2]}/data/q.csv ({conf}): no such file or folder" in text
    assert f"IMAGE_ROOT={tmp_path}/none (environment): no such folder" in text
    with pytest.raises(ConfigError, match="DATASET_PATH is not set"):
        check_paths(load())
    (tmp_path / "a[1].csv").touch()
    (tmp_path / "b.csv").touch()
    for found in ("a[1].csv", "*.csv", "b.csv"):
        check_paths(load(DATASET_PATH=str(tmp_path / found)))
    with pytest.raises(ConfigError, match="no such file"):
        check_paths(load(DATASET_PATH=str(tmp_path / "*.jsonl")))
