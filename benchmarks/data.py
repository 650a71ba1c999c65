"""From raw file to first batch: seconds and peak memory, cold and from the cache, as the file grows.

    python benchmarks/data.py                    # 1, 5 and 20 million rows in MovieLens's csv; 100 in Parquet
    python benchmarks/data.py --rows 1 5 --keep FOLDER

Every figure is that of a process of its own: what it takes beyond importing torch, and the most memory it
held. The catalogue, what models may know of the training part, is made when one asks for it. The rows are
simulated: a log in the shape of MovieLens-1M, again and again with users and items of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from hydrec.data.simulator import Simulator

MILLION = 1_000_000
PARQUET = 100  # million rows and more, by dataset=table: as csv they are 2.6 GB
NEW_ITEMS = 1_300  # of each copy, so that 20 have about as many as MovieLens-20M

CHILD = """
import json, resource, sys, time
import torch
import hydrec.data.files, hydrec.data.module, hydrec.data.movielens, hydrec.data.protocols
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
conf, *overrides = sys.argv[1:]
with initialize_config_dir(conf, version_base="1.3"):
    cfg = compose("train", ["protocol=leave_one_out", *overrides])
before = time.perf_counter()
data = instantiate(cfg.dataset, _convert_="all")
data.prepare()
prepared = time.perf_counter()
batch = next(iter(data.train_dataloader()))
first = time.perf_counter()
data.catalog
print(json.dumps({
    "rows": len(data.log),
    "prepare_s": prepared - before, "batch_s": first - prepared, "catalog_s": time.perf_counter() - first,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "fingerprint": data.log.fingerprint[:12],
}))
"""


def copies(count: int) -> pl.LazyFrame:
    """The rows of a simulated log of a million, so many times."""
    dials = {"preference": 0.8, "timespan": 0.5, "intensity": 0.5, "fields": 0.5, "popularity": 0.8}
    log = Simulator(name="copy", shape="ml-1m", seed=0, factors=8, **dials)()
    rows = slice(0, MILLION)
    columns = {"user": log.users, "item": log.items, "value": log.values, "time": log.times}
    one = pl.DataFrame({name: column[rows] for name, column in columns.items()}).lazy()
    return pl.concat(
        one.with_columns(user=pl.col("user") + copy * log.n_users, item=pl.col("item") + copy * NEW_ITEMS)
        for copy in range(count)
    )


def write(folder: Path, millions: int, parquet: bool) -> Path:
    """Writes so many million rows, unless they are there; returns the file."""
    path = folder / ("rows.parquet" if parquet else "ratings.csv")
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rows = copies(millions)
    if parquet:
        rows.sink_parquet(path)
        return path
    rows.select(userId="user", movieId="item", rating="value", timestamp="time").sink_csv(path)
    movies = pl.DataFrame({"movieId": range(1, 3706 + (millions - 1) * NEW_ITEMS + 1)})
    films = movies.with_columns(title=pl.format("Film {}", "movieId"), genres=pl.lit("Drama"))
    films.write_csv(folder / "movies.csv")
    return path


def measure(file: Path, cache: Path) -> dict:
    """The figures of one process."""
    conf = Path(__file__).resolve().parents[1] / "conf"
    overrides = [f"paths.cache={cache}", "dataset.download=[]"]
    if file.suffix == ".parquet":
        overrides += ["dataset=table", f"dataset.reader.path={file}", "dataset.reader.columns.value=value"]
    else:
        overrides += ["dataset=movielens_20m", f"paths.data={file.parents[1]}"]
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(conf), *overrides], check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table of all sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 20, 100], help="millions of rows")
    parser.add_argument("--keep", type=Path, help="folder for the files, kept; otherwise a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = args.keep or Path(temporary)
        print(
            "| million rows | file, MB | first time, s | s a million | peak MiB | from the cache, s |"
            " first batch, s | catalogue, s | peak MiB |"
        )
        print(f"{'|---' * 9}|")
        for millions in args.rows:
            file = write(home / f"{millions}m" / "ml-20m", millions, millions >= PARQUET)
            size = file.stat().st_size / 1e6
            with tempfile.TemporaryDirectory(dir=home) as cache:
                cold, warm = (measure(file.resolve(), Path(cache)) for _ in range(2))
            assert cold["fingerprint"] == warm["fingerprint"] and cold["rows"] == millions * MILLION
            print(
                f"| {millions} | {file.suffix[1:]}, {size:.0f} | {cold['prepare_s']:.1f} |"
                f" {cold['prepare_s'] / millions:.2f} | {cold['peak_mib']:,} | {warm['prepare_s']:.2f} |"
                f" {warm['batch_s']:.2f} | {warm['catalog_s']:.2f} | {warm['peak_mib']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
