package mocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote"
)

func testEcho(h *harness) {
	p := h.start(h.Command(Cat))
	if p.PID() <= 0 {
		h.Errorf("PID is %d", p.PID())
	}
	buf := make([]byte, 64)
	for _, line := range []string{"one\n", "two\n", "\x00\xff\n"} { // each comes back before the next is sent
		if n, err := p.Stdin().Write([]byte(line)); n != len(line) || err != nil {
			h.Fatalf("Write: %d, %v", n, err)
		}
		if _, err := io.ReadFull(p.Stdout(), buf[:len(line)]); err != nil || string(buf[:len(line)]) != line {
			h.Fatalf("read %q, %v; want %q", buf[:len(line)], err, line)
		}
	}
	if err := p.Stdin().Close(); err != nil {
		h.Errorf("Close: %v", err)
	}
	if n, err := p.Stdout().Read(buf); n != 0 || err != io.EOF {
		h.Errorf("read at the end: %d, %v; want io.EOF", n, err)
	}
	if status := h.wait(p); status != (remote.ExitStatus{}) {
		h.Errorf("ended with %v", status)
	}
}

// testStartContext checks that the context of Start bounds the start alone.
func testStartContext(h *harness) {
	ctx, cancel := context.WithCancel(h.ctx())
	p, err := h.Sandbox.Start(ctx, h.Command(Cat))
	if err != nil {
		h.Fatal(err)
	}
	cancel()
	buf := make([]byte, 1)
	for range 20 { // long enough for a cancellation to arrive
		if _, err := p.Stdin().Write([]byte{'x'}); err != nil {
			h.Fatalf("Write after the start's context was cancelled: %v", err)
		}
		if _, err := io.ReadFull(p.Stdout(), buf); err != nil {
			h.Fatalf("read after the start's context was cancelled: %v", err)
		}
	}
	p.Stdin().Close()
	h.read(p)
	if status := h.wait(p); status != (remote.ExitStatus{}) {
		h.Errorf("ended with %v", status)
	}
}

// testStdinWhole checks that writes of all sizes arrive in order, and those of
// several goroutines in one piece each.
func testStdinWhole(h *harness) {
	p := h.start(h.Command(Cat))
	var sent bytes.Buffer
	got := make(chan string)
	go func() { got <- h.read(p) }()
	for size := 1; size <= 64<<10; size = size*2 + size/3 {
		for _, n := range []int{size, size + 1, 1} {
			n = min(n, 64<<10)
			msg := random(uint64(n), n)
			sent.WriteString(msg)
			if k, err := io.WriteString(p.Stdin(), msg); k != n || err != nil {
				h.Errorf("Write of %d bytes: %d, %v", n, k, err)
			}
		}
	}
	p.Stdin().Close()
	h.equal("echo", <-got, sent.String())
	h.wait(p)

	p = h.start(h.Command(Cat))
	go func() { got <- h.read(p) }()
	const writers, writes, size = 4, 20, 10_000
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range writes {
				if _, err := p.Stdin().Write(bytes.Repeat([]byte{byte('a' + i)}, size)); err != nil {
					h.Errorf("Write: %v", err)
				}
			}
		})
	}
	wg.Wait()
	p.Stdin().Close()
	out := <-got
	if len(out) != writers*writes*size {
		h.Errorf("echo has %d bytes, want %d", len(out), writers*writes*size)
	}
	for len(out) >= size {
		if strings.Count(out[:size], out[:1]) != size {
			h.Errorf("writes of several goroutines are mixed")
			break
		}
		out = out[size:]
	}
	h.wait(p)
}

func testStdinAfterExit(h *harness) {
	p := h.start(h.Command(Exit, "0"))
	h.read(p)
	h.wait(p)
	h.within("Write to a process that has ended", func() {
		// The first bytes may be on their way before the end is known.
		h.eventually("Write to a process that has ended fails", func() bool {
			_, err := p.Stdin().Write(make([]byte, 64<<10))
			return err != nil
		})
	})
	h.within("Close of the input of a process that has ended", func() { p.Stdin().Close() })

	p = h.sleeper() // which never reads
	failed := make(chan error)
	go func() {
		for {
			if _, err := p.Stdin().Write(make([]byte, 64<<10)); err != nil {
				failed <- err
				return
			}
		}
	}()
	if err := p.Signal(h.ctx(), remote.SignalKill); err != nil {
		h.Fatalf("Signal: %v", err)
	}
	h.within("Write to a process that is killed", func() { <-failed })
}

func testExitCode(h *harness) {
	for _, code := range []int{0, 1, 2, 42, 255} {
		p := h.start(h.Command(Exit, strconv.Itoa(code)))
		h.read(p)
		if got, want := h.wait(p), (remote.ExitStatus{Code: code}); got != want {
			h.Errorf("exit %d gives %+v, want %+v", code, got, want)
		}
	}
}

