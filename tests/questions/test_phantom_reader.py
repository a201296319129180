"""DATASET=phantom: the demo data set is written on first use and read as GEMeX."""

from __future__ import annotations

import shutil

from row_factory import DATA

from heatlens.phantom import reader as phantom


def test_the_data_set_is_written_then_read_as_gemex(tmp_path, monkeypatch):
    def write(folder):
        shutil.copytree(DATA / "gemex", folder, dirs_exist_ok=True)
        (folder / "truth.jsonl").write_text('{"image_path": "files/x.jpg"}')
        return folder

    monkeypatch.setattr(phantom, "ensure_dataset", write)
    reader = phantom.PhantomReader(tmp_path / "a [demo]")
    assert reader.image_root() == tmp_path / "a [demo]"
    rows = list(reader.rows())
    assert len(rows) == 6 and not any(row.error for row in rows)
