"""Writes the tables of benchmarks/README.md from the summaries in benchmarks/results.

    python benchmarks/tables.py           # writes them
    python benchmarks/tables.py --check   # exits 1 if the page isn't what it would write

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is the file's, without .json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from compresskit.suite.summary import FORMAT, markdown

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "README.md"
_BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(path: Path) -> str:
    """The table of one summary, with the command for itself left as it was run."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != FORMAT:
        raise SystemExit(f"{path} is no summary of a suite")
    return markdown(content)


def written(page: str, results: Path) -> str:
    """``page`` with every table made anew.

    Raises:
        SystemExit: the page names a summary that isn't there.
    """

    def replace(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        if not path.is_file():
            raise SystemExit(f"{PAGE.name} names {path.name}, which isn't in {results}")
        return f"{match[1]}{table(path)}{match[3]}"

    return _BLOCK.sub(replace, page)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    options = parser.parse_args(arguments)
    before = PAGE.read_text(encoding="utf-8")
    after = written(before, FOLDER / "results")
    if options.check:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
