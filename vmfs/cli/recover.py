"""`vmfsctl fence` and `vmfsctl recover`: what an operator orders about hosts that are dead, or must be."""

from __future__ import annotations

import os
from dataclasses import dataclass

import click

from vmfs.cli.asking import confirm
from vmfs.cli.failures import Reported
from vmfs.cli.output import printable, seconds_text, show_fields, show_json
from vmfs.client import Mount
from vmfs.control.contract import STATE_SERVING, HostInfo, JournalInfo, RecoveryPlan, RecoveryReport
from vmfs.errors import EXIT_NOT_TRIED, BadSlot, OwnSlot
from vmfs.registry import mounted_volumes

_FAILED = "failed"
_POWERED_OFF = (
    "Nothing keeps this host from writing: the volume has no storage fencing. If it is not powered off, or comes back "
    "to life before it is booted again, it may destroy the volume."
)


@dataclass(frozen=True, slots=True)
class _Target:
    """A slot of one mounted volume, and what its recovery would be about."""

    mount: Mount
    volume: str
    host: HostInfo
    plan: RecoveryPlan


@click.command("fence", short_help="Declare a host dead.")
@click.argument("host", metavar="HOST")
@click.argument("mounts", metavar="[MOUNT...]", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Show what would be done and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def fence_command(host: str, mounts: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Declare the host HOST dead: take its slot, keep it from writing, recover what it left, free its locks.

    Hosts that die are recovered without this, as soon as their heartbeat has stood still for the break time. Use it
    not to wait for that, or for a host that hangs and whose heartbeat goes on. It is about every volume that is mounted
    here and that HOST uses, or only about those at MOUNT....

    Where the volume has storage fencing, its LUNs refuse HOST's writes from then on. Where it has none, power HOST off
    first: one whose heartbeat still changes is refused.

    \b
    Examples:
      vmfsctl fence esx3 --dry-run
      vmfsctl fence esx3 /mnt/ds1
    """
    targets = _find(host, mounts)
    if not as_json:
        for target in targets:
            _show(target)
    if dry_run:
        _show_dry_run(targets, as_json)
        return
    if not yes:
        unfenced = "" if all(t.plan.fencing for t in targets) else f"{_POWERED_OFF}\n"
        confirm(f"{unfenced}Declare host {host} dead on {', '.join(t.volume for t in targets)}?")
    _order(targets, declare_dead=True, discard_journal=False, as_json=as_json)


@click.command("recover", short_help="Recover a host whose recovery has failed.")
@click.argument("which", metavar="SLOT|HOST")
@click.argument("mount", metavar="[MOUNT]", required=False)
@click.option("--discard-journal", is_flag=True, help="Give up what cannot be read of the host's last changes.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and lost, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def recover_command(
    which: str, mount: str | None, discard_journal: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Recover the dead host in slot SLOT, or named HOST, whose slot has FAILED: its journal could not be replayed.

    Until then what it had locked stays locked. First mend what kept its journal from being read (a path, a disk), and
    try again with this command. --discard-journal gives the journal up: what the host had changed last, and had been
    promised to be safe, is lost, and the volume's structure may not agree with itself: run `vmfsctl check` after it.
    MOUNT is needed where SLOT or HOST is on several volumes that are mounted here.

    \b
    Examples:
      vmfsctl recover 3
      vmfsctl recover esx3 /mnt/ds1 --discard-journal --dry-run
    """
    targets = _find(which, () if mount is None else (mount,), may_be_slot=True)
    if len(targets) > 1:
        raise click.UsageError(f"{which} is on {' and '.join(t.volume for t in targets)}: name the MOUNT")
    if not as_json:
        _show(targets[0])
    if dry_run:
        _show_dry_run(targets, as_json)
        return
    if discard_journal and not yes:
        confirm(f"{_loss(targets[0].plan.journal)}\nGive the journal of {targets[0].host.name or which} up?")
    _order(targets, declare_dead=False, discard_journal=discard_journal, as_json=as_json)


def _find(which: str, mounts: tuple[str, ...], *, may_be_slot: bool = False) -> list[_Target]:
    """The slots that are meant, one a volume. Raises BadSlot, OwnSlot, and as `Mount`."""
    if mounts:
        chosen = [Mount.for_path(m) for m in mounts]
    else:
        chosen = [Mount.for_path(m.mountpoint) for m in mounted_volumes() if m.state == STATE_SERVING]
    found: dict[str, _Target] = {}
    own: OwnSlot | None = None
    for mount in chosen:
        info = mount.info()
        label, volume = info.volume.label, str(info.volume.uuid)
        for host in mount.hosts():
            if host.name != which and not (may_be_slot and which == str(host.slot)):
                continue
            if host.is_self:
                own = OwnSlot(label, host.name)
            else:
                found.setdefault(volume, _Target(mount, label, host, mount.recovery_plan(host.slot)))
    if not found:
        if own is not None:
            raise own
        where = ", ".join(os.fspath(m.mountpoint) for m in chosen)
        raise Reported(f"no host {which} uses a volume that is mounted here ({where or 'none is'})", EXIT_NOT_TRIED)
    for target in found.values():
        if may_be_slot and target.plan.slot_state not in (_FAILED, "dead"):
            hint = "has not failed (`vmfsctl fence` declares a host dead)"
            raise BadSlot(target.volume, f"slot {target.host.slot}", hint)
    return list(found.values())


def _show(target: _Target) -> None:
    host, plan = target.host, target.plan
    journal = plan.journal
    silent = host.unchanged_seconds
    blocks = ", ".join(f"{count} of kind {kind}" for kind, count in journal.blocks)
    show_fields(
        [
            ("volume", f"{target.volume} ({target.mount.mountpoint})"),
            ("host", f"{host.name or '-'} (slot {host.slot}, incarnation {host.incarnation}), {host.state}"),
            ("heartbeat", None if silent is None else f"changed {seconds_text(silent)} ago"),
            ("fencing", plan.fencing or "none: power the host off first"),
            ("journal", f"{journal.records} records" + (f", blocks: {blocks}" if blocks else "")),
            ("removals", f"{journal.removals} unfinished"),
            *[("cannot be read", problem) for problem in journal.problems],
        ]
    )


def _show_dry_run(targets: list[_Target], as_json: bool) -> None:
    if as_json:
        show_json({"plans": [t.plan for t in targets]})
    else:
        click.echo("nothing was changed")


def _loss(journal: JournalInfo) -> str:
    """What giving a journal up may lose, for people."""
    lost = [
        "The host's last changes are lost, also those that were acknowledged as safe: names, sizes and contents of "
        "files may be older than they were, and parts of the volume may not agree with each other.",
    ]
    if journal.records:
        shown = ", ".join(str(i) for i in journal.inodes) or "none"
        lost.append(f"Among them {journal.records} transactions that can be read, of inodes {shown}.")
    lost += [f"What cannot be read says nothing of what it was: {problem}" for problem in journal.problems]
    if journal.removals:
        lost.append(f"{journal.removals} unfinished removals are still done.")
    return "\n".join(lost)


def _order(targets: list[_Target], *, declare_dead: bool, discard_journal: bool, as_json: bool) -> None:
    reports: list[RecoveryReport] = []
    for target in targets:
        report = target.mount.recover(
            target.host.slot, target.host.incarnation, declare_dead=declare_dead, discard_journal=discard_journal
        )
        reports.append(report)
        if not as_json:
            done = "its journal given up: run `vmfsctl check`"
            if report.records is not None:
                done = f"{report.records} journal records replayed"
            click.echo(
                printable(
                    f"recovered host {report.host} on {target.volume} in {seconds_text(report.seconds)}: {done}, "
                    f"{report.removals} removals taken over; its locks are free"
                )
            )
    if as_json:
        show_json({"recovered": reports})
