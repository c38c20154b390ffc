"""Makes QEMU sandboxes from one image, all of one shape, and removes what a crashed owner left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm0.image import Image
from vm0.microvm.disk import REFILL_DELAY_S, DiskPool, make_disk
from vm0.microvm.finishing import in_thread, to_the_end
from vm0.microvm.netns import NamespacePool
from vm0.sandbox import BackendUnavailable, IsolationTier, Sandbox, SandboxConfig, SandboxError, State
from vm0.sandbox_common import cgroups, check_sandbox_id
from vm0.sandbox_common.ownership import locked, locked_when_free, make_private, short_hash
from vm0.sandbox_common.recorded_process import end_recorded
from vm0.sandbox_qemu import golden, snapshot
from vm0.sandbox_qemu.accelerator import chosen, find_accelerator
from vm0.sandbox_qemu.argv import Accelerator, Shape, machine_digest
from vm0.sandbox_qemu.host import Host
from vm0.sandbox_qemu.machines import machine_for
from vm0.sandbox_qemu.requirements import check_host, host_cpu, qemu_version
from vm0.sandbox_qemu.sandbox import QemuSandbox
from vm0.sandbox_qemu.seat import FIRST_UID, PID_FILE, Seat, Seats
from vm0.sandbox_qemu.vm import BootFiles

log = logging.getLogger("vm0.sandbox_qemu")

PROBE_UID = FIRST_UID - 1
SPARE_NAMESPACES = 2
LIMIT_FORKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuOptions:
    """`snapshots` holds them for all factories of this machine; None boots every sandbox. `accelerator` "" probes."""

    image: Image
    vcpus: int = 1
    memory_mib: int = 512
    disk_mib: int = 2048
    snapshots: Path | None = None
    accelerator: str = ""


class QemuSandboxFactory:
    """`root` (made, 0700) holds what its sandboxes have; one factory per root at a time. Needs root.

    A sandbox of the factory's shape is restored from a snapshot, which is made if it is not there; any other is booted.
    """

    def __init__(
        self,
        root: Path,
        options: QemuOptions,
        *,
        namespaces: NamespacePool | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._root, self._options, self._say = root.absolute(), options, say
        self._given_namespaces = namespaces
        self._namespaces: NamespacePool | None = None
        self._stack = contextlib.AsyncExitStack()
        self._sandboxes: dict[str, QemuSandbox] = {}
        self._creating: set[str] = set()
        self._destroying: dict[str, asyncio.Task[None]] = {}
        self._host: Host | None = None
        self._seats: Seats | None = None
        self._snapshot: snapshot.Snapshot | None = None
        self._disks: dict[int, DiskPool] = {}
        self._formatting = asyncio.Lock()
        self._cgroup: Path | None = None

    @property
    def backend(self) -> str:
        return "qemu"

    @property
    def isolation(self) -> IsolationTier:
        return self._entered().isolation

    @property
    def network_pool(self) -> int | None:
        """The index of its namespace pool on this host, None before it is entered."""
        return self._namespaces.index if self._namespaces is not None else None

    @property
    def shape(self) -> Shape:
        """Of the sandboxes that are restored."""
        return self._shape(self._options.vcpus, self._options.memory_mib)

    async def __aenter__(self) -> QemuSandboxFactory:
        stack = contextlib.AsyncExitStack()
        try:
            await self._enter(stack)
        except BaseException:
            await to_the_end(stack.aclose())
            raise
        self._stack = stack
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancelled, it finishes first."""
        await to_the_end(self._leave())

    async def _leave(self) -> None:
        async with self._stack:
            for sandbox in list(self._sandboxes.values()):
                await self.destroy(sandbox)

    async def create(self, config: SandboxConfig) -> Sandbox:
        host = self._entered()
        self._refuse_taken([config.sandbox_id])
        origin = self._snapshot if self._is_standard(config) else None
        disks = await self._disk_pool(config.disk_mib) if origin is None else self._disks[0]
        return await self._create(host, config, origin, disks)

    async def destroy(self, sandbox: Sandbox) -> None:
        owned = self._sandboxes.get(sandbox.sandbox_id)
        if owned is not sandbox:
            return
        task = self._destroying.get(sandbox.sandbox_id)
        if task is None:
            task = asyncio.create_task(self._destroy(owned), name=f"destroy {sandbox.sandbox_id}")
            self._destroying[sandbox.sandbox_id] = task
        await asyncio.shield(task)

    async def fork(self, sandbox: Sandbox, configs: Sequence[SandboxConfig]) -> list[Sandbox]:
        host = self._entered()
        owned = self._sandboxes.get(sandbox.sandbox_id)
        if owned is not sandbox or owned is None:
            raise SandboxError(f"sandbox {sandbox.sandbox_id} is not of this factory")
        if not 0 < len(configs) <= LIMIT_FORKS:
            raise SandboxError(f"{len(configs)} forks at once: 1 to {LIMIT_FORKS} are possible")
        self._refuse_taken([config.sandbox_id for config in configs])
        forks: list[QemuSandbox] = []
        try:
            async with contextlib.AsyncExitStack() as stack:
                frozen = await self._frozen(stack, host, owned)
                disks = DiskPool(frozen.disk, self._root / "disks", ready=0)
                for config in configs:
                    config = self._like(owned, config)
                    forks.append(await self._create(host, config, frozen, disks))
                await asyncio.gather(*(fork.start() for fork in forks))
        except BaseException:
            await to_the_end(asyncio.gather(*(self.destroy(fork) for fork in forks)))
            raise
        return list(forks)

    def describe(self) -> Mapping[str, str]:
        host = self._entered()
        start = f"snapshot {self._snapshot.facts.key}" if self._snapshot else "cold boot"
        return {
            "backend": "qemu",
            "isolation": host.isolation.value,
            "accelerator": host.accelerator.value,
            "why": host.why_accelerator,
            "qemu": host.qemu_version,
            "image": host.image_key,
            "start": start,
        }

    # entering, in order

    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        check_host()
        make_private(self._root)
        stack.callback(os.close, locked(self._root / "lock"))
        parent = cgroups.writable_parent()
        self._cgroup = parent / f"vm0-{short_hash(self._root)}" if parent else None
        await self._reconcile()
        for name in ("sandboxes", "disks"):
            make_private(self._root / name)
        if self._cgroup is not None:
            self._cgroup.mkdir(exist_ok=True)
            stack.push_async_callback(cgroups.remove, self._cgroup)
        self._host = await self._found()
        namespaces = self._given_namespaces or NamespacePool(spare=SPARE_NAMESPACES, refill_delay_s=REFILL_DELAY_S)
        self._namespaces = await stack.enter_async_context(namespaces)
        self._seats = Seats(self._root / "sandboxes", namespaces, self._cgroup)
        stack.push_async_callback(self._close_disks)
        if self._options.snapshots is not None:
            self._snapshot = await self._loaded_snapshot(self._options.snapshots)
            stack.callback(self._snapshot.close)
            pool = DiskPool(self._snapshot.disk, self._root / "disks")
            pool.fill()
            self._disks[0] = pool

    async def _reconcile(self) -> None:
        """We hold the lock, so whatever is here belongs to nobody: end it and remove it."""
        folder = self._root / "sandboxes"
        make_private(folder)
        for leftover in sorted(folder.iterdir()):
            log.warning("removing sandbox %s of a crashed owner", leftover.name, extra={"action": "sandbox_reclaimed"})
            await end_recorded(leftover / PID_FILE, polite=False)
        if self._cgroup is not None:
            await cgroups.remove(self._cgroup)
        for path in (folder, self._root / "disks"):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def _found(self) -> Host:
        image, machine = self._options.image, machine_for(self._options.image.architecture)
        version = await asyncio.to_thread(qemu_version, machine.binary, machine.package)
        files = BootFiles(kernel=image.vmlinuz, initramfs=image.initramfs, root=image.rootfs)
        if self._options.accelerator:
            try:
                finding = chosen(self._options.accelerator)
            except OSError as exc:
                raise BackendUnavailable(f"accelerator {self._options.accelerator}: {exc}", hint="use auto") from exc
        else:
            cache = self._root / "accelerator.json"
            finding = await find_accelerator(machine, files, uid=PROBE_UID, cache=cache, qemu_version=version)
        return Host(
            files=files,
            image_key=image.key,
            build=image.build,
            accelerator=finding.accelerator,
            why_accelerator=finding.why,
            groups=finding.groups,
            qemu_version=version,
            host_cpu=host_cpu() if finding.accelerator is Accelerator.KVM else "any",
        )

    async def _loaded_snapshot(self, root: Path) -> snapshot.Snapshot:
        """The snapshot of our shape; made, or made again, if there is none that can be used."""
        made_from = self.made_from()
        key = snapshot.snapshot_key(made_from)
        make_private(root)
        lock = await locked_when_free(root / f".{key}.lock")
        try:
            try:
                return await self._loaded(root / key, key)
            except snapshot.SnapshotError as exc:
                log.info("making a snapshot: %s", exc, extra={"action": "snapshot_missing"})
            await self._make_snapshot(root / key, made_from)
            return await self._loaded(root / key, key)
        finally:
            os.close(lock)

    @staticmethod
    async def _loaded(folder: Path, key: str) -> snapshot.Snapshot:
        return await in_thread(lambda: snapshot.load(folder, key), "load snapshot", discard=snapshot.Snapshot.close)

    def made_from(self) -> dict[str, str]:
        """Everything that decides whether a VM can be restored from a snapshot."""
        host, options = self._entered(), self._options
        return {
            "image": options.image.digest,
            "build": host.build,
            "vcpus": str(options.vcpus),
            "memory_mib": str(options.memory_mib),
            "disk_mib": str(options.disk_mib),
            "accelerator": host.accelerator.value,
            "qemu": host.qemu_version,
            "host_cpu": host.host_cpu,
            "arguments": machine_digest(self.shape),
        }

    async def _make_snapshot(self, folder: Path, made_from: Mapping[str, str]) -> None:
        host = self._entered()
        async with self._seat("golden", await self._disk_pool(self._options.disk_mib)) as seat:
            await golden.make_golden(
                host,
                seat,
                self.shape,
                warm=self._options.image.warm,
                made_from=made_from,
                folder=folder,
                say=self._say,
            )

    # pieces

    def _entered(self) -> Host:
        if self._host is None:
            raise SandboxError("the factory has not been entered")
        return self._host

    def _shape(self, vcpus: int, memory_mib: int) -> Shape:
        machine = machine_for(self._options.image.architecture)
        return Shape(machine=machine, accelerator=self._entered().accelerator, vcpus=vcpus, memory_mib=memory_mib)

    def _is_standard(self, config: SandboxConfig) -> bool:
        options = self._options
        wanted = (config.vcpus, config.memory_mib, config.disk_mib)
        return self._snapshot is not None and wanted == (options.vcpus, options.memory_mib, options.disk_mib)

    async def _create(
        self, host: Host, config: SandboxConfig, origin: snapshot.Snapshot | None, disks: DiskPool
    ) -> QemuSandbox:
        assert self._seats is not None
        name, shape = config.sandbox_id, self._shape(config.vcpus, config.memory_mib)
        self._refuse_taken([name])
        self._creating.add(name)
        try:
            seat = await self._seats.take(name, disks)
        except OSError as exc:
            raise SandboxError(f"sandbox {name}: {exc}", hint="is there space left?") from exc
        finally:
            self._creating.discard(name)
        self._sandboxes[name] = sandbox = QemuSandbox(config, host=host, seat=seat, shape=shape, origin=origin)
        return sandbox

    def _refuse_taken(self, names: Sequence[str]) -> None:
        """Raises SandboxError for a name that is none, or that somebody has."""
        for number, name in enumerate(names):
            check_sandbox_id(name)
            if name in self._sandboxes or name in self._creating or name in names[:number]:
                raise SandboxError(f"sandbox {name} exists already")

    async def _destroy(self, sandbox: QemuSandbox) -> None:
        assert self._seats is not None
        try:
            await sandbox.kill()
            await self._seats.release(sandbox.seat)
            self._sandboxes.pop(sandbox.sandbox_id, None)
        finally:
            self._destroying.pop(sandbox.sandbox_id, None)

    async def _frozen(self, stack: contextlib.AsyncExitStack, host: Host, sandbox: QemuSandbox) -> snapshot.Snapshot:
        """The sandbox as a snapshot that lives as long as `stack`."""
        if sandbox.state is not State.RUNNING:
            raise SandboxError(f"sandbox {sandbox.sandbox_id} is {sandbox.state.value}: only a running one can fork")
        name = f"fork-{uuid.uuid4().hex[:12]}"
        passage = await stack.enter_async_context(
            self._seat(name, DiskPool(sandbox.seat.disk, self._root / "disks", ready=0))
        )
        disk = self._root / "disks" / f"{name}.ext4"
        stack.callback(disk.unlink, missing_ok=True)
        frozen = await golden.snapshot_of(host, sandbox, passage, disk, self.made_from())
        stack.callback(frozen.close)
        return frozen

    @contextlib.asynccontextmanager
    async def _seat(self, name: str, disks: DiskPool) -> AsyncIterator[Seat]:
        assert self._seats is not None
        seat = await self._seats.take(name, disks)
        try:
            yield seat
        finally:
            await to_the_end(self._seats.release(seat))

    async def _disk_pool(self, size_mib: int) -> DiskPool:
        """Empty disks of a size, for sandboxes that boot."""
        async with self._formatting:
            if size_mib not in self._disks:
                template = self._root / "disks" / f"empty-{size_mib}.ext4"
                await in_thread(lambda: make_disk(template, size_mib), "mkfs", discard=lambda _: template.unlink())
                self._disks[size_mib] = DiskPool(template, self._root / "disks", ready=0)
            return self._disks[size_mib]

    async def _close_disks(self) -> None:
        for pool in self._disks.values():
            await pool.close()
        self._disks.clear()
        await asyncio.to_thread(shutil.rmtree, self._root / "disks", ignore_errors=True)

    @staticmethod
    def _like(sandbox: QemuSandbox, config: SandboxConfig) -> SandboxConfig:
        """A fork has the shape of what it is forked from, whatever its configuration says."""
        own = sandbox.config
        return dataclasses.replace(config, vcpus=own.vcpus, memory_mib=own.memory_mib, disk_mib=own.disk_mib)
