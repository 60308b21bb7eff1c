"""A cluster in a box: several hosts on this machine, with ssh between them and links of a set speed.

    netlab.py up --hosts 4 --gbit 1        make it
    netlab.py exec node0 -- ssh node1 hostname
    netlab.py shell node0                  look around; `exit` leaves
    netlab.py down                         remove it

Needs root, iproute2, util-linux and an OpenSSH server. The hosts node0, node1, … see the files of
this machine and share its cores; their network is their own. docs/how-to/netlab.md tells more.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.netlab.lab import ROOT, SUBNET, Lab, LabError, labs, remove, why_not


def up(args: argparse.Namespace) -> None:
    """Make a lab that stays."""
    gbit = args.gbit or None
    nics = args.nics.split(",")
    lab = Lab(
        args.hosts, link_gbit=gbit, nics=nics, docker0=args.docker0, keep=True, name=args.name
    )
    speed = f"{gbit:g} Gbit/s each way" if gbit else "no limit"
    for k, name in enumerate(lab.hosts):
        print(f"{name}  {lab.address(k)}  {lab.nics[k]}  {speed}")
    print(f"subnet {SUBNET}; files in {lab.folder}; netlab.py shell node0 to look around")


def execute(args: argparse.Namespace) -> None:
    """Become a command on a host."""
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
        raise LabError(f"netlab: there is no lab {args.name}")
    remove(args.name)


def clean(args: argparse.Namespace) -> None:
    """Remove what labs left behind."""
    for name, used in labs().items():
        if not used or args.all:
            remove(name)
            print(f"removed {name}")


def show(_: argparse.Namespace) -> None:
    """All labs."""
    for name, used in labs().items():
        print(f"{name}  {'up' if used else 'left over: netlab.py clean removes it'}")


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, function: object, text: str, *, named: bool) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        if named:
            sub.add_argument("--name", default="lab", help="which lab (default: lab)")
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
        "--nics", default="eth0", help="names of the hosts' interfaces, in turn: eth0,ens3"
    )
    make.add_argument(
        "--docker0", action="store_true", help="give every host a docker0 with the same address"
    )
    run = action("exec", execute, "run a command on a host", named=True)
    run.add_argument("host", help="node0, node1, …")
    run.add_argument("command", nargs="+", help="the command, after --")
    action("shell", execute, "a shell on a host", named=True).add_argument("host")
    action("down", down, "remove a lab", named=True)
    action("list", show, "show all labs", named=False)
    sweep = action("clean", clean, "remove what labs left that were killed", named=False)
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
