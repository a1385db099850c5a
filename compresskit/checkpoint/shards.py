"""Writing a checkpoint part by part: one weight file a part, read back at once, then config and index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compresskit.checkpoint import contents, guard
from compresskit.checkpoint.addresses import path_of
from compresskit.checkpoint.diff import stored_name
from compresskit.checkpoint.faults import point
from compresskit.checkpoint.load import CompressedConfig, describe, stored_state
from compresskit.checkpoint.locate import Location
from compresskit.checkpoint.readback import corrupted, same_bits
from compresskit.checkpoint.skeleton import tie_groups
from compresskit.checkpoint.source import Source
from compresskit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ShardWriter:
    """Writes the compressed checkpoint of a model of which one part at a time has values.

    Args:
        model: as ``StreamedModel`` gives it.
        folder: an empty one.
        count: how many files there will be.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, count: int) -> None:
        self.model, self.folder, self.count = model, folder, count
        self.written: dict[str, list[str]] = {}
        self.bytes = 0

    def write(self) -> None:
        """Write the tensors that have values now to a file of their own, and compare what it then holds.

        Raises:
            ModelError: CK-I015, the file gives other bits.
        """
        state = {name: value for name, value in stored_state(self.model).items() if value.device.type != "meta"}
        self._write(f"model-{len(self.written) + 1:05d}-of-{self.count:05d}.safetensors", state)
        point(f"stream.{len(self.written)}.written")

    def _write(self, file: str, state: dict[str, Tensor]) -> None:
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        path = self.folder / file
        path.unlink(missing_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})
        with safe_open(str(path), framework="pt") as again:
            if set(again.keys()) != tensors.keys():
                raise corrupted(self.folder, f"{file} has other names")
            for name, tensor in tensors.items():
                if not same_bits(tensor, again.get_tensor(name)):
                    raise corrupted(self.folder, f"{name} has other values")
        self.written[file] = list(tensors)
        self.bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self) -> bool:
        """Write config and index, after the last part; whether the result is a stock checkpoint, which it never is.

        Raises:
            ModelError: CK-L065, nothing was compressed; as ``describe`` for what can't be described.
        """
        settings = describe(self.model)
        if settings is None:
            raise ModelError("CK-L065", "nothing of the model was compressed part by part")
        self._hide(settings)
        config = self.model.config
        config.quantization_config = settings
        config.dtype = str(self.model.dtype).removeprefix("torch.")
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(self.folder)
        places = {name: file for file, names in self.written.items() for name in names}
        index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(places.items()))}
        (self.folder / contents.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return False

    def _hide(self, settings: CompressedConfig) -> None:
        """Write the file anew that has the parameter which guards the checkpoint."""
        name = str(path_of(self.model, settings.guard))
        group = next(group for group in tie_groups(self.model, known=False) if name in group)
        kept = stored_name(self.model, group)
        file = next(file for file, names in self.written.items() if kept in names)
        with safe_open(str(self.folder / file), framework="pt") as stored:
            state = {each: stored.get_tensor(each).clone() for each in stored.keys()}  # noqa: SIM118
        self.bytes -= sum(tensor.nbytes for tensor in state.values())
        guard.hide(state, kept)
        self._write(file, state)

    def check(self) -> Source:
        """Open what was written as any source, and compare names, shapes, types and config with the model.

        The bits were compared file by file; ``describe`` has proved that the layout gives this model back.

        Raises:
            ModelError: CK-I015, or what opening a damaged source gives.
        """
        source = Source(str(self.folder), Location(self.folder))
        if (self.folder / "config.json").read_text(encoding="utf-8") != self.model.config.to_json_string(use_diff=True):
            raise corrupted(self.folder, "config.json is not the model's config")
        expected = stored_state(self.model)
        guarded = [name for name in source.tensors if name.endswith(guard.SUFFIX) and name not in expected]
        names = (source.tensors.keys() - set(guarded)) ^ expected.keys()
        if names or len(guarded) != 1:
            raise corrupted(self.folder, f"other names: {', '.join(sorted(names)[:5])}")
        hidden = guarded[0].removesuffix(guard.SUFFIX)
        for name, tensor in expected.items():
            found = source.tensors[guarded[0] if name == hidden else name]
            if found.shape != tuple(tensor.shape) or found.end - found.begin != tensor.nbytes:
                raise corrupted(self.folder, f"{name} has another shape or type")
        _ = source.fingerprint
        return source