func testSignal(h *harness) {
	for _, sig := range []remote.Signal{remote.SignalTerm, remote.SignalKill} {
		p := h.sleeper()
		if err := p.Signal(h.ctx(), sig); err != nil {
			h.Fatalf("Signal(%s): %v", sig, err)
		}
		if got, want := h.wait(p), (remote.ExitStatus{Code: -1, Signal: string(sig)}); got != want {
			h.Errorf("%s gives %+v, want %+v", sig, got, want)
		}
		if out := h.read(p); out != "" {
			h.Errorf("output after %s: %q", sig, out)
		}
		for range 2 { // a process that has ended is no error
			if err := p.Signal(h.ctx(), sig); err != nil {
				h.Errorf("Signal(%s) after the end: %v", sig, err)
			}
		}
		h.ended(p)
	}
}

// ended checks that a process is gone from the machine.
func (h *harness) ended(p remote.Process) {
	h.Helper()
	if h.Running != nil {
		h.eventually("process ends on the machine", func() bool { return !h.Running(p.PID()) })
	}
}

func testWait(h *harness) {
	p := h.sleeper()
	short, cancel := context.WithTimeout(h.ctx(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		h.Errorf("Wait: %v, want context.DeadlineExceeded", err)
	}

	want := remote.ExitStatus{Code: -1, Signal: "SIGKILL"}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := p.Wait(h.ctx()); got != want || err != nil {
				h.Errorf("concurrent Wait: %+v, %v; want %+v", got, err, want)
			}
		})
	}
	if err := p.Signal(h.ctx(), remote.SignalKill); err != nil {
		h.Fatalf("Signal: %v", err)
	}
	wg.Wait()
	for range 2 {
		if got := h.wait(p); got != want {
			h.Errorf("Wait after the end: %+v, want %+v", got, want)
		}
	}
}

func testStartMissing(h *harness) {
	p, err := h.Sandbox.Start(h.ctx(), remote.Command{Path: h.path("missing/program")})
	if err == nil {
		// Some machines know only afterwards.
		h.read(p)
		if status := h.wait(p); status.Code == 0 {
			h.Errorf("Start of a missing program: exit code 0")
		}
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		h.Errorf("Start of a missing program: %v, want fs.ErrNotExist", err)
	}
}

// testStartUploaded starts a program that was uploaded: where files are real it
// is a script, a sandbox in memory goes by the name.
func testStartUploaded(h *harness) {
	name := h.path("bin dir/" + Args)
	h.upload(name, "#!/bin/sh\n"+scripts[Args]+"\n")
	for range 2 {
		if got := h.output(remote.Command{Path: name, Args: []string{"a b", ""}}); got != "a b\x00\x00" {
			h.Errorf("an uploaded program writes %q", got)
		}
	}
}

func testArguments(h *harness) {
	args := append([]string{"", "plain"}, oddNames...)
	out := h.output(h.Command(Args, args...))
	if got, want := strings.TrimSuffix(out, "\x00"), strings.Join(args, "\x00"); got != want {
		h.Errorf("arguments arrive as %q, want %q", got, want)
	}
}

func testDir(h *harness) {
	h.upload(h.path("work dir/file"), "")
	cmd := h.Command(Pwd)
	cmd.Dir = h.path("work dir")
	if got := h.output(cmd); got != cmd.Dir {
		h.Errorf("the working directory is %q, want %q", got, cmd.Dir)
	}
	if got := h.output(h.Command(Pwd)); !strings.HasPrefix(got, "/") {
		h.Errorf("without Dir the working directory is %q, want an absolute path", got)
	}
}

func testStderr(h *harness) {
	for i := range 20 { // whether all is there before Wait returns is a matter of luck
		want := random(uint64(i), 1+i*10)
		want = strings.Map(func(r rune) rune { return 'a' + r%26 }, want)
		var stderr bytes.Buffer // the race detector sees it used after Wait
		cmd := h.Command(Stderr, want)
		cmd.Stderr = &stderr
		p := h.start(cmd)
		if out := h.read(p); out != "" {
			h.Errorf("standard error in standard output: %q", out)
		}
		h.wait(p)
		if got := stderr.String(); got != want {
			h.Fatalf("standard error is %q, want %q", got, want)
		}
	}
	p := h.start(h.Command(Stderr, "to nobody"))
	h.read(p)
	h.wait(p)
}

