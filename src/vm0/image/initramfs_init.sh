#!/bin/sh
# The first program in the guest: load the drivers, mount the root, hand over to it. Run by busybox as PID 1.
# Whatever fails prints one line on the console and ends the machine.

export PATH=/bin

# Firecracker (reboot=k) has no power button to press; a reset ends its machine.
end() {
	case " $line " in *" reboot=k "*) reboot -f ;; esac
	poweroff -f
	reboot -f
}

fail() {
	echo "vm0: initramfs: $1"
	end
}

line=
mount -t proc -o nosuid,nodev,noexec proc /proc || fail "cannot mount /proc"
read -r line </proc/cmdline || fail "cannot read the kernel's command line"

# Does this machine boot a guest at all? Somebody on the host waits for this line.
case " $line " in *" vm0.probe=1 "*)
	echo vm0-probe-ok
	end
	;;
esac

mount -t sysfs -o nosuid,nodev,noexec sys /sys || fail "cannot mount /sys"
mount -t devtmpfs -o nosuid dev /dev || fail "cannot mount /dev"

while read -r need file; do
	insmod "/modules/$file" 2>/insmod && continue
	read -r why </insmod
	case $need in
	needed) fail "cannot load $file: $why" ;;
	esac
done </modules/order

# The disk appears some time after its driver.
tries=0
while [ ! -b /dev/vda ]; do
	tries=$((tries + 1))
	[ "$tries" -le 100 ] || fail "no disk /dev/vda appeared"
	usleep 50000
done

mount -t squashfs -o ro /dev/vda /root || fail "cannot mount /dev/vda as squashfs"
for program in @INIT_PATH@ @GUEST_PYTHON@; do
	[ -x "/root$program" ] || fail "the root has no $program"
done
mount --move /dev /root/dev || fail "cannot move /dev"
umount /sys
umount /proc
exec switch_root /root @INIT_PATH@
