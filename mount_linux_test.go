package remote_test

import "syscall"

const syscallRemount = syscall.MS_REMOUNT

func mountTmpfs(dir string, flags uintptr, size string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", flags, "size="+size)
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }
