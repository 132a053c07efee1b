// SPDX-License-Identifier: Apache-2.0

// Package trust tells whether a file may decide what runs as root.
package trust

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// writable are the mode bits that let others than the owner write. They cover POSIX access lists:
// the group bits of a file with a list are the most that the list grants.
const writable fs.FileMode = 0o022

// Check refuses a file or directory that somebody else could have written: one that is owned neither
// by root nor by the effective user of this process, or that its group or others can write. The
// configuration names commands that run as root, and opens the LAN to the Internet; sshd and sudo
// have the same rule for their files. The error names the path, the owner or the mode, and the
// command that puts it right.
//
// The caller passes what fstat says of the opened file. So the file that is checked is the file
// that is read, and symbolic links on the way do not matter.
//
// Parent directories are not checked, and sudo does not check them either. Whoever can write to one
// can remove files, or move other files of root's into their place, but cannot author a file that
// passes. Where the names in a directory are themselves configuration, as in forwards.d, that is
// too much: the caller checks that directory, too.
func Check(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner on this system, so it cannot be trusted", path)
	}
	return check(path, info.Mode().Perm(), int(stat.Uid), os.Geteuid())
}

func check(path string, mode fs.FileMode, owner, self int) error {
	if owner != 0 && owner != self {
		allowed := "root"
		if self != 0 {
			allowed = "root or " + userName(self)
		}
		return fmt.Errorf("%s is owned by %s, and must be owned by %s, because it decides what runs as root: chown root %s",
			path, userName(owner), allowed, path)
	}
	if mode&writable != 0 {
		return fmt.Errorf("%s can be written by others than its owner (mode %04o), and must not be, because it decides what runs as root: chmod go-w %s",
			path, uint32(mode), path)
	}
	return nil
}

// userName is the name of a user with the number, or the number alone.
func userName(uid int) string {
	number := strconv.Itoa(uid)
	if known, err := user.LookupId(number); err == nil {
		return fmt.Sprintf("%s (uid %s)", known.Username, number)
	}
	return "uid " + number
}