// testBackPressure checks that output waits for its reader and is then all
// there.
func testBackPressure(h *harness) {
	const size = 20 << 20
	p := h.start(h.Command(Flood, strconv.Itoa(size)))
	early, cancel := context.WithTimeout(h.ctx(), 50*time.Millisecond)
	defer cancel()
	if status, err := p.Wait(early); !errors.Is(err, context.DeadlineExceeded) {
		h.Errorf("process ends with %v, %v though nobody reads its output", status, err)
	}
	if n, err := io.Copy(io.Discard, p.Stdout()); n != size || err != nil {
		h.Errorf("read %d bytes, %v; want %d", n, err, size)
	}
	h.wait(p)

	p = h.start(h.Command(Flood, strconv.Itoa(size))) // blocked for ever
	if err := p.Signal(h.ctx(), remote.SignalKill); err != nil {
		h.Fatalf("Signal: %v", err)
	}
	if n, err := io.Copy(io.Discard, p.Stdout()); n >= size || err != nil {
		h.Errorf("read %d bytes, %v of a killed process", n, err)
	}
	if got, want := h.wait(p), (remote.ExitStatus{Code: -1, Signal: "SIGKILL"}); got != want {
		h.Errorf("ended with %+v, want %+v", got, want)
	}
}

// testStdoutClosed checks that a process goes on when nobody wants its output
// any more, and that a reader who waits for it is let go.
func testStdoutClosed(h *harness) {
	p := h.start(h.Command(Flood, strconv.Itoa(20<<20)))
	if _, err := io.ReadFull(p.Stdout(), make([]byte, 100_000)); err != nil {
		h.Errorf("read stdout: %v", err)
	}
	p.Stdout().Close()
	if status := h.wait(p); status != (remote.ExitStatus{}) {
		h.Errorf("after Close of its output the process ended with %v", status)
	}
	if n, err := p.Stdout().Read(make([]byte, 1)); n != 0 || err == nil {
		h.Errorf("Read after Close: %d, %v; want an error", n, err)
	}

	p = h.sleeper()
	read := make(chan error)
	go func() {
		_, err := p.Stdout().Read(make([]byte, 1))
		read <- err
	}()
	time.Sleep(10 * time.Millisecond) // let it wait
	p.Stdout().Close()
	h.within("Read while the output is closed", func() {
		if err := <-read; err == nil || err == io.EOF {
			h.Errorf("Read while the output is closed: %v, want an error that is not io.EOF", err)
		}
	})
	if err := p.Signal(h.ctx(), remote.SignalTerm); err != nil {
		h.Errorf("Signal: %v", err)
	}
	if got, want := h.wait(p), (remote.ExitStatus{Code: -1, Signal: "SIGTERM"}); got != want {
		h.Errorf("after Close of its output %+v, want %+v", got, want)
	}
}

