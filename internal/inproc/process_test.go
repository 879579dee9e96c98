package inproc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/osiris-pipelines/remote/internal/inproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type runFunc = func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int

func echo(_ context.Context, stdin io.Reader, stdout, _ io.Writer) int {
	if _, err := io.Copy(stdout, stdin); err != nil {
		return 1
	}
	return 0
}

// idle waits for its context.
func idle(ctx context.Context, _ io.Reader, _, _ io.Writer) int {
	<-ctx.Done()
	return 3
}

func TestStatus(t *testing.T) {
	for _, test := range []struct {
		name   string
		run    runFunc
		stop   func(*inproc.Process)
		code   int
		signal string
		stderr string // what it begins with
	}{
		{name: "returns", run: func(context.Context, io.Reader, io.Writer, io.Writer) int { return 42 }, code: 42},
		{name: "returns too much", run: func(context.Context, io.Reader, io.Writer, io.Writer) int { return -1 }, code: 255},
		{name: "panics", run: func(context.Context, io.Reader, io.Writer, io.Writer) int { panic("oh no") },
			code: 2, stderr: "panic: oh no\n\ngoroutine "},
		{name: "panics with nil", run: func(context.Context, io.Reader, io.Writer, io.Writer) int { panic(nil) },
			code: 2, stderr: "panic: panic called with nil argument"},
		{name: "Goexit", run: func(context.Context, io.Reader, io.Writer, io.Writer) int { runtime.Goexit(); return 0 },
			code: 2, stderr: "fatal error: "},
		{name: "terminated", run: idle, stop: (*inproc.Process).Terminate, code: -1, signal: "SIGTERM"},
		{name: "killed", run: idle, stop: (*inproc.Process).Kill, code: -1, signal: "SIGKILL"},
		{name: "terminated, then killed", run: stuck(t), stop: func(p *inproc.Process) { p.Terminate(); p.Kill() },
			code: -1, signal: "SIGKILL"},
		{name: "reads when terminated", run: func(_ context.Context, stdin io.Reader, _, _ io.Writer) int {
			stdin.Read(make([]byte, 1))
			return 0
		}, stop: (*inproc.Process).Terminate, code: -1, signal: "SIGTERM"},
		{name: "writes when terminated", run: func(_ context.Context, _ io.Reader, stdout, _ io.Writer) int {
			for {
				if _, err := stdout.Write(make([]byte, 1<<20)); err != nil {
					return 0
				}
			}
		}, stop: (*inproc.Process).Terminate, code: -1, signal: "SIGTERM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stderr bytes.Buffer
			p := inproc.Start(test.run, &stderr)
			if test.stop != nil {
				test.stop(p)
			}
			<-p.Done()
			if code, signal := p.Status(); code != test.code || signal != test.signal {
				t.Errorf("Status() = %d, %q; want %d, %q", code, signal, test.code, test.signal)
			}
			if got := stderr.String(); !strings.HasPrefix(got, test.stderr) || test.stderr == "" && got != "" {
				t.Errorf("stderr is %q, want it to begin with %q", got, test.stderr)
			}
			if strings.HasPrefix(test.name, "panics") && !strings.Contains(stderr.String(), "process_test.go") {
				t.Errorf("stderr has no stack: %q", stderr.String())
			}
		})
	}
}

// stuck makes a function that ignores its context, and lets it go when the
// test is over.
func stuck(t *testing.T) runFunc {
	release, gone := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release); <-gone })
	return func(context.Context, io.Reader, io.Writer, io.Writer) int {
		defer close(gone)
		<-release
		return 0
	}
}

func TestEcho(t *testing.T) {
	p := inproc.Start(echo, nil)
	var want bytes.Buffer
	go func() {
		defer p.Stdin().Close()
		for n := 1; n < 1<<20; n *= 3 {
			p.Stdin().Write(bytes.Repeat([]byte{byte(n)}, n))
		}
	}()
	for n := 1; n < 1<<20; n *= 3 {
		want.Write(bytes.Repeat([]byte{byte(n)}, n))
	}
	got, err := io.ReadAll(p.Stdout())
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("echo of %d bytes has %d, %v", want.Len(), len(got), err)
	}
	<-p.Exited()
}

