"""Two hosts on one machine: a run over both, one of which is cut off and killed, comes back and ends as if on one.

    python -m tests.programs.two_hosts    # needs to be root, or allowed to make user namespaces

Each host is a network namespace with two processes; a pair of virtual network cards joins them. Says what it does,
and ends with status 0 if the run came back and its metrics are those of a run of four processes on one host, 77 if
the system allows no namespaces or lacks `ip` (package iproute2), else 1.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.helpers.faults import ThinNetwork
from tests.helpers.forked import start_group
from tests.helpers.project import importing_tests
from train_utils.demo_dataset import make_demo_dataset

SKIPPED = 77
FIRST, SECOND = (f"mrcnn-{os.getpid()}-{letter}" for letter in "ab")
HOSTS = {FIRST: "10.77.0.1", SECOND: "10.77.0.2"}
PORT = "29477"
OPTIONS = ["--device", "cpu", "--data-path", "data", "--min-size", "64", "--max-size", "96", "--rois-per-image", "8"]
OPTIONS += ["--batch-size", "1", "--workers", "0", "--print-freq", "1", "--pretrain", "False", "--norm", "frozen"]
OPTIONS += ["--lr", "0.01", "--checkpoint-every", "1", "--resume", "auto", "--timeout", "10"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=16, help="to train on")
    parser.add_argument("--thin", action="store_true", help="with a thin network, for a quick try")
    args = parser.parse_args()
    if not shutil.which("ip"):
        print("skipped: no program `ip` here (package iproute2)")
        return SKIPPED
    if os.geteuid() != 0:
        # A user's own namespaces need no root: this process starts anew inside them.
        inside = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
        if not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False).returncode:
            print("skipped: no network namespaces here (needs root, or user namespaces)")
            return SKIPPED
        own_names = 'mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec "$@"'
        again = [sys.executable, "-m", "tests.programs.two_hosts", *sys.argv[1:]]
        return subprocess.run([*inside, "sh", "-c", own_names, "-", *again], check=False).returncode
    try:
        join_hosts()
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", b"") or b"").decode().strip() or error
        print(f"skipped: no network namespaces here ({said})")
        part_hosts()
        return SKIPPED
    folder = Path(tempfile.mkdtemp(prefix="two_hosts_"))
    try:
        return compare(folder, args)
    except RuntimeError as error:
        print(error, *(text.read_text() for text in sorted(folder.glob("*.txt"))), sep="\n")
        return 1
    finally:
        part_hosts()
        shutil.rmtree(folder)


def compare(folder: Path, args: argparse.Namespace) -> int:
    make_demo_dataset(folder / "data", num_train=args.pictures, num_val=4)
    words = [*OPTIONS, "--epochs", str(args.epochs)]
    started = time.monotonic()
    prepare = dict.fromkeys(range(4), ThinNetwork() if args.thin else None)
    one_host = start_group(4, "train_multi_GPU.py", [*words, "--output-dir", "one"], folder, prepare)
    if any([run.wait() for run in one_host]):
        print(one_host[0].said)
        return 1
    print(f"one host, four processes: done after {time.monotonic() - started:.0f} s", flush=True)

    started = time.monotonic()
    hosts = {host: host_run(host, words, folder, args.thin) for host in HOSTS}
    steps = args.epochs * args.pictures // 4
    wait_for_step(folder / "two", steps // 3, hosts)
    print(f"two hosts: the second is cut off after step {steps // 3} of {steps}", flush=True)
    in_host(SECOND, "ip", "link", "set", "card", "down")
    wait_for_text(folder / f"{FIRST}.txt", "no progress for 10 s", hosts[FIRST])
    named = next(line for line in (folder / f"{FIRST}.txt").read_text().splitlines() if "no progress for 10 s" in line)
    print(f"two hosts: the first says: {named}", flush=True)
    kill_host(SECOND)
    hosts[SECOND].wait()
    in_host(SECOND, "ip", "link", "set", "card", "up")
    hosts[SECOND] = host_run(SECOND, words, folder, args.thin)
    print("two hosts: the second is killed, back, and started again by the same command", flush=True)
    if any(run.wait() for run in hosts.values()):
        print(*((folder / f"{host}.txt").read_text() for host in HOSTS), sep="\n")
        return 1
    print(f"two hosts: done after {time.monotonic() - started:.0f} s", flush=True)
    return report(folder, args.epochs)


def report(folder: Path, epochs: int) -> int:
    same = True
    for name in ("det_results.txt", "seg_results.txt"):
        one, two = (numbers(folder / run / name) for run in ("one", "two"))
        largest = max(abs(a - b) for a, b in zip(one, two))
        same &= len(one) == len(two) == epochs * 15 and largest <= 2e-4
        print(f"{name}: {len(two)} numbers, the largest difference is {largest:.4f}; mask or box AP {two[-14]:.4f}")
    weights = [
        torch.load(folder / run / f"model_{epochs - 1}.pth", weights_only=True)["model"] for run in ("one", "two")
    ]
    difference = max((weights[0][k].double() - weights[1][k].double()).abs().max().item() for k in weights[0])
    logged = [json.loads(line)["step"] for line in (folder / "two" / "log.jsonl").read_text().splitlines()]
    print(f"weights: the largest difference is {difference:.1e}")
    print(f"log: {len(logged)} steps, {'each once' if logged == list(range(1, len(logged) + 1)) else 'NOT each once'}")
    same &= difference < 1e-4 and logged == list(range(1, len(logged) + 1))
    print("the same run" if same else "NOT the same run")
    return 0 if same else 1


def numbers(path: Path) -> list[float]:
    return [float(word.removeprefix("epoch:")) for word in path.read_text().split()]


# ----------------------------------------------------------------------------------------------------------- processes


def host_run(host: str, words: list[str], folder: Path, thin: bool) -> subprocess.Popen:
    launcher = ["--nnodes=2", "--nproc_per_node=2", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=two_hosts"]
    launcher += [f"--rdzv-endpoint={HOSTS[FIRST]}:{PORT}", f"--local-addr={HOSTS[host]}"]
    # Both hosts have this machine's name, by which torchrun would know the one that holds the store.
    launcher += [f"--rdzv-conf=is_host={int(host == FIRST)}"]
    return torchrun(launcher, [*words, "--output-dir", "two"], folder, thin, host)


def torchrun(launcher: list[str], words: list[str], folder: Path, thin: bool, host: str) -> subprocess.Popen:
    command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", *launcher]
    command += ["-m", "tests.programs.with_fault", "train_multi_GPU.py", *words]
    variables = {**importing_tests(os.environ), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    variables["THIN"] = "1" if thin else ""
    variables["GLOO_SOCKET_IFNAME"] = "card"
    # Else the launcher that stayed tells its address to none that comes later, and both wait in vain.
    variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(folder / f"{host}.txt", "a") as out:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=out, stderr=out, start_new_session=True)


def wait_for_step(folder: Path, step: int, hosts: dict[str, subprocess.Popen], seconds: float = 600) -> None:
    log, end = folder / "log.jsonl", time.monotonic() + seconds
    while not (log.is_file() and len(log.read_text().splitlines()) >= step):
        if time.monotonic() > end or any(run.poll() is not None for run in hosts.values()):
            raise RuntimeError(f"the run on two hosts did not get to step {step}")
        time.sleep(0.1)


def wait_for_text(path: Path, text: str, run: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while text not in path.read_text():
        if time.monotonic() > end or run.poll() is not None:
            raise RuntimeError(f"{path.stem} never said '{text}'")
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------- namespaces


def join_hosts() -> None:
    part_hosts()
    for host in HOSTS:
        command("ip", "netns", "add", host)
    command("ip", "link", "add", "card", "netns", FIRST, "type", "veth", "peer", "name", "card", "netns", SECOND)
    for host, address in HOSTS.items():
        in_host(host, "ip", "addr", "add", f"{address}/24", "dev", "card")
        in_host(host, "ip", "link", "set", "lo", "up")
        in_host(host, "ip", "link", "set", "card", "up")


def part_hosts() -> None:
    for host in HOSTS:
        kill_host(host)
        subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def kill_host(host: str) -> None:
    pids = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout.split()
    for pid in pids:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def in_host(host: str, *words: str) -> None:
    command("ip", "netns", "exec", host, *words)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