// testCancelled checks that nothing happens once the context is done.
func testCancelled(h *harness) {
	p := h.sleeper()
	h.upload(h.path("file"), "old")
	ctx, cancel := context.WithCancel(h.ctx())
	cancel()
	for name, call := range h.calls(ctx, p) {
		if err := call(); !errors.Is(err, context.Canceled) {
			h.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	if got := h.download(h.path("file")); got != "old" {
		h.Errorf("a cancelled Upload left %q", got)
	}
	if err := p.Signal(h.ctx(), remote.SignalTerm); err != nil {
		h.Errorf("Signal: %v", err)
	}
	h.wait(p)
}

// calls are the methods that take a context, by name.
func (h *harness) calls(ctx context.Context, p remote.Process) map[string]func() error {
	return map[string]func() error{
		"Upload": func() error {
			return h.Sandbox.Upload(ctx, h.path("file"), strings.NewReader("new"), 3)
		},
		"Download": func() error { _, err := h.tryDownload(ctx, h.path("file")); return err },
		"Start": func() error {
			_, err := h.Sandbox.Start(ctx, h.Command(Exit, "0"))
			return err
		},
		"Extend": func() error { return h.Sandbox.Extend(ctx, time.Hour) },
		"Kill":   func() error { return h.Sandbox.Kill(ctx) },
		"Wait":   func() error { _, err := p.Wait(ctx); return err },
		"Signal": func() error { return p.Signal(ctx, remote.SignalKill) },
	}
}

func testExtend(h *harness) {
	for _, d := range []time.Duration{2 * time.Minute, time.Minute} {
		if err := h.Sandbox.Extend(h.ctx(), d); err != nil {
			h.Errorf("Extend(%v): %v", d, err)
		}
	}
}

// testState checks that a sandbox is said to run as long as it does, and that
// one which does not is no error.
func testState(h *harness) {
	got, err := h.Sandbox.State(h.ctx())
	if err != nil || got.Phase != remote.SandboxRunning {
		h.Errorf("State of one that runs: %+v, %v", got, err)
	}
	if !got.EndAt.IsZero() && !got.StartedAt.IsZero() && !got.EndAt.After(got.StartedAt) {
		h.Errorf("it ends at %v, before its start at %v", got.EndAt, got.StartedAt)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := h.Sandbox.State(ctx); err == nil {
		h.Errorf("State with a cancelled context: %+v", got)
	}
	if err := h.Sandbox.Kill(h.ctx()); err != nil {
		h.Fatalf("Kill: %v", err)
	}
	if got, err := h.Sandbox.State(h.ctx()); err != nil || got.Phase != remote.SandboxGone {
		h.Errorf("State of one that was killed: %+v, %v", got, err)
	}
}

func testKill(h *harness) {
	info := h.Sandbox.Info()
	h.upload(h.path("file"), "data")
	ended := h.start(h.Command(Exit, "3"))
	h.read(ended)
	if got := h.wait(ended); got.Code != 3 {
		h.Errorf("exit 3 gives %+v", got)
	}
	p := h.sleeper()
	read := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, p.Stdout())
		read <- err
	}()
	for i := range 3 {
		if err := h.Sandbox.Kill(h.ctx()); err != nil {
			h.Fatalf("Kill number %d: %v", i+1, err)
		}
	}
	h.ended(p)
	h.within("reading the output of a killed sandbox", func() { <-read })
	h.within("Wait in a killed sandbox", func() {
		if status, err := p.Wait(h.ctx()); err == nil && status.Signal != "SIGKILL" {
			h.Errorf("Wait in a killed sandbox: %+v, nil", status)
		}
	})
	h.within("Write in a killed sandbox", func() {
		h.eventually("Write in a killed sandbox fails", func() bool {
			_, err := p.Stdin().Write([]byte("x"))
			return err != nil
		})
	})
	h.within("the rest", func() {
		p.Stdin().Close()
		p.Signal(h.ctx(), remote.SignalKill) // either answer will do
	})
	if got := h.Sandbox.Info(); got != info {
		h.Errorf("Info changed from %+v to %+v", info, got)
	}
	calls := h.calls(h.ctx(), p)
	for _, name := range []string{"Upload", "Download", "Start", "Extend"} {
		if err := calls[name](); !errors.Is(err, remote.ErrSandboxGone) {
			h.Errorf("%s after Kill: %v, want remote.ErrSandboxGone", name, err)
		}
	}
}

// testKillWhileUsed checks that Kill lets go of everyone.
func testKillWhileUsed(h *harness) {
	h.upload(h.path("file"), random(3, 4<<20))
	var wg sync.WaitGroup
	for range 2 {
		flood := h.start(h.Command(Flood, strconv.Itoa(1<<40)))
		wg.Go(func() { io.Copy(io.Discard, flood.Stdout()) })
		cat := h.start(h.Command(Cat))
		wg.Go(func() {
			for {
				if _, err := cat.Stdin().Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		})
		wg.Go(func() { cat.Wait(h.ctx()) })
		for _, name := range []string{"Upload", "Download", "Start"} {
			call := h.calls(h.ctx(), cat)[name]
			wg.Go(func() {
				for {
					if err := call(); errors.Is(err, remote.ErrSandboxGone) {
						return
					} else if h.Context().Err() != nil {
						return
					}
				}
			})
		}
	}
	time.Sleep(20 * time.Millisecond) // let them be in the middle of something
	if err := h.Sandbox.Kill(h.ctx()); err != nil {
		h.Errorf("Kill: %v", err)
	}
	h.within("use of a sandbox that is killed", wg.Wait)
}

func testConcurrent(h *harness) {
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			name := h.path(fmt.Sprintf("dir/file-%d", i))
			want := random(uint64(i), 100_000+i)
			if err := h.Sandbox.Upload(h.ctx(), name, strings.NewReader(want), int64(len(want))); err != nil {
				h.Errorf("Upload: %v", err)
				return
			}
			got, err := h.tryDownload(h.ctx(), name)
			if err != nil {
				h.Errorf("Download: %v", err)
			}
			h.equal(name, got, want)

			p, err := h.Sandbox.Start(h.ctx(), h.Command(Cat))
			if err != nil {
				h.Errorf("Start: %v", err)
				return
			}
			var in sync.WaitGroup
			in.Go(func() {
				io.WriteString(p.Stdin(), want)
				p.Stdin().Close()
			})
			h.equal("echo", h.read(p), want)
			in.Wait()
			if status, err := p.Wait(h.ctx()); err != nil || status.Code != 0 {
				h.Errorf("Wait: %v, %v", status, err)
			}
			h.Sandbox.Extend(h.ctx(), time.Hour)
			h.Sandbox.Info()
		})
	}
	wg.Wait()
}
