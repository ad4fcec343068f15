"""flair-jax doctor: checks of a download or a built data set."""

import argparse
import json
import signal
import sys

from flair_jax.errors import UserError

EXAMPLES = (
    "flair-jax doctor --source=/data/flair_download",
    "flair-jax doctor --data_dir=/data/tfds --sample=0 --strict",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add(
        "--source",
        default="",
        metavar="DIR",
        help="folder of the download; zips need not be unpacked",
    )
    add("--data_dir", metavar="DIR", help="the --data_dir of a build ('' is TFDS's own)")
    add(
        "--data_config", default="published", metavar="NAME",
        help="the --config of that build (published)",
    )  # fmt: skip
    add("--sample", type=int, default=3000, metavar="N", help="patches to open (3000); 0: all")
    add("--seed", type=int, default=0, metavar="N", help="of the sample")
    add("--num_workers", type=int, default=0, metavar="N", help="processes (one per CPU)")
    add("--output", default="doctor.json", metavar="FILE", help="to write (doctor.json)")
    add(
        "--strict", action="store_true",
        help="exit with status 1 for warnings too, as for faults",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Prints the checks and writes them; returns the exit status, which is 1 for faults."""
    from etils import epath

    from flair_jax.doctor import examine
    from flair_jax.doctor.findings import SEVERITIES, worst
    from flair_jax.runtime.atomic_io import atomic_write

    options = vars(args)
    output, strict = epath.Path(options.pop("output")), options.pop("strict")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        scan, findings = examine.doctor(**options, progress=True)
        print(examine.as_text(scan, findings))
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(output, json.dumps(examine.as_json(scan, findings), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written ({error})") from error
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    counts = ", ".join(
        f"{severity} {sum(f.severity == severity for f in findings)}"
        for severity in reversed(SEVERITIES)
    )
    severity = worst(findings)
    print(f"\n{counts}; worst: {severity}. Written to {output}")
    return int(severity == "fault" or (strict and severity == "warning"))
