"""A Slurm cluster of one node, this machine, for as long as the tests of a module run: no database, a pretended GPU."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from helpers import wait_until

SYSTEM_CONFIG = Path("/etc/slurm/slurm.conf")  # the one place where a job step looks for it
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
SEARCH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian keeps daemons

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MinJobAge=600
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=64000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Returns why no cluster can be started here; None if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} not found): apt-get install slurm-wlm munge"
    if SYSTEM_CONFIG.exists():
        return f"{SYSTEM_CONFIG} belongs to a Slurm that is in use"
    if not os.access(SYSTEM_CONFIG.parent, os.W_OK):
        return f"{SYSTEM_CONFIG.parent} cannot be written to, and Slurm finds its configuration nowhere else"
    return None


@contextmanager
def start_cluster(folder: Path) -> Iterator[None]:
    """Starts the daemons, with keys, logs and state in a folder; ends every job and every daemon afterwards."""
    config = _configure(folder)
    environment = {**os.environ, "SLURM_CONF": str(config)}
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--{what}-file={folder}/munged.{what}" for what in ("key", "pid", "log", "seed")]
    with ExitStack() as ending:
        SYSTEM_CONFIG.unlink(missing_ok=True)  # a link into a folder that is gone
        SYSTEM_CONFIG.symlink_to(config)
        ending.callback(SYSTEM_CONFIG.unlink)
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = ending.enter_context((folder / f"{command[0]}.out").open("w"))
            command[0] = shutil.which(command[0], path=SEARCH)
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            ending.callback(_end, process)
            if "munged" in command[0]:
                wait_until((folder / "munge.socket").exists, 60, "munge.socket")
        wait_until(lambda: ask("sinfo", "--noheader", "--format=%t") == "idle", 60, "idle node")
        ending.callback(end_jobs)
        yield


def ask(*command: str) -> str:
    """Returns what a command of Slurm prints, without the newline at its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def end_jobs() -> None:
    """Ends whatever is queued or runs."""
    subprocess.run(["scancel", "--full", "--signal=KILL", "--state=RUNNING"], check=False)
    subprocess.run(["scancel", "--state=PENDING"], check=False)
    wait_until(lambda: ask("squeue", "--noheader") == "", 60, "empty queue")


def _configure(folder: Path) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munged.key").write_bytes(os.urandom(128))
    (folder / "munged.key").chmod(0o600)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    config.write_text(CONFIG.format(folder=folder, host=host, user=user, ports=_free_ports(2)))
    return config


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_:
        sockets = [open_.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait(timeout=60)
