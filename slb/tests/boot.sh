#!/bin/sh
# Boots systemd on a copy of this machine's files, in namespaces that the caller has made (unshare -m -p -f -C -u -i).
# What is written goes to $1/upper. The folder $2 is /run/packages there.
set -e
mount --make-rprivate /
top=$1
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
root=$top/root
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
mkdir "$root/sys/fs/cgroup/systemd"
mount -t cgroup -o none,name=systemd systemd "$root/sys/fs/cgroup/systemd"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/net" "$root/dev/shm"
# With the mode that udev gives it.
mknod -m 0666 "$root/dev/net/tun" c 10 200
mkdir -p "$root/run/packages"
mount --bind "$2" "$root/run/packages"
export container=slb-test
exec chroot "$root" /lib/systemd/systemd --unit=basic.target --log-target=null --show-status=no
