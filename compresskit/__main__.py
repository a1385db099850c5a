"""``python -m compresskit``: the command line, also as ``torchrun -m compresskit``."""

from compresskit.cli.main import console_script

if __name__ == "__main__":
    console_script()
