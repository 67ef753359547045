#!/bin/sh
# Makes a root directory of its own out of the machine's, and becomes systemd in it.
#
# It is process 1 of its namespaces, in a control group of its own. Nothing that it
# mounts is seen outside, and what is written inside goes to memory, but for the
# directories that are shared. Arguments: an empty directory; for each directory to
# share its path outside and the one inside.
set -eu
where=$1
shift

# Otherwise what systemd mounts, and it mounts a lot, would appear outside.
mount --make-rprivate /
mount -t tmpfs -o mode=755 machine "$where"
mkdir "$where/upper" "$where/work" "$where/root"
mount -t overlay -o "lowerdir=/,upperdir=$where/upper,workdir=$where/work" machine "$where/root"
cd "$where/root"

mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
# systemd-tmpfiles empties /tmp, and without this it would be the machine's.
mount -t tmpfs -o mode=1777 tmp tmp
mount -t tmpfs -o mode=755 dev dev
for device in null zero full random urandom tty; do
	: >"dev/$device"
	mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 shm dev/shm

# Units are started because a test says so, and not because the machine has them: what
# belongs to targets is left out, and so are generators, such as the one for fstab.
mount -t tmpfs -o mode=755 units etc/systemd/system
mkdir run/units run/generators
find lib/systemd/system -maxdepth 1 ! -type d -exec cp -Pt run/units {} +
cat >etc/systemd/system/machine.target <<'UNIT'
[Unit]
Description=What the tests ask for
Requires=systemd-journald.service
After=systemd-journald.service
DefaultDependencies=no
UNIT
while [ $# -gt 1 ]; do
	mkdir -p "./$2"
	mount --bind "$1" "./$2"
	shift 2
done
echo app:x:990: >>etc/group
echo app:x:990:990::/:/usr/sbin/nologin >>etc/passwd

mkdir .outside
pivot_root . .outside
umount -l .outside
rmdir .outside
cd /
# What is a container to systemd does not change the settings of the kernel.
exec env -i container=machine SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units \
	SYSTEMD_GENERATOR_PATH=/run/generators PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
	/lib/systemd/systemd --system --unit=machine.target --log-target=journal --show-status=no
