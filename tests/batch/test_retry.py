"""The retry column: a line that a shell takes apart into the same settings again."""

from __future__ import annotations

import shlex
from pathlib import Path

from heatlens.batch.retry import HOST_COMMAND, retry_command
from heatlens.config import load_settings, parse_arguments
from tests.batch.kit import make_settings

ALONE = ["--num-shards", "1", "--shard-index", "0"]


def test_retry_line_gives_the_same_settings(tmp_path):
    folder = tmp_path / "it's a; folder $(x)"
    folder.mkdir()
    settings = make_settings(folder, STOP_AFTER=3, QUESTION_TYPES="open_ended,multi_choice", SAVE_RAW_CAM=True)
    words = shlex.split(retry_command(settings))
    conf, flags = parse_arguments("attn_map", words[2:])
    again = load_settings(conf, flags, {}, "attn_map")
    assert again == settings.model_copy(
        update={"retry_failed": True, "origins": {**settings.origins, "RETRY_FAILED": "flag"}}
    )


def test_retry_line_names_the_conf_and_what_overrode_it(tmp_path):
    conf = tmp_path / "configs" / "my exp.conf"
    conf.parent.mkdir()
    conf.write_text("DATASET=phantom\nMODEL=demo\nALPHA=0.3\n", encoding="utf-8")
    settings = load_settings(conf, {"OVERWRITE": "true", "SHARD_INDEX": "0"}, {"TOPK": "7"}, "attn_map")
    words = shlex.split(retry_command(settings))
    assert words[2:] == ["--config", str(conf), "--topk", "7", *ALONE, "--retry-failed", "true"]
    assert Path(words[1]).is_absolute()


def test_all_shards_write_the_same_line(tmp_path):
    lines = {retry_command(make_settings(tmp_path, NUM_SHARDS=2, SHARD_INDEX=index)) for index in (0, 1)}
    assert len(lines) == 1


def test_a_container_names_its_host_command(tmp_path, monkeypatch):
    monkeypatch.setenv(HOST_COMMAND, "bash '/data/my repo/submit_heatmap_gen.sh' configs/x.conf")
    assert retry_command(make_settings(tmp_path)) == (
        "RETRY_FAILED=true NUM_SHARDS=1 SHARD_INDEX=0 bash '/data/my repo/submit_heatmap_gen.sh' configs/x.conf"
    )
