"""The state between steps: what is resumed, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.checkpoint.source import open_source
from compresskit.errors import UsageError
from compresskit.pipeline.workspace import Workspace


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}'])
def test_f54_resume_from_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        Workspace(tmp_path, {}, keep_steps=True).start(resume=True)
    assert caught.value.code == "CK-U012"
    assert "damaged" in caught.value.why


def test_a_step_is_resumed_on_the_device_of_the_run(source: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", {}, keep_steps=True)
    workspace.start(resume=False)
    workspace.finish_step(open_source(source).load_model(), {})
    assert workspace.load("meta").device.type == "meta"
