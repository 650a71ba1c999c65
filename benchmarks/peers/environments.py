"""Makes the environments that the peers run in, one for each, in a folder that git does not see.

    python benchmarks/peers/environments.py                       # .peers/recbole, .peers/rectools, ...
    python benchmarks/peers/environments.py --only recbole --root /tmp/peers

torch comes first, the version that hydrec is measured with, and every later step pins it: without the pin a
dependency may bring another. A peer whose own pins are stale is installed without them: RecBole 1.2.1 asks
for Ray 2.6 and needs NumPy below 2 and setuptools below 70, which torch 2.13 does not allow; DeepCTR-Torch
0.3.0 does not name what it imports. FuxiCTR's models are no part of its package: they come from its
repository, at one commit. Nothing is patched.
"""

import argparse
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
RECBOLE = "scipy pandas<3 tqdm colorlog==4.7.2 colorama==0.4.4 scikit-learn pyyaml tensorboard thop tabulate"
STEPS = {  # arguments of pip, one call each
    "recbole": [
        [TORCH, "numpy<2", *RECBOLE.split(), "plotly", "texttable", "psutil"],
        ["--no-deps", "setuptools<70", "recbole==1.2.1"],
    ],
    "rectools": [[TORCH, "rectools[torch]==0.19.0"]],
    "replay": [[TORCH, "replay-rec==0.22.0", "lightning<3", "pytorch-optimizer<4", "psutil"]],
    "deepctr": [[TORCH, "deepctr-torch==0.3.0", "pandas", "requests"]],
    "fuxictr": [[TORCH, "fuxictr==2.3.10"]],
}
ZOO = "https://raw.githubusercontent.com/reczoo/FuxiCTR/0245987fdc1d43c36164ea496a02324885a8557a/model_zoo/"
MODELS = (
    *("DIN/src/DIN", "DIEN/src/DIEN", "xDeepFM/src/xDeepFM"),
    *("DeepFM/DeepFM_torch/src/DeepFM", "DCN/DCN_torch/src/DCN"),
)


def make(folder: Path) -> None:
    """Makes the environment of the peer that the folder is named after, or completes it."""
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    for arguments in ([TORCH], *STEPS[folder.name]):
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *arguments], check=True)
    if folder.name == "fuxictr":
        zoo = folder / "zoo"
        zoo.mkdir(exist_ok=True)
        for model in MODELS:
            file = zoo / f"{Path(model).name}.py"
            if not file.exists():
                with urllib.request.urlopen(f"{ZOO}{model}.py", timeout=60) as source:
                    file.write_bytes(source.read())


def main() -> int:
    """Makes those that are asked for; says of each what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="peers; all by default")
    parser.add_argument("--root", type=Path, default=Path(".peers"), help="folder of the environments")
    args = parser.parse_args()
    failed = 0
    for name in args.only:
        try:
            make(args.root.resolve() / name)
            print(f"{name}: {args.root / name}", flush=True)
        except (OSError, subprocess.CalledProcessError) as error:
            failed = 1
            print(f"{name}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