// TestCloseKeepsPendingWrite closes the input while a Write still waits for
// room: what was asked for first arrives whole.
func TestCloseKeepsPendingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan struct{})
		p := inproc.Start(func(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
			<-read
			return echo(ctx, stdin, stdout, stderr)
		}, nil)
		const size = 1 << 20
		go func() {
			if n, err := p.Stdin().Write(make([]byte, size)); n != size || err != nil {
				t.Errorf("Write: %d, %v", n, err)
			}
		}()
		synctest.Wait()
		p.Stdin().Close()
		if _, err := p.Stdin().Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write after Close: %v, want io.ErrClosedPipe", err)
		}
		close(read)
		if n, err := io.Copy(io.Discard, p.Stdout()); n != size || err != nil {
			t.Errorf("read %d, %v; want %d", n, err, size)
		}
	})
}

func TestWriteFailsWhenProcessEnds(t *testing.T) {
	for name, end := range map[string]func(*inproc.Process, context.CancelFunc){
		"returns":    func(_ *inproc.Process, stop context.CancelFunc) { stop() },
		"terminated": func(p *inproc.Process, _ context.CancelFunc) { p.Terminate() },
		"killed":     func(p *inproc.Process, _ context.CancelFunc) { p.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stopped, stop := context.WithCancel(t.Context())
				defer stop()
				p := inproc.Start(func(ctx context.Context, _ io.Reader, _, _ io.Writer) int {
					select {
					case <-stopped.Done():
					case <-ctx.Done():
					}
					return 0
				}, nil)
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if n, err := p.Stdin().Write(make([]byte, 1<<20)); n >= 1<<20 || !errors.Is(err, syscall.EPIPE) {
							t.Errorf("Write that waits: %d, %v; want EPIPE", n, err)
						}
					})
				}
				synctest.Wait()
				end(p, stop)
				wg.Wait()
				<-p.Done()
				if n, err := p.Stdin().Write([]byte("x")); n != 0 || !errors.Is(err, syscall.EPIPE) {
					t.Errorf("Write after the end: %d, %v; want EPIPE", n, err)
				}
			})
		})
	}
}

// writeAll writes for ever and tells the error that stopped it.
func writeAll(failed chan<- error) runFunc {
	return func(_ context.Context, _ io.Reader, stdout, _ io.Writer) int {
		for {
			if _, err := stdout.Write(make([]byte, 10_000)); err != nil {
				failed <- err
				return 0
			}
		}
	}
}

func TestStdoutBlocksWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan error, 1)
		p := inproc.Start(writeAll(failed), nil)
		synctest.Wait()
		select {
		case err := <-failed:
			t.Fatalf("Write fails with %v", err)
		default: // it waits
		}
		if n, err := io.ReadFull(p.Stdout(), make([]byte, 5<<20)); err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		p.Stdout().Close()
		if err := <-failed; !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write after the reader closed: %v, want EPIPE", err)
		}
		if _, err := p.Stdout().Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Read after Close: %v", err)
		}
		<-p.Done()
	})
}

func TestKillKeepsWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := inproc.Start(func(_ context.Context, _ io.Reader, stdout, stderr io.Writer) int {
			io.WriteString(stdout, "before")
			<-release // ignores its context
			for _, w := range []io.Writer{stdout, stderr} {
				if _, err := io.WriteString(w, "after"); err == nil {
					t.Error("a killed process writes")
				}
			}
			return 0
		}, io.Discard)
		synctest.Wait()
		p.Kill()
		<-p.Done()
		select {
		case <-p.Exited():
			t.Error("Exited before the function returned")
		default:
		}
		if got, err := io.ReadAll(p.Stdout()); string(got) != "before" || err != nil {
			t.Errorf("stdout is %q, %v", got, err)
		}
		close(release)
		<-p.Exited()
		if code, signal := p.Status(); code != -1 || signal != "SIGKILL" {
			t.Errorf("Status() = %d, %q", code, signal)
		}
	})
}

