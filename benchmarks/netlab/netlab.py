"""A cluster in a box: several hosts on this machine, with ssh between them and shaped links.

    netlab.py up --hosts 4 --gbit 1        make a lab
    netlab.py exec node0 -- ssh node1 hostname
    netlab.py shell node0                  open a shell; `exit` leaves it
    netlab.py down                         remove the lab

Needs root, iproute2, util-linux and an OpenSSH server. The hosts node0, node1, … share the files
and cores of this machine, but have their own network. More in docs/how-to/netlab.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.netlab.lab import ROOT, SUBNET, Lab, LabError, labs, remove, why_not


def up(args: argparse.Namespace) -> None:
    """Make a lab that stays until `down`."""
    gbit = args.gbit or None
    nics = args.nics.split(",")
    lab = Lab(
        args.hosts, link_gbit=gbit, nics=nics, docker0=args.docker0, keep=True, name=args.name
    )
    speed = f"{gbit:g} Gbit/s each way" if gbit else "no limit"
    for k, name in enumerate(lab.hosts):
        print(f"{name}  {lab.address(k)}  {lab.nics[k]}  {speed}")
    print(f"subnet {SUBNET}; files in {lab.folder}; netlab.py shell node0 opens a shell")


def execute(args: argparse.Namespace) -> None:
    """Replace this process by a command on a host."""
    lab = Lab.attach(args.name)
    if args.host not in lab.hosts:
        raise LabError(f"netlab: no host {args.host}, the lab has {', '.join(lab.hosts)}")
    host = lab.hosts.index(args.host)
    command = args.command if args.action == "exec" else [os.environ.get("SHELL", "/bin/sh")]
    words = [*lab.inside(host), *command]
    os.execvp(words[0], words)


def down(args: argparse.Namespace) -> None:
    """Remove one lab."""
    if not (ROOT / args.name).is_dir():
        raise LabError(f"netlab: no lab {args.name}: netlab.py list shows all labs")
    remove(args.name)


def clean(args: argparse.Namespace) -> None:
    """Remove what is left of labs that were killed; with --all, every lab."""
    for name, used in labs().items():
        if not used or args.all:
            remove(name)
            print(f"removed {name}")


def show(_: argparse.Namespace) -> None:
    """Print all labs."""
    for name, used in labs().items():
        print(f"{name}  {'up' if used else 'left over: netlab.py clean removes it'}")


def main() -> None:
    """Parse the arguments and run the action."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, function: object, text: str, *, named: bool) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        if named:
            sub.add_argument("--name", default="lab", help="name of the lab (default: lab)")
        return sub

    make = action("up", up, "make a lab", named=True)
    make.add_argument("--hosts", type=int, default=4, help="number of hosts (default 4)")
    make.add_argument(
        "--gbit",
        type=float,
        default=1.0,
        help="rate of every link in each direction, Gbit/s; 0: no limit (default 1)",
    )
    make.add_argument(
        "--nics", default="eth0", help="interface names, given to the hosts in turn: eth0,ens3"
    )
    make.add_argument(
        "--docker0", action="store_true", help="give every host a docker0 with the same address"
    )
    run = action("exec", execute, "run a command on a host", named=True)
    run.add_argument("host", help="node0, node1, …")
    run.add_argument("command", nargs="+", help="the command, after --")
    action("shell", execute, "open a shell on a host", named=True).add_argument("host")
    action("down", down, "remove a lab", named=True)
    action("list", show, "show all labs", named=False)
    sweep = action("clean", clean, "remove what is left of killed labs", named=False)
    sweep.add_argument("--all", action="store_true", help="remove every lab, also those in use")
    args = parser.parse_args()
    try:
        if reason := why_not():
            raise LabError(reason)
        args.function(args)
    except LabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
