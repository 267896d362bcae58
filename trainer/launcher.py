"""`accelerate launch` for one job, without a port that listens and without the person's own accelerate settings.

Run by trainer/launch.py as a process of its own, which dies with it. The processes find each other by files in a folder
of the job: torch's own store listens on every address of the machine (https://github.com/pytorch/pytorch/issues/173909).
"""

import argparse
import json
import sys
from pathlib import Path

from trainer.rank_line import die_with

# What a person's own default_config.yaml would say otherwise.
_SETTINGS = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # on a CPU too: --cpu would start one process
    "mixed_precision": "no",
    "num_machines": 1,
    "machine_rank": 0,
    "gpu_ids": "all",
    "use_cpu": False,
    "debug": False,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.launcher")
    parser.add_argument("job")
    parser.add_argument("--line", required=True)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with(options.parent)
    settings = options.shared / "accelerate.json"
    settings.write_text(json.dumps({**_SETTINGS, "num_processes": options.processes}))

    from accelerate.commands.launch import launch_command, launch_command_parser

    launch = launch_command_parser().parse_args(
        [
            "--config_file", str(settings), "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--num_processes", str(options.processes), "--main_process_port", "0",
            "--max_restarts", "0", "--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file",
            "--module", "trainer", options.job, "--line", options.line,
        ]
    )  # fmt: skip
    launch.rdzv_endpoint = str(options.shared / "rendezvous")  # torchrun's own; accelerate hands them on
    launch.local_addr = "127.0.0.1"
    launch_command(launch)


if __name__ == "__main__":
    main(sys.argv[1:])
