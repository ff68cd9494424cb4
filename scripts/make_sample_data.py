#!/usr/bin/env python3
"""Write tiny data sets of coloured discs in the exact layouts of the real ones, to try out training without a download.

    python scripts/make_sample_data.py sample_data                    # every source
    python scripts/make_sample_data.py sample_data refcoco mevis      # some of them

The folder is then the data root: `unipixel-jax data check refcoco,mevis --root sample_data`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sample_data import expressions, inst_it, llava, osprey, photos, videorefer, videos

WRITERS = {
    **expressions.WRITERS,
    **videos.WRITERS,
    **photos.WRITERS,
    **videorefer.WRITERS,
    **inst_it.WRITERS,
    **osprey.WRITERS,
    **llava.WRITERS,
}


def main() -> int:
    """Parse the command line and write the data sets; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write to, made if need be")
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"all by default: {', '.join(WRITERS)}")
    args = parser.parse_args()
    if unknown := [name for name in args.sources if name not in WRITERS]:
        parser.error(f"no sample data for {', '.join(unknown)}: expected some of {', '.join(WRITERS)}")
    for name in args.sources or WRITERS:
        WRITERS[name](args.out)
        print(f"{name}: written below {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
