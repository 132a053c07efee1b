// SPDX-License-Identifier: Apache-2.0

// Package trust checks whether a file may decide what runs as root.
package trust

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// writable are the mode bits that let users other than the owner write. They also cover POSIX access lists:
// on a file with a list, the group bits are the upper bound of the list.
const writable fs.FileMode = 0o022

// Check fails for a file or directory that another user could have written. The owner must be root or the
// effective user of this process, and neither the group nor others may write. The configuration names
// commands that run as root, and opens the LAN to the Internet. sshd and sudo check their files in this
// way, too. The error names the path, the owner or mode, and the command that corrects it.
//
// The caller passes the fstat result of the opened file. So the file that is checked is the file that is
// read, and symbolic links in the path do not matter.
//
// Check does not check parent directories; sudo does not, either. A user who can write to a parent
// directory can remove files, or move other files of root there, but cannot write a file that passes. In a
// directory such as forwards.d, the file names are part of the configuration, so the caller also checks
// that directory.
func Check(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner on this system, so it cannot be trusted", path)
	}
	return check(path, info.Mode().Perm(), int(stat.Uid), os.Geteuid())
}

// CheckDir is Check for a directory that this process writes files in. If the path is a symbolic link, CheckDir also fails if another
// user has made the link: root would write where this user wants.
func CheckDir(path string) error {
	link, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if link.Mode()&fs.ModeSymlink != 0 {
		if stat, ok := link.Sys().(*syscall.Stat_t); ok {
			err = check(path, 0, int(stat.Uid), os.Geteuid()) // the mode of a link says nothing
		}
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	return Check(path, info)
}

func check(path string, mode fs.FileMode, owner, self int) error {
	if owner != 0 && owner != self {
		allowed := "root"
		if self != 0 {
			allowed = "root or " + userName(self)
		}
		return fmt.Errorf("%s is owned by %s, but must be owned by %s, because it decides what runs as root; chown root %s",
			path, userName(owner), allowed, path)
	}
	if mode&writable != 0 {
		return fmt.Errorf("%s can be written by others than its owner (mode %04o), but it decides what runs as root; chmod go-w %s",
			path, uint32(mode), path)
	}
	return nil
}

// userName returns the user's name and number, or the number alone if the user has no name.
func userName(uid int) string {
	number := strconv.Itoa(uid)
	if known, err := user.LookupId(number); err == nil {
		return fmt.Sprintf("%s (uid %s)", known.Username, number)
	}
	return "uid " + number
}
