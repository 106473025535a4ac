"""Reports of results that were kept as JSON.

python -m bench.report results.json -o report.html      the page
python -m bench.report results.json --table             the table of the terminal
python -m bench.report results.json --readme            the README's section, on stdout
python -m bench.report results.json --readme README.md  the same, put into its place
"""

import argparse
import sys
from pathlib import Path

from bench import results
from bench.report import page, readme, table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+", help="several are parts of one run")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="write the page there")
    parser.add_argument(
        "--isa",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a run with another instruction set (FASTMHA_ISA), shown beside",
    )
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--readme", nargs="?", const="-", metavar="PATH")
    options = parser.parse_args()
    if not (options.output or options.table or options.readme):
        parser.error("nothing to do: give -o, --table or --readme")
    try:
        run = results.merged([results.read(path) for path in options.results])
        others = [results.read(path) for path in options.isa]
        if options.output:
            options.output.write_text(page.render(run, others), encoding="utf-8")
        if options.table:
            table.print_all(run)
        if options.readme == "-":
            sys.stdout.write(readme.section(run, others))
        elif options.readme:
            path = Path(options.readme)
            text = readme.replace_section(path.read_text(encoding="utf-8"), run, others)
            path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
