"""Trains on a Slurm cluster, or on several processes of this machine, through submitit.

    python tools/submit.py DETR-ENACT --nodes 2 --ngpus 4 --partition gpu --coco_path coco --batch_size 1 --output_dir runs/detr

Everything that is no option of this command goes to the folder's ``main.py``. A job that runs out of time, or is preempted, is put
into the queue again and goes on from its last checkpoint, as does a second submission to the same ``--output_dir``, whatever
``--resume`` or ``--finetune`` it names: these say where a run starts, and this one has. The logs of all processes are in its folder
``slurm``.
"""

import argparse
import os
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli.arguments import Parser, number
from common.errors import UserError

MAX_REQUEUES = 30
FAILURES = (2, 130)  # exit codes of main.py: a mistake of the user, an interrupt
FIRST_PORT, PORTS = 20000, 20000  # where the processes of a job meet, by its number


@dataclass(frozen=True)
class Training:
    """What each process of a job runs: ``main.py``, from the last checkpoint where there is one.

    Attributes:
        main: the folder's command.
        argv: its options.
        output_dir: one of these.
    """

    main: Path
    argv: tuple[str, ...]
    output_dir: Path

    def __call__(self) -> None:
        """RuntimeError where the command fails."""
        from submitit import JobEnvironment

        job = JobEnvironment()
        port = FIRST_PORT + int(str(job.job_id).partition("_")[0]) % PORTS
        places = {"RANK": job.global_rank, "WORLD_SIZE": job.num_tasks, "LOCAL_RANK": job.local_rank}
        meeting = {"MASTER_ADDR": job.hostnames[0], "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (places | meeting).items()})
        sys.path.insert(0, str(self.main.parent))
        sys.argv = [str(self.main), *self.options()]
        try:
            runpy.run_path(str(self.main), run_name="__main__")
        except SystemExit as end:
            if end.code in FAILURES:
                raise RuntimeError(f"{self.main} ended with code {end.code}") from end
            if end.code:  # submitit's own, which has put the job into the queue
                raise

    def options(self) -> list[str]:
        """Those given; where the folder has a checkpoint, from there on instead of from what the run has started from."""
        last = self.output_dir / "checkpoint.pth"
        if not last.is_file():
            return [*self.argv]
        starts = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("--resume", "--finetune"):
            starts.add_argument(name)
        return [*starts.parse_known_args(self.argv)[1], "--resume", str(last)]

    def checkpoint(self):
        """What submitit puts into the queue when the time is up: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def build_parser() -> Parser:
    folders = sorted(path.parent.name for path in ROOT.glob("*/main.py"))
    parser = Parser(prog="tools/submit.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    positive = number(int, 1)
    parser.add_argument("folder", choices=folders, help="the detector's")
    parser.add_argument("--output_dir", type=Path, required=True, help="of the run; every node must see it")
    parser.add_argument("--nodes", type=positive, default=1, help="default: %(default)s")
    parser.add_argument("--ngpus", type=positive, default=8, help="GPUs, and processes, of a node (default: %(default)s)")
    parser.add_argument("--cpus", type=positive, default=10, help="cores for each process (default: %(default)s)")
    parser.add_argument("--mem", type=positive, default=40, help="GB for each process (default: %(default)s)")
    parser.add_argument("--time", type=positive, default=60, help="minutes until the job is put into the queue again (default: 60)")
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("--account", help="that pays")
    parser.add_argument("--constraint", help="on the nodes, such as a kind of GPU")
    parser.add_argument("--qos", help="quality of service")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: processes of this machine")
    return parser


def build_executor(args: argparse.Namespace):
    """submitit's executor with the options; UserError where there is none."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("submitting needs submitit: pip install submitit") from error
    if args.cluster == "slurm" and not shutil.which("srun"):
        raise UserError("this machine has no Slurm (srun): submit from a login node of the cluster, or pass --cluster local")
    if args.cluster == "local" and args.nodes > 1:
        raise UserError(f"--cluster local is this machine alone: leave out --nodes {args.nodes}")
    executor = submitit.AutoExecutor(folder=args.output_dir / "slurm", cluster=args.cluster, slurm_max_num_timeout=MAX_REQUEUES)
    chosen = {name: getattr(args, name) for name in ("partition", "account", "constraint", "qos")}
    executor.update_parameters(
        name=args.folder,
        nodes=args.nodes,
        tasks_per_node=args.ngpus,
        gpus_per_node=args.ngpus,
        cpus_per_task=args.cpus,
        mem_gb=args.mem * args.ngpus,
        timeout_min=args.time,
        **{f"slurm_{name}": value for name, value in chosen.items() if value},
    )
    return executor


def submit(argv: list[str] | None = None) -> None:
    """Submits a job; one of this machine is waited for."""
    args, others = build_parser().parse_known_args(argv)
    args.output_dir = args.output_dir.resolve()
    executor, logs = build_executor(args), args.output_dir / "slurm"
    job = executor.submit(
        Training(ROOT / args.folder / "main.py", (*others, "--output_dir", str(args.output_dir)), args.output_dir)
    )
    print(f"job {job.job_id}; logs in {logs}", flush=True)
    if args.cluster == "local":
        try:
            job.results()
        except Exception as error:
            raise UserError(f"job {job.job_id} failed: look at {logs}") from error


def main(argv: list[str] | None = None) -> int:
    try:
        submit(argv)
    except UserError as error:
        print(f"tools/submit.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
