from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from compresskit.errors import DataError
from compresskit.tasks.data import exists, records

ROWS = {"text": ["a cat", "a dog"], "label": [0, 1]}


def found(data: str | Path) -> list[object]:
    return [record for _, record in records(data)]


def test_local_data_sets_are_read_by_datasets(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict(ROWS)
    whole.save_to_disk(tmp_path / "saved")
    whole.to_parquet(tmp_path / "rows.parquet")
    expected = [{"text": "a cat", "label": 0}, {"text": "a dog", "label": 1}]
    assert found(tmp_path / "saved") == expected
    assert found(tmp_path / "rows.parquet") == expected


def test_a_name_on_the_hub_is_split_into_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(name: str, config: str | None, **options: str | None) -> datasets.Dataset:
        asked.update(name=name, config=config, **options)
        return datasets.Dataset.from_dict(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(found("hub:glue@abc:sst2#validation")) == 2
    assert asked == {"name": "glue", "config": "sst2", "revision": "abc", "split": "validation"}
    found("hub:owner/set#test")
    assert asked == {"name": "owner/set", "config": None, "revision": None, "split": "test"}


@pytest.mark.parametrize("name", ["hub:glue", "hub:#test", "hub:a/b/c#test", "hub:a#"])
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        found(name)
    assert caught.value.code == "CK-D050"


def test_what_datasets_cannot_give_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    for data in (tmp_path / "empty", tmp_path / "broken.parquet"):
        with pytest.raises(DataError) as caught:
            found(data)
        assert caught.value.code == "CK-D050"
    with pytest.raises(DataError) as caught:
        found(tmp_path / "none.parquet")
    assert caught.value.code == "CK-D001"


def test_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(ROWS)}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="several splits") as caught:
        found(tmp_path / "both")
    assert "train" in caught.value.fix
    assert len(found(tmp_path / "both" / "train")) == 2


def test_what_is_on_the_hub_is_taken_to_be_there(tmp_path: Path) -> None:
    assert exists("hub:glue#test")
    assert exists(tmp_path)
    assert not exists(tmp_path / "none.tsv")