// TestKillHasEndedIt kills functions that return as soon as they learn of it:
// the end is Kill's all the same, and has come when it returns.
func TestKillHasEndedIt(t *testing.T) {
	for range 5000 {
		p := inproc.Start(func(ctx context.Context, _ io.Reader, _, _ io.Writer) int {
			<-ctx.Done()
			return 3
		}, nil)
		p.Kill()
		select {
		case <-p.Done():
		default:
			t.Fatal("Kill has returned, and the process has not ended")
		}
		if code, signal := p.Status(); code != -1 || signal != "SIGKILL" {
			t.Fatalf("Status() = %d, %q", code, signal)
		}
		<-p.Exited()
	}
}

func TestCutStdout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("connection lost")
		done := make(chan struct{})
		p := inproc.Start(func(_ context.Context, _ io.Reader, stdout, _ io.Writer) int {
			defer close(done)
			for range 100 {
				if n, err := stdout.Write(make([]byte, 100_000)); n != 100_000 || err != nil {
					t.Errorf("Write: %d, %v", n, err)
					return 1
				}
			}
			return 0
		}, nil)
		synctest.Wait() // the buffer is full
		p.CutStdout(lost)
		if n, err := p.Stdout().Read(make([]byte, 10)); n != 0 || err != lost {
			t.Errorf("Read: %d, %v; want %v", n, err, lost)
		}
		<-done
		<-p.Done()
		if n, err := p.Stdout().Read(make([]byte, 10)); n != 0 || err != lost {
			t.Errorf("Read after the end: %d, %v; want %v", n, err, lost)
		}
	})
}

func TestFreezeStdout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan error, 1)
		p := inproc.Start(writeAll(failed), nil)
		if _, err := io.ReadFull(p.Stdout(), make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		p.FreezeStdout()
		read := make(chan error, 1)
		go func() {
			_, err := p.Stdout().Read(make([]byte, 10))
			read <- err
		}()
		p.Kill()
		<-p.Done()
		<-failed
		synctest.Wait()
		select {
		case err := <-read:
			t.Fatalf("Read of a frozen stream returns %v", err)
		default:
		}
		lost := errors.New("lost")
		p.CutStdout(lost)
		if err := <-read; err != lost {
			t.Errorf("Read: %v, want %v", err, lost)
		}
	})
}

// TestStderrEndsBeforeDone kills a process in the middle of a write to the
// host: Done waits for it, so that the host may use what it got.
func TestStderrEndsBeforeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := blockingWriter{entered: make(chan struct{}), release: make(chan struct{})}
		p := inproc.Start(func(_ context.Context, _ io.Reader, _, stderr io.Writer) int {
			stderr.Write([]byte("x"))
			return 0
		}, w)
		<-w.entered
		p.Kill()
		synctest.Wait()
		select {
		case <-p.Done():
			t.Error("Done while a Write to stderr is under way")
		default:
		}
		close(w.release)
		<-p.Done()
	})
}

type blockingWriter struct{ entered, release chan struct{} }

func (w blockingWriter) Write(b []byte) (int, error) {
	close(w.entered)
	<-w.release
	return len(b), nil
}

func BenchmarkStdout(b *testing.B) {
	const chunk = 64 << 10
	p := inproc.Start(func(_ context.Context, _ io.Reader, stdout, _ io.Writer) int {
		buf := make([]byte, chunk)
		for {
			if _, err := stdout.Write(buf); err != nil {
				return 0
			}
		}
	}, nil)
	b.SetBytes(chunk)
	buf := make([]byte, chunk)
	for b.Loop() {
		if _, err := io.ReadFull(p.Stdout(), buf); err != nil {
			b.Fatal(err)
		}
	}
	p.Kill()
	<-p.Exited()
}

func BenchmarkSmallWrites(b *testing.B) {
	p := inproc.Start(func(_ context.Context, _ io.Reader, stdout, _ io.Writer) int {
		buf := make([]byte, 200)
		for {
			if _, err := stdout.Write(buf); err != nil {
				return 0
			}
		}
	}, nil)
	b.SetBytes(200)
	buf := make([]byte, 64<<10)
	left := 0
	for b.Loop() {
		for left < 200 {
			n, err := p.Stdout().Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			left += n
		}
		left -= 200
	}
	p.Kill()
	<-p.Exited()
}
