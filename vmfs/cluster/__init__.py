"""The cluster of hosts that share a volume: who lives, who holds which lock, who recovers whom.

No server and no network: everything goes through heartbeat slots and lock sectors on the volume, changed by
compare-and-write. The rules are R1 to R12 of docs/locking.md; comments name them.

    timers       Timers: the intervals of the protocol and the inequalities between them
    identity     HostIdentity; whether a process that a slot names still lives
    registers    Registers: lock blocks read and swapped, by whatever the storage offers; DirectRegisters
    casio        one compare-and-write carried to a known end (R4, R10)
    region       SlotRegion: all slots in a few large reads; RegionSnapshot, SlotView
    watcher      Watcher: how long each slot has not changed, by this host's clock (R4)
    heartbeat    SlotKeeper: this host's own slot image, and its renewal (R4)
    claim        finding and taking a free slot; refusing a second mount under one name
    recovery     the states of a dead slot (R2, R6) and the proofs of death
    keys         reservation keys of incarnations (R3)
    fencing      Fence: what ends the writes of the dead, by reservations or not at all (R2)
    fenceproof   proof that a LUN's reservations fence; registrations of tools
    nexuslock    one mount a machine where the machine has one nexus (R3)
    standing     Standing: how a mount stands with its LUNs after one has refused it (R3)
    evict        a silent process of this machine is killed before it is broken (R2)
    watchdog     a device that resets this machine when its lease is gone
    recoveries   Recoveries: all recoveries of one mount, for a lock and of its own accord
    requests     what this host asks of others through its slot
    membership   Membership: the face of all that; the lease (R1), the heartbeat thread
    locktable    the locks that this host has in hand: Tenure, LockRequest, LockView
    lockio       lock sectors read and changed on the volume (R7, R10)
    lockwait     waiting for another host: marks, turns, requests, the death of the holder
    lockrelease  giving locks up, in the background most of the time; lost answers (R10)
    handover     an exclusive lock passes to a named host, and is never free
    locks        LockManager: the face of the locks

Stands on `vmfs.devices`, `vmfs.clock`, `vmfs.errors` and the record formats `vmfs.ondisk.slot` and `.lock`; knows
nothing of files, journals or superblocks beyond the bytes and callbacks that are handed to it.

The surface, in short (each name is exported by its module)::

    Timers.from_lease(lease_us, interval_us=None, drift_ppm=10_000) -> Timers      # *_us fields, *_s properties
    HostIdentity.detect(name, boot_id=None) -> HostIdentity
    SlotRegion(DirectRegisters(extents), base_address, stride, count, volume_prefix, clock)

    m = Membership(region, identity, timers, clock, volume_name="ds1", superblock_address=None,
                   callbacks=MembershipCallbacks(on_request=, on_superblock_bytes=, on_fenced=, on_lease_expired=,
                                                 on_lease_resumed=), rng=Random(),
                   fence=ReservationFence(extents, "ds1", clock))       # None: NoFence
    m.claim() -> SlotRecord          # HostNameInUse, NoFreeSlot; starts no thread
    m.predecessors -> tuple[int, ...]         # dead slots under this host's own name, to be recovered first
    m.start()                        # the heartbeat thread; m.beat() is one beat by hand, for simulators
    m.holder -> Holder(slot, incarnation);  m.lease_deadline: float;  m.lease_valid(now) -> bool
    m.check_lease()                  # raises LeaseLost
    m.snapshot -> RegionSnapshot | None;  m.read_slot(slot) -> SlotView (fresh)
    m.post_request(kind, to_slot, target, argument=0) -> serial;  m.clear_request(serial)
    m.dead_slots() -> dict[int, DeathProof];  m.dead_slots_of_this_boot() -> tuple[int, ...]
    m.begin_recovery(slot, operator=False) -> SlotRecord      # its .holder, fenced off, is the incarnation to replay
    m.finish_recovery(slot);  m.hand_back(slot);  m.fail_recovery(slot)
    m.settle_in_place();  m.fail_in_place()   # where claim's record was `in_place`: begin_recovery, replay, then this
    m.leave()                        # after the caller has flushed; ends the threads and frees the slot
    m.abandon()                      # ends the threads and leaves the slot as it is (R1 was broken, or a test's crash)

    locks = LockManager(m, clock, before_release=fn(Tenure), recover=fn(slot), idle_s=0.02)
    locks.acquire(address, guards, mode=EXCLUSIVE, *, wait=None, sticky=False) -> Tenure     # pinned
    locks.acquire_many([LockRequest(address, guards, mode, sticky)], wait=None) -> list[Tenure]
    locks.recoveries.start();  .look();  .run(slot);  .stop()      # dead slots, of the mount's own accord
    locks.inherit(address, guards, dead) -> Tenure | None      # a dead incarnation's lock, in its recovery
    locks.hand_overs.offer(tenure, to, until);  .try_seize(tenure, pins);  .complete(tenure, to);  .end(tenure)
    locks.hand_overs.receive(address, guards, until, ready, cancelled) -> Tenure       # on the other host
    locks.unpin(tenure);  locks.release(address);  locks.held(address) -> Tenure | None
    locks.peek(address) -> LockRecord;  locks.holders(address) -> LockView;  locks.close()
    locks.on_request(slot, kind, target, argument)     # hand it to MembershipCallbacks.on_request
    locks.lose_all()                                   # hand it to MembershipCallbacks.on_fenced
    locks.abandon()                                    # for a mount that must not write
    Tenure: address, guards, mode, version, slot, incarnation, value (bytes, settable under an exclusive lock)

At format: SlotRecord(address, prefix, i).pack(sector) and LockRecord(address, prefix, guards).pack(sector), each padded
with zeros to the lock block.
"""
