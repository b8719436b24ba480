//go:build linux

package native

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied system calls answer EPERM. They reach the kernel where namespaces and
// capabilities are the only guard, and where bugs were; programs in a workspace
// do not need them. Docker's default profile denies them too.
var denied = []uint32{
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_SETNS, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_BPF,
	unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE,
	unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT,
	unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
	unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_NFSSERVCTL, unix.SYS_VHANGUP, unix.SYS_KCMP, unix.SYS_FANOTIFY_INIT,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
}

// Offsets in struct seccomp_data, see seccomp(2).
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16 // the low half; both architectures are little-endian
	dataArg1   = 24
)

// x32Bit marks system calls of the x32 ABI, which has numbers of its own.
const x32Bit = 0x40000000

const (
	allow = unix.SECCOMP_RET_ALLOW
	eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	// enosys makes the C library fall back: clone3's flags are behind a pointer,
	// where a filter cannot look.
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// audit architectures, see linux/audit.h.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// program is the filter for one architecture. Programs of others, 32-bit ones
// too, get ENOSYS for everything, since their numbers mean other calls.
func program(arch uint32, isAMD64 bool) []unix.SockFilter {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | op, K: k, Jt: yes, Jf: no}
	}
	p := []unix.SockFilter{
		load(dataArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		ret(enosys),
		load(dataNumber),
	}
	if isAMD64 {
		p = append(p, jump(unix.BPF_JGE, x32Bit, 0, 1), ret(enosys))
	}
	for _, number := range denied {
		p = append(p, jump(unix.BPF_JEQ, number, 0, 1), ret(eperm))
	}
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), ret(enosys))
	// when number is that and the argument has one of the bits: EPERM.
	bits := func(number, at, mask uint32) []unix.SockFilter {
		return []unix.SockFilter{
			jump(unix.BPF_JEQ, number, 0, 4),
			load(at),
			jump(unix.BPF_JSET, mask, 0, 1),
			ret(eperm),
			ret(allow),
		}
	}
	p = append(p, bits(unix.SYS_CLONE, dataArg0, namespaces)...)
	p = append(p, bits(unix.SYS_UNSHARE, dataArg0, namespaces)...)
	// Typing into a terminal that somebody else reads.
	p = append(p,
		jump(unix.BPF_JEQ, unix.SYS_IOCTL, 0, 3),
		load(dataArg1),
		jump(unix.BPF_JEQ, unix.TIOCSTI, 0, 1),
		ret(eperm),
	)
	return append(p, ret(allow))
}

const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filter puts the program on this thread, and so on what it runs.
func filter() error {
	arch, known := auditArch[runtime.GOARCH]
	if !known {
		return fmt.Errorf("there is no system call filter for %s", runtime.GOARCH)
	}
	p := program(arch, runtime.GOARCH == "amd64")
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))) //nolint:gosec // seccomp(2) takes a pointer and x/sys has no wrapper
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}
