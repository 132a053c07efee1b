// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Step is a system call by which a program changes something. It has not happened yet.
type Step struct {
	Number int    // from 1 on
	Call   string // name of the system call
	BPF    int    // command of bpf(2); -1: another system call
}

// String returns the step in words.
func (s Step) String() string {
	if s.BPF >= 0 {
		return fmt.Sprintf("step %d, bpf command %d", s.Number, s.BPF)
	}
	return fmt.Sprintf("step %d, %s", s.Number, s.Call)
}

// Fate is what happens to a step.
type Fate int

const (
	Happens Fate = 0  // as without Steps
	Killed  Fate = -1 // the program is killed before the step
	// Every other value is an errno: the step fails with it, and the kernel does nothing.
)

// stepCalls are the system calls that are steps. openat(2) is a step if it may create a file.
var stepCalls = map[int32]string{
	unix.SYS_BPF: "bpf", unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_FLOCK: "flock", unix.SYS_FSYNC: "fsync", unix.SYS_FCHMOD: "fchmod",
	unix.SYS_SENDTO: "sendto", unix.SYS_OPENAT: "openat",
}

// stepsSocket is the environment variable with the path of the socket to which the program gives the descriptor of its filter.
const stepsSocket = "HAIRPIN_LAB_STEPS"

// Steps runs a program on the host, and asks decide about each of its steps, one after the other. It returns the result and the number of
// steps. It may be called from any goroutine.
func (h *Host) Steps(decide func(Step) Fate, args ...string) (Result, int, error) {
	dir, err := os.MkdirTemp("", "hairpin-steps-")
	if err != nil {
		return Result{}, 0, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "filter")
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return Result{}, 0, err
	}
	defer socket.Close()
	p, err := h.spawn([]string{stepsSocket + "=" + path}, "", append([]string{"/proc/self/exe"}, args...))
	if err != nil {
		return Result{}, 0, fmt.Errorf("%s: start %s: %w", h.Name, args[0], err)
	}
	defer func() {
		_ = p.cmd.Process.Kill() // it has ended, unless there was an error
		<-p.done
	}()
	socket.SetDeadline(time.Now().Add(Patience))
	filter, err := receiveFilter(socket)
	if err != nil {
		return Result{}, 0, fmt.Errorf("%s: %w\n%s", p.name, err, p.Stderr)
	}
	defer unix.Close(filter)
	number, err := followSteps(filter, p, decide)
	if err != nil {
		return Result{}, number, fmt.Errorf("%s: %w", p.name, err)
	}
	<-p.done
	return Result{p.Stdout.String(), p.Stderr.String(), p.cmd.ProcessState.ExitCode()}, number, nil
}

// receiveFilter returns the descriptor that the program sends.
func receiveFilter(socket *net.UnixListener) (int, error) {
	c, err := socket.AcceptUnix()
	if err != nil {
		return -1, fmt.Errorf("wait for the filter: %w", err)
	}
	defer c.Close()
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return -1, fmt.Errorf("receive the filter: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("receive the filter: %d messages (%w)", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("receive the filter: %d descriptors (%w)", len(fds), err)
	}
	return fds[0], nil
}

// Structures of linux/seccomp.h.
type (
	seccompData struct {
		Number      int32
		Arch        uint32
		Instruction uint64
		Args        [6]uint64
	}
	seccompNotice struct {
		ID         uint64
		PID, Flags uint32
		Data       seccompData
	}
	seccompReply struct {
		ID    uint64
		Value int64
		Error int32
		Flags uint32
	}
)

// followSteps answers the filter until the program has ended. It returns the number of steps.
func followSteps(filter int, p *Process, decide func(Step) Fate) (number int, err error) {
	deadline := time.Now().Add(3 * Patience)
	for {
		ready := []unix.PollFd{{Fd: int32(filter), Events: unix.POLLIN}}
		_, err := unix.Poll(ready, 100)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return number, fmt.Errorf("wait for a step: %w", err)
		case ready[0].Revents&unix.POLLIN != 0:
		case ready[0].Revents&unix.POLLHUP != 0:
			return number, nil // no process has the filter any more
		case time.Now().After(deadline):
			return number, fmt.Errorf("no end after %v", 3*Patience)
		default:
			continue
		}
		var notice seccompNotice
		if err := ioctl(filter, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&notice)); err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
				continue // the thread has ended, or its system call was interrupted and begins anew
			}
			return number, fmt.Errorf("read step: %w", err)
		}
		number++
		reply := seccompReply{ID: notice.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		switch fate := decide(stepOf(number, &notice.Data)); fate {
		case Happens:
		case Killed:
			if err := unix.Kill(p.Pid(), unix.SIGKILL); err != nil {
				return number, fmt.Errorf("kill: %w", err)
			}
			continue
		default:
			reply.Error, reply.Flags = -int32(fate), 0
		}
		if err := ioctl(filter, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&reply)); err != nil && !errors.Is(err, unix.ENOENT) {
			return number, fmt.Errorf("answer step: %w", err)
		}
	}
}

func stepOf(number int, data *seccompData) Step {
	s := Step{Number: number, Call: stepCalls[data.Number], BPF: -1}
	if data.Number == unix.SYS_BPF {
		s.BPF = int(data.Args[0])
	}
	return s
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// stepped is the program that Steps starts: it sets the filter, gives it to Steps, and executes the program of its arguments. Other threads
// have no filter, but they end with the execution.
func stepped(path string) error {
	runtime.LockOSThread()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	program, err := exec.LookPath(os.Args[1])
	if err != nil {
		return err
	}
	environment := os.Environ()
	filter, err := setStepFilter()
	if err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(filter), nil); err != nil {
		return fmt.Errorf("give the filter: %w", err)
	}
	return syscall.Exec(program, os.Args[1:], environment)
}

// setStepFilter makes the steps of this thread wait for an answer. It returns the descriptor for the answers.
func setStepFilter() (int, error) {
	const numberAt, thirdArgAt = 0, 16 + 2*8
	code := []bpf.Instruction{bpf.LoadAbsolute{Off: numberAt, Size: 4}}
	for call := range stepCalls {
		if call == unix.SYS_OPENAT {
			continue
		}
		code = append(code, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(call), SkipFalse: 1}, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF})
	}
	code = append(code,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_OPENAT, SkipTrue: 3},
		bpf.LoadAbsolute{Off: thirdArgAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.O_CREAT, SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	raw, err := bpf.Assemble(code)
	if err != nil {
		return -1, err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
