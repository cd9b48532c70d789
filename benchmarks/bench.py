"""Every performance benchmark in turn; prints their tables, and all numbers in one JSON file.

make bench
python -m benchmarks.bench --quick
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

OUT = Path("benchmarks/out")
FULL = {
    "features": [],
    "levels": [],
    "replay": ["--sessions", "40"],
    "replay_store_only": ["--sessions", "40", "--no-registry"],
    "poll": ["--symbols", "1,31,500"],
    "growth": ["--sessions", "20,250,2500"],
    "retraining": ["--rows", "10000,100000,1000000,5000000"],
    "bins": ["--runs", "16"],
    "dask_training": ["--rows", "10000,100000,1000000"],
    "backfill": ["--sessions", "63", "--symbols", "31", "--at-once", "1,2"],
}
QUICK = FULL | {
    "replay": ["--sessions", "8"],
    "replay_store_only": ["--sessions", "8", "--no-registry"],
    "poll": ["--symbols", "1,31", "--polls", "20"],
    "growth": ["--sessions", "20,100"],
    "retraining": ["--rows", "10000,100000"],
    "bins": ["--runs", "2"],
    "dask_training": ["--rows", "10000"],
    "backfill": ["--sessions", "6", "--symbols", "2", "--run-sessions", "2", "--at-once", "1,2"],
}


def main() -> None:
    """Runs them; one that fails does not stop the others, but the exit code says so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--only", help="names, comma-separated")
    arguments = parser.parse_args()
    wanted = QUICK if arguments.quick else FULL
    only = arguments.only.split(",") if arguments.only else list(wanted)
    found, failed = {}, []
    for name in only:
        out = OUT / f"{name}.json"
        module = f"benchmarks.{name.removesuffix('_store_only')}"
        command = [sys.executable, "-W", "ignore", "-m", module, *wanted[name], "--out", str(out)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        else:
            found[name] = json.loads(out.read_text())
    (OUT / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
