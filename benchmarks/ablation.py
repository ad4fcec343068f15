"""A small version of the published ablation: metadata and augmentation, over several seeds.

    python benchmarks/ablation.py --data_dir=DATA_DIR --output=runs/ablation \
        [--seeds=1,2,3] [--epochs=2] [--batch_size=2] [--learning_rate=0.02]

Runs `flair-jax train` for every arm and seed, seed by seed. All arms of a seed start the U-Net from
the same weights. Then prints the tables of `flair-jax summarize`. Runs that already exist are not
repeated.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
METADATA = "--config.metadata.use=True"
AUGMENT = "--config.augment=True"
CORRECTED = ("--config.metadata.encoding=corrected", "--config.metadata.fusion=channels")
ARMS = {
    "baseline": (),
    "metadata": (METADATA,),
    "augmentation": (AUGMENT,),
    "metadata_augmentation": (METADATA, AUGMENT),
    "corrected_channels_augmentation": (METADATA, AUGMENT, *CORRECTED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=0.02)
    args = parser.parse_args()
    common = {
        "data_dir": args.data_dir,
        "num_epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
    }
    workdirs = []
    for seed in args.seeds.split(","):
        for arm, changes in ARMS.items():
            workdir = Path(args.output, f"{arm}-{seed}").resolve()
            workdirs.append(str(workdir))
            flags = [f"--config.{key}={value}" for key, value in common.items()]
            flags += [f"--config.seed={seed}", *changes, f"--workdir={workdir}"]
            print(f"== {arm}, seed {seed}", flush=True)
            command = [sys.executable, "-m", "flair_jax", "train", "--config=baseline"]
            subprocess.run([*command, *flags], cwd=ROOT, check=True)
    summarize = [sys.executable, "-m", "flair_jax", "summarize", "--markdown", *workdirs]
    subprocess.run(summarize, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
