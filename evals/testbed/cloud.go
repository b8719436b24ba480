package testbed

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// cloudPackages make a small system of systemd and cloud-init that boots by itself.
// The last one is what debootstrap cannot find by a virtual package's name.
const cloudPackages = "systemd-sysv,udev,dbus,kmod,cloud-init,linux-image-cloud-amd64,initramfs-tools,e2fsprogs,netbase,iproute2,extlinux,python3-cffi-backend"

// CloudImage returns a qcow2 disk image that boots by itself and has cloud-init, as
// distributions publish them. It is built once into the user's cache, which takes
// a minute or two.
func CloudImage(t testing.TB) string {
	t.Helper()
	path, err := buildCloudImage()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildCloudImage = sync.OnceValues(func() (string, error) {
	path := filepath.Join(cacheFolder(), "cloud.qcow2")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cacheFolder(), 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cacheFolder(), "cloud-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }() // what is left of it
	root := filepath.Join(work, "root")
	steps := [][]string{
		{"debootstrap", "--variant=minbase", "--include=" + cloudPackages, "bookworm", root},
		{"sh", "-c", `rm -rf root/var/cache/apt/archives/*.deb root/usr/share/doc/* root/usr/share/man/* root/usr/share/locale/* root/var/lib/apt/lists/*
			mkdir root/boot/extlinux; cd root/boot; kernel=$(ls vmlinuz-*); initrd=$(ls initrd.img-*)
			printf 'DEFAULT l\nPROMPT 0\nLABEL l\n LINUX /boot/%s\n INITRD /boot/%s\n APPEND root=LABEL=cloudroot ro console=ttyS0 quiet cryptomgr.notests\n' "$kernel" "$initrd" > extlinux/extlinux.conf
			cd ../etc; echo 'LABEL=cloudroot / ext4 defaults 0 1' > fstab; echo 'datasource_list: [NoCloud, None]' > cloud/cloud.cfg.d/90_test.cfg`},
		{"truncate", "-s", "1500M", "disk"},
		// What the boot loader cannot read is left out.
		{"mkfs.ext4", "-q", "-F", "-L", "cloudroot", "-O", "^64bit,^metadata_csum", "-d", root, "disk"},
		{"sh", "-c", "mkdir mnt && mount -o loop disk mnt && { root/usr/bin/extlinux --install mnt/boot/extlinux; status=$?; umount mnt; exit $status; }"},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk", "disk.qcow2"},
	}
	for _, step := range steps {
		cmd := exec.Command(step[0], step[1:]...)
		cmd.Dir = work
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil {
			out := said.String()
			return "", fmt.Errorf("build the cloud image: %s: %w\n%s", strings.Join(step[:1], " "), err, out[max(0, len(out)-2000):])
		}
	}
	return path, os.Rename(filepath.Join(work, "disk.qcow2"), path)
})
